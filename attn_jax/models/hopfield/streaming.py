"""Association with very many stored patterns, without the matrix of all weights.

Axes: B batch, Q states, K stored patterns, N heads, C channels per head, P channels of a value, T
instances of all bags.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attn_jax.attention import attention_logits


def associate_in_chunks(
    query: Float[Array, "B Q N C"],
    key: Float[Array, "B K N C"],
    value: Float[Array, "B K N P"],
    scale: float | Float[Array, "N 1"],
    mask: Bool[Array, "#B #N #Q K"] | None = None,
    bias: Float[Array, "#B #N #Q K"] | None = None,
    *,
    chunk: int,
) -> Float[Array, "B Q N P"]:
    """softmax(scale query key^T + bias) value, `chunk` patterns at a time.

    Exact, as is its gradient: maximum and sum of the softmax are carried from chunk to chunk, and
    the weights of a chunk are computed again in the backward pass. At any time there are B Q N chunk
    weights instead of B Q N K. A fully masked state gets zeros.

    Source: Milakov and Gimelshein 2018 (online softmax); Rabe and Staats 2021.
    """
    dtype = jnp.promote_types(jnp.result_type(query, key, value), jnp.float32)
    count = key.shape[1]
    missing = -count % chunk
    if mask is None:
        mask = jnp.ones((1, 1, 1, count), bool)

    def split(x: jax.Array, axis: int) -> jax.Array:
        """[..., K, ...] -> [K / chunk, ..., chunk, ...]; what is missing is zero."""
        x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
        shape = (*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    given = [(key, 1), (value, 1), (mask, 3), *([] if bias is None else [(bias, 3)])]
    parts = tuple(split(x, axis) for x, axis in given)

    def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
        largest, total, output = carry  # [B, N, Q], the same, [B, N, Q, P]
        key, value, mask, *bias = part
        logits = attention_logits(
            query, key, scale=scale, mask=mask, bias=bias[0] if bias else None
        )
        # The maximum cancels in the result, so it needs no derivative.
        new = jax.lax.stop_gradient(jnp.maximum(largest, logits.max(axis=-1)))
        weights = jnp.where(mask, jnp.exp(logits - new[..., None]), 0)
        shrink = jnp.exp(largest - new)
        total = shrink * total + weights.sum(axis=-1)
        mixed = jnp.einsum("bnqk,bknp->bnqp", weights, value.astype(dtype))
        return (new, total, shrink[..., None] * output + mixed), None

    batch, states, heads, _ = query.shape
    shape = (batch, heads, states)
    start = (
        jnp.full(shape, jnp.finfo(dtype).min, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros((*shape, value.shape[-1]), dtype),
    )
    _, total, output = jax.lax.scan(jax.checkpoint(add), start, parts)[0]
    output = output / jnp.where(total > 0, total, 1)[..., None]
    return jnp.swapaxes(output, 1, 2).astype(value.dtype)


def associate_sharded(
    query: Float[Array, "B Q N C"],
    key: Float[Array, "B K N C"],
    value: Float[Array, "B K N P"],
    scale: float | Float[Array, "N 1"],
    mask: Bool[Array, "#B #N #Q K"] | None = None,
    bias: Float[Array, "#B #N #Q K"] | None = None,
    *,
    axis_name: str,
) -> Float[Array, "B Q N P"]:
    """softmax(scale query key^T + bias) value, with the patterns spread over a mesh axis.

    Call it inside `jax.shard_map`, with K sharded over `axis_name` and `query` whole. No device sees the
    patterns of another: maximum, sum and output are combined, [B, N, Q] and [B, Q, N, P] numbers an
    association. Exact, as is its gradient. A fully masked state gets zeros.

    Source: Rabe and Staats 2021, over devices instead of chunks.
    """
    dtype = jnp.promote_types(jnp.result_type(query, key, value), jnp.float32)
    logits = attention_logits(query, key, scale=scale, mask=mask, bias=bias)
    # The maximum cancels in the result, so it needs no derivative.
    largest = jax.lax.pmax(jax.lax.stop_gradient(logits.max(axis=-1)), axis_name)
    weights = jnp.exp(logits - largest[..., None])
    if mask is not None:
        weights = jnp.where(mask, weights, 0)
    mixed = jnp.einsum("bnqk,bknp->bnqp", weights, value.astype(dtype))
    total, output = jax.lax.psum((weights.sum(axis=-1), mixed), axis_name)
    output = output / jnp.where(total > 0, total, 1)[..., None]
    return jnp.swapaxes(output, 1, 2).astype(value.dtype)


def associate_bags(
    query: Float[Array, "Q N C"],
    key: Float[Array, "T N C"],
    value: Float[Array, "T N P"],
    bag_ids: Int[Array, " T"],
    *,
    bags: int,
    scale: float | Float[Array, "N 1"],
) -> Float[Array, "B Q N P"]:
    """Associates the same states with each of `bags` bags, whose instances lie in one array.

    Bags of any sizes take no padding. An instance whose bag id is not in [0, bags) belongs to no bag; a
    bag without instances gets zeros.
    """
    logits = attention_logits(query, key, scale=scale)  # [N, Q, T]
    logits = jnp.moveaxis(logits, -1, 0)
    inside = (bag_ids >= 0) & (bag_ids < bags)
    segments = jnp.where(inside, bag_ids, bags)  # a spare bag for those of none
    largest = jax.ops.segment_max(
        jax.lax.stop_gradient(logits), segments, num_segments=bags + 1
    )
    weights = jnp.exp(logits - largest[segments])  # [T, N, Q]
    total = jax.ops.segment_sum(weights, segments, num_segments=bags + 1)
    weighted = weights[..., None] * value[:, :, None].astype(weights.dtype)
    output = jax.ops.segment_sum(weighted, segments, num_segments=bags + 1)
    output = output / jnp.where(total > 0, total, 1)[..., None]
    return jnp.swapaxes(output[:bags], 1, 2).astype(value.dtype)
