"""The loop of updates of the states.

Axes: B batch, Q states, K stored patterns, N heads, C channels per head.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_jax.attention import mix

# The limit if only `eps` ends the updates, because convergence is not guaranteed to be fast.
MAX_UPDATES = 1000
# How the states after the updates depend on what they are computed from: through every update, or
# as a fixed point.
Differentiate = Literal["unrolled", "implicit"]


def update_heads(
    associate: Callable[[jax.Array], jax.Array],
    query: Float[Array, "B Q N C"],
    key: Float[Array, "B K N C"],
    limits: Sequence[int | None],
    eps: Sequence[float] | None = None,
    *,
    remat: bool = False,
    differentiate: Differentiate = "unrolled",
) -> Float[Array, "B N Q K"]:
    """The weights after the updates query <- weights key, weights <- associate(query).

    Args:
        associate: states to their weights [B, N, Q, K].
        limits: the largest number of updates, for each head. None: `MAX_UPDATES`, in a loop without
            a reverse-mode derivative unless `differentiate` is "implicit".
        eps: a head of a sample stops once an update changes its weights by at most this
            (Frobenius norm), for each head. None: never.
        remat: recompute the updates in the backward pass.
        differentiate: "implicit" calls `differentiate_fixed_point`.
    """
    if differentiate == "implicit":
        fixed = differentiate_fixed_point(
            lambda query: mix(associate(query), key),
            lambda query: iterate_heads(associate, query, key, limits, eps)[0],
            query,
        )
        return associate(fixed)
    return iterate_heads(associate, query, key, limits, eps, remat=remat)[1]


def iterate_heads(
    associate: Callable[[jax.Array], jax.Array],
    query: jax.Array,
    key: jax.Array,
    limits: Sequence[int | None],
    eps: Sequence[float] | None,
    *,
    remat: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """(states, weights) after the updates; arguments as in `update_heads`."""
    weights = associate(query)
    known = [MAX_UPDATES if limit is None else limit for limit in limits]
    if not any(known):
        return query, weights
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
        return iterate_until_converged(update, start)[:2]
    body = jax.checkpoint(update) if remat else update
    steps = jnp.arange(1, max(known) + 1)
    return jax.lax.scan(lambda c, step: (body(c, step), None), start, steps)[0][:2]


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


def differentiate_fixed_point(
    update: Callable[[jax.Array], jax.Array],
    solve: Callable[[jax.Array], jax.Array],
    state: jax.Array,
) -> jax.Array:
    """`solve(state)`, with the derivative of a fixed point of `update`.

    The derivative of xi* = f(xi*, X) is dxi* = J dxi* + df, J that of an update at xi*. Its solution is
    the sum of J^k df, added up until the terms are rounding, at most `MAX_UPDATES` of them: as many
    updates as it would take to come from a distance of 1 to within a rounding of xi*. No update is
    kept for it. The start has no derivative, because it only selects the fixed point.

    It is as wrong as `solve(state)` is far from a fixed point; where an update is no contraction (too few
    updates, a saddle of the energy) the terms grow and may overflow. Forward and reverse mode, under
    jit, vmap and sharding.

    Source: Christianson 1994; Bai et al. 2019 (deep equilibrium models).
    """

    def add_terms(remainder: Callable, tangent: jax.Array) -> jax.Array:
        """(1 - J)^-1 tangent, where `remainder` is 1 - J or its transpose."""

        def unfinished(carry: tuple) -> jax.Array:
            number, total, term = carry
            rounding = jnp.finfo(term.dtype).eps * jnp.abs(total).max()
            return (number < MAX_UPDATES) & (jnp.abs(term).max() > rounding)

        def add(carry: tuple) -> tuple:
            number, total, term = carry
            term = term - remainder(term)
            return number + 1, total + term, term

        start = (jnp.int32(0), tangent, tangent)
        return jax.lax.while_loop(unfinished, add, start)[1]

    def solve_tangent(remainder: Callable, tangent: jax.Array) -> jax.Array:
        return jax.lax.custom_linear_solve(
            remainder, tangent, solve=add_terms, transpose_solve=add_terms
        )

    return jax.lax.custom_root(
        lambda xi: xi - update(xi),
        jax.lax.stop_gradient(state),
        lambda _, xi: solve(xi),
        solve_tangent,
    )
