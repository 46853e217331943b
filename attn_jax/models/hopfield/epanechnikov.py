"""Log-sum-ReLU: patterns with a radius, retrieved exactly, and new minima where balls overlap.

E(xi) = -ln(sum_i relu(1 - beta |xi - x_i|^2 / 2)) / beta, the logarithm of a density estimate with the
kernel of Epanechnikov. A pattern acts within a radius of sqrt(2 / beta). The gradient is zero where
xi is the mean of the patterns within that radius of it, which is the update (a mean shift). It is no
member of the family in `family`: it looks at distances, and its weights are uniform.

Source: Hoover et al. 2025 (arXiv:2506.10801). Axes: B batch, Q states, K stored patterns, D width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attn_jax.models.hopfield.equations import check_arguments


def epanechnikov_energy(
    stored: Float[Array, "*B K D"],
    state: Float[Array, "*B Q D"],
    *,
    beta: float | Float[Array, ""],
    stored_mask: Bool[Array, "*B K"] | None = None,
) -> Float[Array, "*B Q"]:
    """-ln(sum_i relu(1 - beta |xi - x_i|^2 / 2)) / beta; infinite outside of all balls.

    Raises:
        ValueError: beta is not positive; shapes do not agree.
    """
    check_arguments("epanechnikov_energy", stored, state, beta, stored_mask)
    heights = measure_heights(stored, state, beta, stored_mask)
    return -jnp.log(jnp.maximum(heights, 0).sum(axis=-1)) / beta


def update_epanechnikov(
    stored: Float[Array, "*B K D"],
    state: Float[Array, "*B Q D"],
    *,
    beta: float | Float[Array, ""],
    stored_mask: Bool[Array, "*B K"] | None = None,
) -> Float[Array, "*B Q D"]:
    """The mean of the patterns within sqrt(2 / beta) of the state; the state if there are none.

    No update increases the energy: the sum over the patterns of the old ball, which bounds the new sum
    from below, is largest at their mean. States come to rest after finitely many updates.

    Raises:
        ValueError: beta is not positive; shapes do not agree.
    """
    check_arguments("update_epanechnikov", stored, state, beta, stored_mask)
    inside = measure_heights(stored, state, beta, stored_mask) > 0
    count = inside.sum(axis=-1, keepdims=True)
    total = jnp.einsum("...QK,...KD->...QD", inside.astype(stored.dtype), stored)
    mean = (total / jnp.maximum(count, 1)).astype(state.dtype)
    return jnp.where(count > 0, mean, state)


def measure_heights(
    stored: jax.Array,
    state: jax.Array,
    beta: float | jax.Array,
    stored_mask: jax.Array | None,
) -> jax.Array:
    """1 - beta |xi - x_i|^2 / 2, at least in float32; 0 for masked patterns."""
    dtype = jnp.promote_types(jnp.result_type(stored, state), jnp.float32)
    # Of differences: expanded into products, small distances would cancel.
    steps = state.astype(dtype)[..., :, None, :] - stored.astype(dtype)[..., None, :, :]
    heights = 1 - beta * jnp.square(steps).sum(axis=-1) / 2
    return heights if stored_mask is None else heights * stored_mask[..., None, :]
