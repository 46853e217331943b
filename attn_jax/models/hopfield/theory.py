"""The theorems of the paper as functions: separation, bounds, capacity.

X = `stored` [K, D], xi = `state` [D], M the largest norm of a pattern, p = softmax(beta X xi), and f(xi) =
X^T p. Theorems and lemmas are numbered as in Ramsauer et al. 2021 (arXiv:2008.02217v3). The claims
about patterns placed on a sphere (A3, A4 there) are left out: at most 2 D unit vectors have pairwise
angles of 90 degrees, and the proof needs exponentially many.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""]
Beta = float | Float[Array, ""]


def separation(stored: Float[Array, "K D"]) -> Float[Array, " K"]:
    """Delta_i = x_i.x_i - max over the others of x_i.x_j (definition 2)."""
    products = stored @ stored.T
    own = jnp.diagonal(products)
    others = jnp.fill_diagonal(products, -jnp.inf, inplace=False)
    return own - others.max(axis=-1)


def largest_norm(stored: Float[Array, "K D"]) -> Scalar:
    """M."""
    return jnp.linalg.norm(stored, axis=-1).max()


def largest_radius(stored: Float[Array, "K D"]) -> Scalar:
    """m_max: the largest distance of a pattern to their mean."""
    return jnp.linalg.norm(stored - stored.mean(axis=0, keepdims=True), axis=-1).max()


def energy_bounds(
    stored: Float[Array, "K D"], state: Float[Array, " D"], beta: Beta
) -> tuple[Scalar, Scalar]:
    """(lower, upper) bounds of the energy; the upper one holds after one update (A1).

    The lower one is |xi - x_k|^2 / 2, where x_k is the pattern with the largest x_k.xi.
    """
    size, norm = stored.shape[0], largest_norm(stored)
    nearest = stored[jnp.argmax(stored @ state)]
    upper = jnp.minimum(2 * norm**2, math.log(size) / beta + norm**2 / 2)
    return jnp.square(state - nearest).sum() / 2, upper


def update_jacobian(
    stored: Float[Array, "K D"], state: Float[Array, " D"], beta: Beta
) -> Float[Array, "D D"]:
    """beta X^T (diag p - p p^T) X, the derivative of an update; symmetric."""
    weights = jax.nn.softmax(beta * stored @ state)
    centered = stored - (weights @ stored)[None]
    return beta * centered.T @ (weights[:, None] * centered)


class JacobianBounds(NamedTuple):
    """Bounds of the spectral norm of `update_jacobian`.

    Attributes:
        spectral: 2 beta |X|_2^2 m, m = max p_i (1 - p_i) (A2).
        norm: 2 beta K M^2 m (A2).
        radius: beta m_max^2 (A3). Below 1 there is a single fixed point, which every state
            reaches.
    """

    spectral: Scalar
    norm: Scalar
    radius: Scalar


def bound_jacobian(
    stored: Float[Array, "K D"], state: Float[Array, " D"], beta: Beta
) -> JacobianBounds:
    """Bounds of the norm of an update's derivative at a state."""
    weights = jax.nn.softmax(beta * stored @ state)
    mixed = (weights * (1 - weights)).max()
    spectral = jnp.linalg.norm(stored, ord=2)
    return JacobianBounds(
        2 * beta * spectral**2 * mixed,
        2 * beta * stored.shape[0] * largest_norm(stored) ** 2 * mixed,
        beta * largest_radius(stored) ** 2,
    )


class WellSeparated(NamedTuple):
    """Whether each pattern has a fixed point of its own.

    Attributes:
        threshold: a pattern whose separation is at least this has a fixed point in its ball, where
            the update is a contraction (A5 to A7).
        radius: of the balls, 1 / (beta K M).
        all_threshold: with this separation of all, every pattern is stored (definition 1), if the
            balls are `disjoint`.
    """

    threshold: Scalar
    radius: Scalar
    all_threshold: Scalar
    disjoint: Array


