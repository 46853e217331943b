"""The update and the energy of a modern Hopfield network, as pure functions.

Axes: B batch, Q states, K stored patterns, N heads, C channels per head, D width.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from attn_jax.attention import attention_logits, attention_weights, mix
from attn_jax.models.hopfield.family import Member, Softmax
from attn_jax.models.hopfield.updates import (
    Differentiate,
    differentiate_fixed_point,
    iterate_until_converged,
)

SOFTMAX = Softmax()


def retrieve(
    stored: Float[Array, "*B K D"],
    state: Float[Array, "*B Q D"],
    *,
    beta: float | Float[Array, ""],
    steps: int | None = 1,
    eps: float | None = None,
    stored_mask: Bool[Array, "*B K"] | None = None,
    member: Member = SOFTMAX,
    differentiate: Differentiate = "unrolled",
) -> Float[Array, "*B Q D"]:
    """The states after `steps` updates xi <- X p(beta X^T xi), with X = `stored`.

    Args:
        beta: inverse temperature, positive. A large value retrieves single patterns, a
            small one averages over many.
        steps: number of updates; differentiable. None iterates until every state has
            converged, at most 1,000 times, which has no reverse-mode derivative in JAX.
        eps: a state is frozen once an update moves it by at most this Euclidean
            distance. This is decided for each state alone, independently of the batch.
        stored_mask: False masks a pattern. If all are masked, the result is zero.
        member: the weights p of the family; `Softmax`, or a sparse one.
        differentiate: "implicit" takes the result for a fixed point. Its derivative needs no memory
            for the updates, exists for steps=None, and is zero for `state`. It is right only
            if the states have converged.

    Raises:
        ValueError: `steps` is negative, None without `eps`, or 0 with "implicit"; beta is not
            positive; shapes do not agree.

    Source: paper eq. 3; the stopping rule is that of appendix A.6.2.
    """
    check_arguments("retrieve", stored, state, beta, stored_mask)
    if steps is None and eps is None:
        raise ValueError("steps=None needs a stopping rule; pass eps, such as 1e-4.")
    if steps is not None and steps < 0:
        raise ValueError(f"{steps=} must be 0 or more, or None with eps.")
    patterns = stored[..., :, None, :]
    scale = beta if isinstance(beta, float) else jnp.reshape(beta, (1, 1))
    mask = None if stored_mask is None else stored_mask[..., None, None, :]

    def update(xi: jax.Array) -> jax.Array:
        weights = associate(xi[..., :, None, :], patterns, scale, mask, member=member)
        return mix(weights, patterns)[..., 0, :].astype(xi.dtype)

    def settle(state: jax.Array) -> jax.Array:
        return iterate_states(update, state, steps, eps)

    if differentiate == "unrolled":
        return settle(state)
    if steps == 0:
        raise ValueError("steps=0 has no fixed point to differentiate; pass more.")
    return differentiate_fixed_point(update, settle, state)


def iterate_states(
    update: Callable[[jax.Array], jax.Array],
    state: jax.Array,
    steps: int | None,
    eps: float | None,
) -> jax.Array:
    """The states after `steps` updates, each state frozen once it moves by at most `eps`."""
    if eps is None:
        return jax.lax.fori_loop(0, steps, lambda _, xi: update(xi), state)

    def update_moving(carry: tuple, _: Any) -> tuple:
        xi, moving = carry
        new = jnp.where(moving[..., None], update(xi), xi)
        moved = jnp.linalg.norm(jax.lax.stop_gradient(new - xi), axis=-1)
        return (new, moving & (moved > eps)), None

    start = (state, jnp.ones(state.shape[:-1], bool))
    if steps is not None:
        return jax.lax.scan(update_moving, start, length=steps)[0][0]
    return iterate_until_converged(
        lambda carry, step: update_moving(carry, step)[0], start
    )[0]


def energy(
    stored: Float[Array, "*B K D"],
    state: Float[Array, "*B Q D"],
    *,
    beta: float | Float[Array, ""],
    stored_mask: Bool[Array, "*B K"] | None = None,
    member: Member = SOFTMAX,
) -> Float[Array, "*B Q"]:
    """-lse(beta, X^T xi) + xi.xi / 2 + ln(K) / beta + M^2 / 2; no update increases it.

    lse(beta, z) = ln(sum exp(beta z)) / beta. K is the number of unmasked patterns and M
    the largest of their norms. Non-negative; infinite if all patterns are masked. Another
    `member` has its own maximum of <p, beta z> - Omega(p) instead of beta lse(beta, z), and -Omega of
    the uniform weights instead of ln(K).

    Raises:
        ValueError: beta is not positive; shapes do not agree.

    Source: paper eq. 2, with the constants of its section 2.
    """
    check_arguments("energy", stored, state, beta, stored_mask)
    dtype = jnp.promote_types(jnp.result_type(stored, state), jnp.float32)
    stored, state = stored.astype(dtype), state.astype(dtype)
    if stored_mask is None:
        stored_mask = jnp.ones(stored.shape[:-1], bool)
    logits = beta * jnp.einsum("...QD,...KD->...QK", state, stored)
    logits = jnp.where(stored_mask[..., None, :], logits, -jnp.inf)
    if isinstance(member, Softmax):
        maximum = jax.nn.logsumexp(logits, axis=-1)
    else:
        # By the envelope theorem the derivative of the maximum is p.
        weights = member.weights(logits)
        expected = jnp.where(weights > 0, weights * logits, 0).sum(axis=-1)
        maximum = expected - member.regularizer(weights)
    lse = maximum / beta
    patterns = stored_mask.astype(dtype)
    uniform = patterns / jnp.maximum(patterns.sum(axis=-1, keepdims=True), 1)
    count = -member.regularizer(uniform) / beta
    norms = jnp.where(stored_mask, (stored * stored).sum(axis=-1), 0)
    constant = count + norms.max(axis=-1, initial=0) / 2
    kinetic = (state * state).sum(axis=-1) / 2
    # If all patterns are masked, lse and the constant are infinite, their difference NaN.
    total = kinetic - lse + constant[..., None]
    return jnp.where(stored_mask.any(axis=-1)[..., None], total, jnp.inf)


def check_arguments(
    function: str,
    stored: jax.Array,
    state: jax.Array,
    beta: float | jax.Array,
    stored_mask: jax.Array | None,
) -> None:
    """Raises ValueError if the arguments of `retrieve` or `energy` are invalid."""
    for name, array in (("stored", stored), ("state", state)):
        if array.ndim < 2:
            raise ValueError(
                f"{name} has the shape {array.shape}; {function} takes a batch of vectors "
                f"[..., number, width]. Pass {name}[None] for a single vector."
            )
        if isinstance(array, jax.core.Tracer):
            continue  # its values are not known
        if not getattr(array, "is_fully_addressable", True):
            continue  # its values are on other machines
        # By NumPy: inside jit, operations of JAX on an array from outside are traced.
        values = np.asarray(array)
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            place = tuple(wrong[0].tolist())
            raise ValueError(
                f"{name}{list(place)} is {values[place]}; every pattern and state must be "
                "finite, also a masked one. Replace it, such as by zeros and a mask."
            )
    if stored.shape[-1] != state.shape[-1] or stored.shape[:-2] != state.shape[:-2]:
        raise ValueError(
            f"stored {stored.shape} and state {state.shape} must agree in the last and in "
            "all leading dimensions: [..., K, D] and [..., Q, D]."
        )
    if stored_mask is not None and stored_mask.shape != stored.shape[:-1]:
        raise ValueError(
            f"stored_mask has the shape {stored_mask.shape}; it needs one entry per stored "
            f"pattern, {stored.shape[:-1]}."
        )
    if jnp.ndim(beta) != 0:
        raise ValueError(f"beta of shape {jnp.shape(beta)} must be a single number.")
    if not isinstance(beta, jax.core.Tracer) and not 0 < float(beta) < math.inf:
        raise ValueError(f"beta={float(beta)} must be positive and finite.")


def associate(
    query: Float[Array, "*B Q N C"],
    key: Float[Array, "*B K N C"],
    scale: float | Float[Array, "N 1"],
    mask: Bool[Array, "*#B #N #Q #K"] | None = None,
    bias: Float[Array, "*#B #N #Q #K"] | None = None,
    member: Member = SOFTMAX,
) -> Float[Array, "*B N Q K"]:
    """Attention weights over keys; zero for a fully masked query."""
    given: dict[str, Any] = {"scale": scale, "mask": mask, "bias": bias}
    if isinstance(member, Softmax):
        weights = attention_weights(query, key, **given)
    else:
        weights = member.weights(attention_logits(query, key, **given))
    if mask is None:
        return weights
    return jnp.where(mask.any(axis=-1, keepdims=True), weights, 0)
