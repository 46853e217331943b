"""Dense associative memories: binary states, energies with sharper interactions.

E(s) = -sum_i F(x_i.s). A visit of bit l takes the sign of

    sum_i F(x_il + r_i) - F(-x_il + r_i),    r_i = sum over the other bits of x_ik s_k.

F(z) = z^2 is the classical network; z^n stores about D^(n-1) patterns, exp(z) exponentially many.
All sums are taken of logarithms, as exp(D) overflows float32 from D = 89.

Source: Krotov and Hopfield 2016; Demircigil et al. 2017. The blog of the paper updates all bits at
once; here they are visited one after another, as in its equation. Axes: P patterns, D bits.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from attn_jax.models.hopfield.binary import as_float, follow

# F by its sign and its logarithm: z -> (sign of F(z), ln |F(z)|).
Interaction = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """z^degree; `rectified`: 0 for negative z."""

    degree: int
    rectified: bool = False

    def __post_init__(self) -> None:
        if self.degree < 2:
            raise ValueError(
                f"Polynomial(degree={self.degree}) must be 2 or more: with 1, every energy "
                "is linear and stores nothing."
            )

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        sign = jnp.sign(z)
        if self.rectified:
            sign = jnp.maximum(sign, 0)
        elif self.degree % 2 == 0:
            sign = jnp.abs(sign)
        size = jnp.where(sign == 0, 1, jnp.abs(z))
        return sign, jnp.where(sign == 0, -jnp.inf, self.degree * jnp.log(size))


@dataclasses.dataclass(frozen=True)
class Exponential:
    """exp(z)."""

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.ones_like(z), z


def dense_energy(
    patterns: Num[Array, "P D"], state: Num[Array, "*B D"], interaction: Interaction
) -> Float[Array, "*B"]:
    """-sum_i F(x_i.s); of `Exponential` -ln of the sum, which has the same minima."""
    overlaps = as_float(state) @ as_float(patterns).T
    sign, logarithm = interaction(overlaps)
    total, total_sign = jax.nn.logsumexp(logarithm, axis=-1, b=sign, return_sign=True)
    if isinstance(interaction, Exponential):
        return -total
    return -total_sign * jnp.exp(total)


def update_dense(
    patterns: Num[Array, "P D"],
    state: Num[Array, "*B D"],
    order: Int[Array, " V"],
    interaction: Interaction,
) -> Num[Array, "*B D"]:
    """Visits the bits in `order`, one after another; a permutation of them is a sweep."""
    columns = as_float(patterns).T
    overlaps = as_float(state) @ columns

    def visit(carry: tuple, bit: jax.Array) -> tuple:
        state, overlaps = carry
        own = state[..., bit]
        column = jnp.broadcast_to(columns[bit], overlaps.shape)
        rest = overlaps - own[..., None] * column
        signs, logarithms = interaction(jnp.stack([rest + column, rest - column]))
        # A sum over patterns and over both values of the bit, one of them negative.
        signs = signs * jnp.array([1, -1], signs.dtype).reshape(2, *(1,) * rest.ndim)
        _, field = jax.nn.logsumexp(logarithms, axis=(0, -1), b=signs, return_sign=True)
        new = follow(own, field)
        overlaps = rest + new[..., None] * column
        return (state.at[..., bit].set(new), overlaps), None

    return jax.lax.scan(visit, (state, overlaps), order)[0][0]