def well_separated(stored: Float[Array, "K D"], beta: Beta) -> WellSeparated:
    """Thresholds for `separation`."""
    size, norm = stored.shape[0], largest_norm(stored)

    def threshold(count: float) -> Scalar:
        return 2 / (beta * size) + jnp.log(2 * count * size * beta * norm**2) / beta

    return WellSeparated(
        threshold(size - 1),
        1 / (beta * size * norm),
        threshold(size),
        2 * (size - 1) * size * beta * norm**2 > 1,
    )


def bound_contraction(
    stored: Float[Array, "K D"], index: int, distance: Beta, beta: Beta
) -> Scalar:
    """The factor by which an update brings a state closer to a fixed point (theorem 4).

    2 beta K M^2 (K - 1) exp(-beta (Delta_i - 2 d M)), where d = `distance` is the larger one of the
    distances of the state and of the fixed point to pattern `index`.
    """
    size, norm = stored.shape[0], largest_norm(stored)
    margin = separation(stored)[index] - 2 * distance * norm
    return 2 * beta * size * norm**2 * (size - 1) * jnp.exp(-beta * margin)


def bound_retrieval_error(
    stored: Float[Array, "K D"], index: int, distance: Beta, beta: Beta
) -> Scalar:
    """|f(xi) - x_i| <= 2 (K - 1) M exp(-beta (Delta_i - 2 d M)) (theorem 5); d as above."""
    norm = largest_norm(stored)
    margin = separation(stored)[index] - 2 * distance * norm
    return 2 * (stored.shape[0] - 1) * norm * jnp.exp(-beta * margin)


def bound_fixed_point_error(
    stored: Float[Array, "K D"], index: int, beta: Beta
) -> Scalar:
    """|x_i - x_i*| <= 2 e (K - 1) M exp(-beta Delta_i) (theorem 5).

    Holds if the state and the fixed point x_i* are within 1 / (2 beta M) of pattern `index`.
    """
    norm = largest_norm(stored)
    decay = jnp.exp(-beta * separation(stored)[index])
    return 2 * math.e * (stored.shape[0] - 1) * norm * decay


def bound_update_error(
    stored: Float[Array, "K D"], state: Float[Array, " D"], beta: Beta
) -> Scalar:
    """|x_k - f(xi)| <= 2 (K - 1) M exp(-beta c) for the pattern k nearest in x_k.xi (A4).

    c is the lead of x_k.xi over the next product. It needs no fixed point.
    """
    largest, second = jax.lax.top_k(stored @ state, 2)[0]
    decay = jnp.exp(-beta * (largest - second))
    return 2 * (stored.shape[0] - 1) * largest_norm(stored) * decay


class Capacity(NamedTuple):
    """How many random patterns are stored.

    Attributes:
        base: c of the theorem.
        least_base: the theorem holds if `base` is at least this.
        patterns: sqrt(p) c^((d - 1) / 4).
    """

    base: float
    least_base: float
    patterns: float


def random_capacity(
    dimension: int, failure: float, *, beta: float = 1.0, scale: float = 1.0
) -> Capacity:
    """Patterns on a sphere of radius scale * sqrt(d - 1) that are stored (theorem 3).

    Args:
        dimension: d, of a pattern; 2 or more.
        failure: p, the probability that the patterns are not stored.

    Raises:
        ValueError: an argument is out of range.
    """
    if dimension < 2 or not 0 < failure < 1 or beta <= 0 or scale <= 0:
        raise ValueError(
            f"random_capacity({dimension=}, {failure=}, {beta=}, {scale=}): the dimension must "
            "be 2 or more, the probability between 0 and 1, beta and scale positive."
        )
    degrees = dimension - 1
    inner = math.log(2 * beta * scale**2 * failure * degrees)
    a, b = 2 / degrees * (1 + inner), 2 * scale**2 * beta / 5
    base = b / solve_lambert(a + math.log(b))
    least = (2 / math.sqrt(failure)) ** (4 / degrees)
    return Capacity(base, least, math.sqrt(failure) * base ** (degrees / 4))


def solve_lambert(logarithm: float) -> float:
    """w > 0 with w exp(w) = exp(`logarithm`), by Newton's method on w + ln w."""
    w = max(logarithm, 1.0)
    for _ in range(50):
        w = max(w - (w + math.log(w) - logarithm) / (1 + 1 / w), w / 10)
    return w
