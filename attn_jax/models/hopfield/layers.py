"""Hopfield layers with learned states (pooling) or learned stored patterns (lookup).

Axes: B batch, Q states, K stored patterns, N heads.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attn_jax.bounds import Width


class HopfieldPooling(nn.Module):
    """Pools a bag into one vector by associating learned states with its instances.

    Attributes:
        hopfield: the `Hopfield` module.
        quantity: number of learned states; their outputs are concatenated.
        width: width of a learned state. None: that of the stored patterns. A static state
            needs the `head_dim` of `hopfield`.
        trainable: False keeps the states at their random initial values.

    Args (call): those of `Hopfield` except `state`.

    Source: paper section 3 (layer type "HopfieldPooling"); the official code.
    """

    hopfield: nn.Module
    quantity: Width = 1
    width: Width | None = None
    trainable: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        stored: Float[Array, "B K Dk"],
        projection: Float[Array, "B K Dv"] | None = None,
        *,
        stored_mask: Bool[Array, "B K"] | None = None,
        association_mask: Bool[Array, "#B #N #Q #K"] | None = None,
        association_bias: Float[Array, "#B #N #Q #K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B pooled"]:
        width = self.width or stored.shape[-1]
        state = learn_patterns(self, "state", self.quantity, width, self.trainable)
        output = self.hopfield(
            stored,
            broadcast_over_batch(state, stored.shape[0], self.dtype),
            projection,
            stored_mask=stored_mask,
            association_mask=association_mask,
            association_bias=association_bias,
            train=train,
        )
        return output.reshape(output.shape[0], -1)


class HopfieldLayer(nn.Module):
    """Associates each state with learned patterns and returns one vector per state.

    Attributes:
        hopfield: the `Hopfield` module.
        quantity: number of learned patterns. With a single pattern the output is constant,
            since a softmax over one entry is 1 for every state.
        width: width of a learned pattern. None: that of the state. A static stored pattern
            needs the `head_dim` of `hopfield`.
        separate_projection: learn values that are separate from the stored patterns.
        projection_width: width of these values. None: `width`.
        trainable, trainable_projection: False keeps them at their initial values.
        initial_stored: `quantity` rows of `width` numbers with which the stored patterns start,
            such as instances of the training data. None: random, as the projection is.

    Args (call): those of `Hopfield` except `stored` and `projection`.

    Raises:
        ValueError: `initial_stored` has another shape.

    Source: paper section 3 (layer type "HopfieldLayer"); the official code.
    """

    hopfield: nn.Module
    quantity: Width
    width: Width | None = None
    separate_projection: bool = False
    projection_width: Width | None = None
    trainable: bool = True
    trainable_projection: bool = True
    initial_stored: Sequence[Sequence[float]] | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        state: Float[Array, "B Q Dq"],
        *,
        stored_mask: Bool[Array, "B K"] | None = None,
        association_mask: Bool[Array, "#B #N #Q #K"] | None = None,
        association_bias: Float[Array, "#B #N #Q #K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B Q Do"]:
        batch, width = state.shape[0], self.width or state.shape[-1]
        stored = learn_patterns(
            self, "stored", self.quantity, width, self.trainable, self.initial_stored
        )
        projection = stored
        if self.separate_projection:
            projection = learn_patterns(
                self,
                "projection",
                self.quantity,
                self.projection_width or width,
                self.trainable_projection,
            )
        return self.hopfield(
            broadcast_over_batch(stored, batch, self.dtype),
            state,
            broadcast_over_batch(projection, batch, self.dtype),
            stored_mask=stored_mask,
            association_mask=association_mask,
            association_bias=association_bias,
            train=train,
        )


def learn_patterns(
    module: nn.Module,
    name: str,
    quantity: int,
    width: int,
    trainable: bool,
    values: Sequence[Sequence[float]] | None = None,
) -> jax.Array:
    """Declares a parameter [1, quantity, D] of the calling module: `values`, or N(0, 0.02)."""
    initial = nn.initializers.normal(0.02)
    if values is not None:
        widths = {len(row) for row in values}
        if len(values) != quantity or widths != {width}:
            raise ValueError(
                f"initial_{name} has {len(values)} rows of {sorted(widths)} numbers; it must "
                f"have quantity={quantity} rows of {width}, the width of a pattern."
            )
        initial = nn.initializers.constant(jnp.array(values))
    patterns = module.param(name, initial, (1, quantity, width))
    return patterns if trainable else jax.lax.stop_gradient(patterns)


def broadcast_over_batch(patterns: jax.Array, batch: int, dtype: str) -> jax.Array:
    shape = (batch, *patterns.shape[1:])
    return jnp.broadcast_to(patterns.astype(dtype), shape)
