"""The classical Hopfield network: binary states, Hebbian weights.

States and patterns are +1 or -1. The energy is -s.W s / 2 + s.b; a visit of bit j sets it to
sgn(W_j s - b_j), and keeps it where that is 0. Visits one after another (asynchronous) never
increase the energy if W is symmetric with a non-negative diagonal; all bits at once (synchronous)
end in a fixed point or in a cycle of two states. About 0.14 D patterns can be recalled with few
errors.

Source: Hopfield 1982; Amit et al. 1985 (capacity). Axes: P patterns, D bits.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num


def hebbian_weights(
    patterns: Num[Array, "P D"],
    *,
    normalize: Literal["patterns", "bits"] | None = "bits",
    zero_diagonal: bool = True,
) -> Float[Array, "D D"]:
    """The sum of the outer products of the patterns.

    Args:
        normalize: divide by the number of patterns or of bits. Without biases no update depends
            on it.
        zero_diagonal: no bit has a weight with itself.
    """
    patterns = as_float(patterns)
    weights = patterns.T @ patterns
    if normalize is not None:
        weights /= patterns.shape[0 if normalize == "patterns" else 1]
    return jnp.fill_diagonal(weights, 0, inplace=False) if zero_diagonal else weights


def binary_energy(
    weights: Float[Array, "D D"],
    state: Num[Array, "*B D"],
    bias: Float[Array, " D"] | None = None,
) -> Float[Array, "*B"]:
    """-s.W s / 2 + s.b."""
    state = state.astype(weights.dtype)
    energy = -jnp.einsum("...i,ij,...j->...", state, weights, state) / 2
    return energy if bias is None else energy + state @ bias


def update_synchronously(
    weights: Float[Array, "D D"],
    state: Num[Array, "*B D"],
    bias: Float[Array, " D"] | None = None,
) -> Num[Array, "*B D"]:
    """Updates all bits at once."""
    field = jnp.einsum("...j,ij->...i", state.astype(weights.dtype), weights)
    if bias is not None:
        field = field - jnp.broadcast_to(bias, field.shape)
    return follow(state, field)


def update_asynchronously(
    weights: Float[Array, "D D"],
    state: Num[Array, "*B D"],
    order: Int[Array, " V"],
    bias: Float[Array, " D"] | None = None,
) -> Num[Array, "*B D"]:
    """Visits the bits in `order`, one after another; a permutation of them is a sweep."""

    def visit(state: jax.Array, bit: jax.Array) -> tuple[jax.Array, None]:
        field = state.astype(weights.dtype) @ weights[bit]
        if bias is not None:
            field -= bias[bit]
        return state.at[..., bit].set(follow(state[..., bit], field)), None

    return jax.lax.scan(visit, state, order)[0]


def follow(state: jax.Array, field: jax.Array) -> jax.Array:
    """The sign of the field; the state where it is 0."""
    return jnp.where(field == 0, state, jnp.sign(field).astype(state.dtype))


def as_float(x: jax.Array) -> jax.Array:
    """As floating-point numbers; integers take the default dtype."""
    return x.astype(jnp.result_type(x, 1.0))
