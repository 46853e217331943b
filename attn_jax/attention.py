"""Attention as one equation: values mixed by softmax-normalised similarity.

The four architectures differ in the softmax axis, the scale and the repetition:
    ViT, BERT         over keys      1 / sqrt(C)   once
    modern Hopfield   over keys      beta          until the state stops moving
    Slot Attention    over queries   1 / sqrt(C)   T rounds, each through a GRU
Axes: B batch, Q queries, K keys, N heads, C channels per head, D width.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention_weights(
    query: Float[Array, "*B Q N C"],
    key: Float[Array, "*B K N C"],
    *,
    scale: float | Float[Array, "N 1"],
    mask: Bool[Array, "*#B #N #Q #K"] | None = None,
    bias: Float[Array, "*#B #N #Q #K"] | None = None,
    over: Literal["keys", "queries"] = "keys",
) -> Float[Array, "*B N Q K"]:
    """softmax(scale * query . key + bias), normalised over `keys` or over `queries`.

    The softmax is computed in float32 at least, whatever the inputs' dtype, and stays so.

    Args:
        scale: inverse temperature; 1/sqrt(C) in a Transformer, beta in a Hopfield net, where
            each head may have its own [N, 1].
        mask: True where a query may see a key. A query that may see none sees all alike.
        bias: added to the logits; -inf bars a key as `mask` does.
        over: the axis whose entries compete; "queries" lets slots compete for inputs.

    Raises:
        ValueError: `over` is neither of the two.

    Source: Vaswani 2017 eq. 1; Ramsauer 2021 eq. 3; Locatello 2020 eq. 1.
    """
    if over not in ("keys", "queries"):
        raise ValueError(f"{over=} must be 'keys' or 'queries'.")
    # Scaled before the product, as Flax does: the small operand is the query.
    if not isinstance(scale, float):
        scale = scale.reshape((1,) * (query.ndim - 2) + scale.shape).astype(query.dtype)
    logits = jnp.einsum("...QNC,...KNC->...NQK", query * scale, key)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(logits, axis=-1 if over == "keys" else -2)


def mix(
    weights: Float[Array, "*B N Q K"], value: Float[Array, "*B K N C"]
) -> Float[Array, "*B Q N C"]:
    """Every query's values, weighted: in the values' dtype."""
    return jnp.einsum("...NQK,...KNC->...QNC", weights.astype(value.dtype), value)


class MultiHeadAttention(nn.Module):
    """Project to heads, attend over keys, mix, project back (Vaswani 2017, sec. 3.2.2).

    Sows the weights [B, N, Q, K] as `attention` where `intermediates` is mutable. `dropout`
    is the share of weights that are dropped in training (the rest is scaled up).
    `qk_norm` is the epsilon of a layer norm over the channels of each query and key (Henry
    et al., 2020; Dehghani et al., 2023); None: no such norm.

    Raises:
        ValueError: the width is not divisible by the number of heads.
    """

    num_heads: int
    dropout: float = 0.0
    qkv_bias: bool = True
    qk_norm: float | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        query_input: Float[Array, "B Q D"],
        key_input: Float[Array, "B K D"],
        mask: Bool[Array, "#B #N #Q #K"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B Q D"]:
        width = query_input.shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"{width=} must be divisible by num_heads={self.num_heads}; change "
                "config.model.width or config.model.num_heads."
            )
        channels = width // self.num_heads

        def heads(name: str, x: jax.Array) -> jax.Array:  # [B, T, D] -> [B, T, N, C]
            return nn.DenseGeneral(
                (self.num_heads, channels),
                use_bias=self.qkv_bias,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=name,
            )(x)

        query = heads("query", query_input)
        key, value = heads("key", key_input), heads("value", key_input)
        if self.qk_norm is not None:
            query = layer_norm(self.qk_norm, "query_norm")(query).astype(self.dtype)
            key = layer_norm(self.qk_norm, "key_norm")(key).astype(self.dtype)
        weights = attention_weights(query, key, scale=channels**-0.5, mask=mask)
        self.sow("intermediates", "attention", weights)
        weights = nn.Dropout(self.dropout, deterministic=not train)(weights)
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="out",
        )(mix(weights, value))


def layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    """Two-pass layer normalisation over the last axis, in float32."""
    return nn.LayerNorm(epsilon, use_fast_variance=False, dtype="float32", name=name)
