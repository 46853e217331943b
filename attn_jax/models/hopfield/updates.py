"""The loop of updates of the states.

Axes: B batch, Q states, K stored patterns, N heads, C channels per head.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_jax.attention import mix

# The limit if only `eps` ends the updates, because convergence is not guaranteed to be fast.
MAX_UPDATES = 1000


def update_heads(
    associate: Callable[[jax.Array], jax.Array],
    query: Float[Array, "B Q N C"],
    key: Float[Array, "B K N C"],
    limits: Sequence[int | None],
    eps: Sequence[float] | None = None,
    *,
    remat: bool = False,
) -> Float[Array, "B N Q K"]:
    """The weights after the updates query <- weights key, weights <- associate(query).

    Args:
        associate: states to their weights [B, N, Q, K].
        limits: the largest number of updates, for each head. None: `MAX_UPDATES`, in a loop without
            a reverse-mode derivative.
        eps: a head of a sample stops once an update changes its weights by at most this
            (Frobenius norm), for each head. None: never.
        remat: recompute the updates in the backward pass.
    """
    weights = associate(query)
    known = [MAX_UPDATES if limit is None else limit for limit in limits]
    if not any(known):
        return weights
    limit = jnp.array(known).reshape(1, -1)
    distances = None
    if eps is not None:
        distances = jnp.array(eps, weights.dtype).reshape(1, -1)

    def update(carry: tuple, step: jax.Array) -> tuple:
        query, weights, active = carry  # active: [B, N]
        moved = mix(weights, key)
        query = jnp.where(active[:, None, :, None], moved, query)
        new = associate(query)
        new = jnp.where(active[:, :, None, None], new, weights)
        active &= step < limit
        if distances is not None:
            change = jax.lax.stop_gradient(new - weights)
            active &= jnp.sqrt((change * change).sum(axis=(-2, -1))) > distances
        return query, new, active

    active = jnp.broadcast_to(limit > 0, weights.shape[:2])
    start = (query, weights, active)
    if None in limits:
        return iterate_until_converged(update, start)[1]
    body = jax.checkpoint(update) if remat else update
    steps = jnp.arange(1, max(known) + 1)
    return jax.lax.scan(lambda c, step: (body(c, step), None), start, steps)[0][1]


def iterate_until_converged(update: Callable[[Any, jax.Array], Any], start: Any) -> Any:
    """Applies `carry = update(carry, step)` for step = 1, 2, ... until no entry is active.

    `carry[-1]` holds the active entries. Stops after `MAX_UPDATES` updates at the latest.
    """

    def unfinished(carry: tuple) -> jax.Array:
        step, (*_, active) = carry
        return active.any() & (step <= MAX_UPDATES)

    def advance(carry: tuple) -> tuple:
        step, inner = carry
        return step + 1, update(inner, step)

    return jax.lax.while_loop(unfinished, advance, (jnp.int32(1), start))[1]
