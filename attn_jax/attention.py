"""Attention as one equation: values averaged by softmax-normalized similarity.

The four architectures differ in the softmax axis, the scale and the repetition:

    ViT, BERT         over keys      1 / sqrt(C)   once
    modern Hopfield   over keys      beta          until the state stops moving
    Slot Attention    over queries   1 / sqrt(C)   T rounds, each through a GRU

Axes: B batch, Q queries, K keys, N heads, C channels per head, D width.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

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
    """softmax(scale * query . key + bias), normalized over `keys` or over `queries`.

    Logits and softmax are float32 (float64 for float64 inputs), whatever the inputs'
    dtype, and so are the weights: float16 logits would overflow at 65,504, and bfloat16
    ones have 8 bits.

    Args:
        scale: inverse temperature; 1/sqrt(C) in a Transformer, beta in a Hopfield net, where
            each head may have its own [N, 1].
        mask: True where a query may attend to a key. A fully masked query attends
            uniformly.
        bias: added to the logits; -inf excludes a key as `mask` does.
        over: the axis whose entries compete; "queries" lets slots compete for inputs.

    Raises:
        ValueError: `over` is neither "keys" nor "queries".

    Source: Vaswani 2017 eq. 1; Ramsauer 2021 eq. 3; Locatello 2020 eq. 1.
    """
    if over not in ("keys", "queries"):
        raise ValueError(f"{over=} must be 'keys' or 'queries'.")
    logits = attention_logits(query, key, scale=scale, mask=mask, bias=bias)
    return jax.nn.softmax(logits, axis=-1 if over == "keys" else -2)


def attention_logits(
    query: Float[Array, "*B Q N C"],
    key: Float[Array, "*B K N C"],
    *,
    scale: float | Float[Array, "N 1"],
    mask: Bool[Array, "*#B #N #Q #K"] | None = None,
    bias: Float[Array, "*#B #N #Q #K"] | None = None,
) -> Float[Array, "*B N Q K"]:
    """scale * query . key + bias; the least finite number where `mask` is False."""
    dtype = jnp.promote_types(jnp.result_type(query, key), jnp.float32)
    if not isinstance(scale, float):
        scale = scale.astype(dtype).reshape((1,) * (query.ndim - 3) + (-1, 1, 1))
    logits = scale * jnp.einsum(
        "...QNC,...KNC->...NQK", query, key, preferred_element_type=dtype
    )
    if bias is not None:
        logits = logits + bias
    if mask is None:
        return logits
    return jnp.where(mask, logits, jnp.finfo(logits.dtype).min)


def mix(
    weights: Float[Array, "*B N Q K"], value: Float[Array, "*B K N C"]
) -> Float[Array, "*B Q N C"]:
    """The sum of the values for each query by its weights, in the dtype of the values."""
    return jnp.einsum("...NQK,...KNC->...QNC", weights.astype(value.dtype), value)


class MultiHeadAttention(nn.Module):
    """Project to heads, attend over keys, mix, project back (Vaswani 2017, sec. 3.2.2).

    Sows the weights [B, N, Q, K] as `attention` if `intermediates` is mutable. `dropout`
    is the rate of dropout on the weights. `qk_norm` is the epsilon of a layer norm over the
    channels of each query and key (Henry et al., 2020; Dehghani et al., 2023); None: no
    such norm.

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


def check_attention(
    attention: nn.Module, fields: Mapping[str, tuple[Any, Any]], num_heads: int
) -> None:
    """Raises ValueError if a model's own fields contradict the attention it was given.

    Args:
        fields: {field of the model: (its value, the value with which it does nothing)}.
    """
    check_idle("attention", fields)
    heads = getattr(attention, "num_heads", num_heads)
    if heads != num_heads:
        raise ValueError(
            f"config.model.attention.num_heads={heads} must be config.model.num_heads="
            f"{num_heads}; change one of them."
        )


def check_idle(part: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises ValueError if a model sets a field that its submodule `part` replaces.

    Args:
        fields: {field of the model: (its value, the value with which it does nothing)}.
    """
    for field, (value, idle) in fields.items():
        if value != idle:
            raise ValueError(
                f"config.model.{field}={value!r} has no effect on config.model.{part}; "
                f"set it to {idle!r}, and choose in config.model.{part}."
            )


def layer_norm(epsilon: float, name: str) -> "LayerNorm":
    """Layer normalization with a learned scale and bias, in float32."""
    return LayerNorm(epsilon, name=name)


class LayerNorm(nn.Module):
    """Two-pass layer normalization over the last axis (Ba et al., 2016).

    Computes the same as `flax.linen.LayerNorm(use_fast_variance=False)`. Its derivative is
    written by hand, because XLA compiles the automatic one so poorly for a CPU that it
    takes half of a ViT's training step.

    Attributes:
        epsilon: added to the variance.
        affine: learn `scale` and `bias` [D]. False: the output has zero mean and unit
            variance.
        dtype: dtype of statistics and output.
    """

    epsilon: float
    affine: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        shape = (x.shape[-1],)
        scale, bias = jnp.ones(shape, self.dtype), jnp.zeros(shape, self.dtype)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, shape)
            bias = self.param("bias", nn.initializers.zeros, shape)
        row = (1,) * (x.ndim - 1) + shape
        x = x.astype(self.dtype)
        return _normalize(x, scale.reshape(row), bias.reshape(row), self.epsilon)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the last axis."""
    centered, reciprocal_deviation = _center(x, epsilon)
    return centered * (reciprocal_deviation * scale) + bias


@_normalize.defjvp
def _normalize_jvp(
    epsilon: float, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    x, scale, bias = primals
    x_dot, scale_dot, bias_dot = tangents
    centered, reciprocal_deviation = _center(x, epsilon)
    normalized = centered * reciprocal_deviation
    # Divided by the deviation first: the order does not change the derivative, but with
    # the division last, its transpose takes twice as long on a CPU.
    u = reciprocal_deviation * x_dot
    along = (normalized * u).mean(axis=-1, keepdims=True)
    normalized_dot = u - u.mean(axis=-1, keepdims=True) - normalized * along
    out = centered * (reciprocal_deviation * scale) + bias
    return out, normalized_dot * scale + normalized * scale_dot + bias_dot


def _center(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """(x - mean, 1 / sqrt(variance + epsilon)) over the last axis."""
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centered).mean(axis=-1, keepdims=True)
    return centered, jax.lax.rsqrt(variance + epsilon)
