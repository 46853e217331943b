"""What a Hopfield layer is given: settings per head, widths that must fit, masks.

Axes: B batch, Q states, K stored patterns, N heads.
"""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp

from attn_jax.models.hopfield.family import Member, Softmax
from attn_jax.models.hopfield.updates import Differentiate


def spread_over_heads(field: str, value: Any, num_heads: int) -> tuple:
    """The setting as a tuple with one entry per head."""
    if not isinstance(value, tuple):
        return (value,) * num_heads
    if len(value) != num_heads:
        raise ValueError(
            f"{field}={value!r} has {len(value)} entries for {num_heads=}; give one for "
            "each head, or a single number."
        )
    return value


def check_beta(beta: Any, num_heads: int) -> tuple[float, ...]:
    """One positive beta per head."""
    heads = spread_over_heads("beta", beta, num_heads)
    if not all(0 < value < math.inf for value in heads):
        raise ValueError(f"{beta=} must be positive and finite for every head.")
    return heads


def check_updates(
    max_updates: Any,
    eps: Any,
    num_heads: int,
    differentiate: Differentiate,
    train: bool,
) -> tuple[tuple[int | None, ...], tuple[float, ...] | None]:
    """(limits, distances) of `update_heads`, one per head."""
    limits = spread_over_heads("max_updates", max_updates, num_heads)
    if None in limits and train and differentiate == "unrolled":
        raise ValueError(
            f"{max_updates=} cannot be trained: a loop without a fixed length has no "
            "gradient. Set max_updates to a number, or differentiate='implicit'."
        )
    if any(limit is not None and limit < 0 for limit in limits):
        raise ValueError(f"{max_updates=} must be 0 or more.")
    if differentiate == "implicit" and 0 in limits:
        raise ValueError(
            f"{differentiate=} needs updates in every head, not {max_updates=}: without "
            "one no state is near a fixed point."
        )
    distances = None
    if eps is not None and any(limit != 0 for limit in limits):
        distances = spread_over_heads("eps", eps, num_heads)
        if not all(distance >= 0 for distance in distances):
            raise ValueError(f"{eps=} must be 0 or more.")
    if None in limits and distances is None:
        raise ValueError("max_updates=None needs a stopping rule; set eps.")
    return limits, distances


def check_chunk(
    chunk: int,
    max_updates: Any,
    eps: Any,
    num_heads: int,
    member: Member,
    dropout: float,
    differentiate: Differentiate,
) -> int:
    """The number of updates, if no field of the layer needs all weights at once."""
    if not isinstance(member, Softmax) or dropout:
        raise ValueError(
            f"{chunk=} needs member=Softmax() and dropout=0.0, not {member} and {dropout}."
        )
    if differentiate == "implicit":
        raise ValueError(
            f"{chunk=} needs differentiate='unrolled'; its updates keep no matrix of "
            "weights, only the states."
        )
    updates = set(spread_over_heads("max_updates", max_updates, num_heads))
    stops = updates != {0} and eps is not None
    if len(updates) > 1 or None in updates or stops:
        raise ValueError(
            f"{chunk=} needs the same number of updates for all heads and eps=None, not "
            f"{max_updates=} and {eps=}: the stopping rule compares whole association "
            "matrices."
        )
    return updates.pop()


def find_widths(
    stored_shape: tuple[int, ...],
    state_shape: tuple[int, ...],
    projection_shape: tuple[int, ...],
    *,
    num_heads: int,
    head_dim: int | None,
    value_dim: int | None,
    static_stored: bool,
    static_state: bool,
    static_projection: bool,
    connected: bool,
) -> tuple[int, int]:
    """(C, P) for inputs [B, K, Dk], [B, Q, Dq], [B, K, Dv]."""
    if stored_shape[:2] != projection_shape[:2] or stored_shape[0] != state_shape[0]:
        raise ValueError(
            f"stored {stored_shape}, state {state_shape} and projection {projection_shape} "
            "must be [B, K, Dk], [B, Q, Dq] and [B, K, Dv]: of the same samples, with a value "
            "for each stored pattern."
        )
    stored, state, projection = (
        shape[-1] for shape in (stored_shape, state_shape, projection_shape)
    )
    channels = head_dim
    if channels is None and static_state:
        channels = state
    elif channels is None and static_stored:
        channels = stored
    elif channels is None:
        if state % num_heads:
            raise ValueError(
                f"state width {state} must be divisible by {num_heads=}; change one of "
                "them, or set head_dim."
            )
        channels = state // num_heads
    for role, static, width in (
        ("state", static_state, state),
        ("stored", static_stored, stored),
    ):
        if static and width != channels:
            raise ValueError(
                f"static_{role}=True uses {role} without a projection, so its width "
                f"{width} must be head_dim={channels}."
            )
    values = value_dim or channels
    if connected and not static_stored:
        if static_projection and values != channels:
            raise ValueError(
                f"value_dim={values} must be head_dim={channels} if connected and "
                "static_projection are both True: W_K alone computes the values."
            )
    elif static_projection:
        if value_dim not in (None, projection):
            raise ValueError(
                "static_projection=True uses projection unchanged, so its width "
                f"{projection} must be {value_dim=}."
            )
        values = projection
    return channels, values


def check_matrix(query: jax.Array, key: jax.Array, memory: int | None = None) -> None:
    """Raises ValueError if the weights [B, N, Q, K] alone are larger than the memory.

    Args:
        query, key: [B, Q, N, C] and [B, K, N, C].
        memory: bytes. None: those of all devices; of a CPU, of the host.
    """
    batch, states, heads, _ = query.shape
    patterns = key.shape[1]
    if not all(isinstance(size, int) for size in (batch, states)):
        return  # exported for batches of any size
    needed = 4 * batch * heads * states * patterns  # float32
    if memory is None:
        stats = jax.local_devices()[0].memory_stats() or {}
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit = stats.get("bytes_limit")
        memory = host if limit is None else limit * jax.device_count()
    if needed > memory:
        raise ValueError(
            f"the weights of {patterns:,} patterns, [B, N, Q, K] = "
            f"{[batch, heads, states, patterns]}, would need {needed / 2**30:,.3g} GiB of "
            f"{memory / 2**30:,.3g}. Set chunk, such as 4096, which never holds them all, or "
            "reduce config.batch_size."
        )


def merge_masks(
    stored_mask: jax.Array | None,
    association_mask: jax.Array | None,
    association_bias: jax.Array | None,
) -> tuple[jax.Array | None, jax.Array | None]:
    """(all masks as one [#B, #N, #Q, K], the bias with its -inf moved into the mask)."""
    masks = [] if stored_mask is None else [stored_mask[:, None, None, :]]
    masks += [] if association_mask is None else [association_mask]
    if association_bias is not None:
        excluded = jnp.isneginf(association_bias)
        masks.append(~excluded)
        association_bias = jnp.where(excluded, 0, association_bias)
    mask = None
    for each in masks:
        mask = each if mask is None else mask & each
    return mask, association_bias


def append_zeros(
    key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """The arguments with a pattern and a value of zeros behind the K others, never masked."""

    def append(x: jax.Array | None, entry: float | bool) -> jax.Array | None:
        if x is None:
            return None
        x = jnp.broadcast_to(x, (*x.shape[:-1], key.shape[1]))
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=entry)

    one_more = ((0, 0), (0, 1), (0, 0), (0, 0))
    padded = jnp.pad(key, one_more), jnp.pad(value, one_more)
    return *padded, append(mask, True), append(bias, 0)
