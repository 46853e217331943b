"""Encoder and decoder layers of a Transformer whose attention is a Hopfield association.

Axes: B batch, Q states, K stored patterns, N heads, D width.
"""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attn_jax.attention import LayerNorm
from attn_jax.bounds import NonNegativeFloat, Probability, Width

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


class HopfieldEncoderLayer(nn.Module):
    """Associates patterns with each other, then applies an MLP to each of them.

    x = LN(x + Hopfield(x)), then x = LN(x + W_2 activation(W_1 x)): the norms follow the sums,
    as in Vaswani et al. (2017). With the input norms of `hopfield` off and `max_updates=0` it is
    the layer of that paper.

    Attributes:
        hopfield: the `Hopfield` module; its output is as wide as its input.
        mlp_width: width between the two matrices of the MLP.
        dropout: rate on the association's output, inside the MLP, and on its output.
        activation: of the MLP; "gelu" is the exact one.
        epsilon: of both norms.

    Args (call):
        patterns: states and stored patterns at once.
        stored_mask, association_mask, association_bias: those of `Hopfield`.

    Raises:
        ValueError: the output of `hopfield` has another width than its input.

    Source: ml-jku/hopfield-layers f56f929, `HopfieldEncoderLayer`.
    """

    hopfield: nn.Module
    mlp_width: Width = 2048
    dropout: Probability = 0.1
    activation: Literal["relu", "gelu"] = "relu"
    epsilon: NonNegativeFloat = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        patterns: Float[Array, "B K D"],
        *,
        stored_mask: Bool[Array, "B K"] | None = None,
        association_mask: Bool[Array, "#B #N #K #K"] | None = None,
        association_bias: Float[Array, "#B #N #K #K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B K D"]:
        associated = self.hopfield(
            patterns,
            stored_mask=stored_mask,
            association_mask=association_mask,
            association_bias=association_bias,
            train=train,
        )
        x = add_and_norm(self, "hopfield_norm", patterns, associated, train)
        return add_and_norm(self, "mlp_norm", x, apply_mlp(self, x, train), train)


class HopfieldDecoderLayer(nn.Module):
    """Associates states with each other, then with stored patterns, then applies an MLP.

    Attributes:
        self_hopfield: the `Hopfield` module of the states among themselves.
        cross_hopfield: that of the states with the stored patterns.
        mlp_width, dropout, activation, epsilon: as in `HopfieldEncoderLayer`.

    Args (call):
        state, stored: the sequence that is decoded, and the memory; in the order of the official
            code, not of `Hopfield`.
        state_mask: False masks a state as a stored pattern of the first association.
        stored_mask: False masks a stored pattern.
        self_association_mask, self_association_bias: of the first association, such as a
            causal mask.
        association_mask, association_bias: of the second.

    Raises:
        ValueError: the output of a `Hopfield` has another width than the states.

    Source: ml-jku/hopfield-layers f56f929, `HopfieldDecoderLayer`.
    """

    self_hopfield: nn.Module
    cross_hopfield: nn.Module
    mlp_width: Width = 2048
    dropout: Probability = 0.1
    activation: Literal["relu", "gelu"] = "relu"
    epsilon: NonNegativeFloat = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        state: Float[Array, "B Q D"],
        stored: Float[Array, "B K Dk"],
        *,
        state_mask: Bool[Array, "B Q"] | None = None,
        stored_mask: Bool[Array, "B K"] | None = None,
        self_association_mask: Bool[Array, "#B #N #Q #Q"] | None = None,
        self_association_bias: Float[Array, "#B #N #Q #Q"] | None = None,
        association_mask: Bool[Array, "#B #M #Q #K"] | None = None,
        association_bias: Float[Array, "#B #M #Q #K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B Q D"]:
        associated = self.self_hopfield(
            state,
            stored_mask=state_mask,
            association_mask=self_association_mask,
            association_bias=self_association_bias,
            train=train,
        )
        x = add_and_norm(self, "self_norm", state, associated, train)
        associated = self.cross_hopfield(
            stored,
            x,
            stored,
            stored_mask=stored_mask,
            association_mask=association_mask,
            association_bias=association_bias,
            train=train,
        )
        x = add_and_norm(self, "cross_norm", x, associated, train)
        return add_and_norm(self, "mlp_norm", x, apply_mlp(self, x, train), train)


Layer = HopfieldEncoderLayer | HopfieldDecoderLayer


def add_and_norm(
    layer: Layer, name: str, x: jax.Array, branch: jax.Array, train: bool
) -> jax.Array:
    """LN(x + dropout(branch)), the norm under a name of the calling layer."""
    if branch.shape != x.shape:
        raise ValueError(
            f"The association returns {branch.shape}, but is added to {x.shape}; leave "
            "output_width of the Hopfield module at None, and out_projection at True."
        )
    branch = nn.Dropout(layer.dropout, deterministic=not train)(branch)
    dtype = jnp.promote_types(layer.dtype, jnp.float32).name
    norm = LayerNorm(layer.epsilon, dtype=dtype, name=name)
    return norm(x + branch).astype(layer.dtype)


def apply_mlp(layer: Layer, x: jax.Array, train: bool) -> jax.Array:
    hidden = nn.Dense(layer.mlp_width, dtype=layer.dtype, name="mlp_1")(x)
    hidden = ACTIVATIONS[layer.activation](hidden)
    hidden = nn.Dropout(layer.dropout, deterministic=not train)(hidden)
    return nn.Dense(x.shape[-1], dtype=layer.dtype, name="mlp_2")(hidden)
