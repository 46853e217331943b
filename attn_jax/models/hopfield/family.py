"""Which distribution over the stored patterns an association takes: one family of energies.

Every member maximizes <p, z> - Omega(p) over distributions p, where z = beta X^T xi. The maximizer
p(z) gives the weights of an update, and the maximum the energy, so a member is one class with
`weights` and `regularizer`:

    softmax      Omega(p) = sum p ln p                       modern Hopfield (Ramsauer 2021)
    entmax       Omega(p) = (sum p^alpha - 1) / (alpha (alpha - 1))   sparse; alpha=2: sparsemax
    normmax      Omega(p) = |p|_alpha - 1                    sparse, nearly uniform on its support
    subsets      Omega(p) = (k p.p - 1) / 2, p <= 1 / k      averages k patterns

Sparse members retrieve a pattern exactly, after one update, if it is well separated.

Source: Hu et al. 2023 (sparse Hopfield); Santos et al. 2024 (arXiv:2402.13725), which has all of them
as Hopfield-Fenchel-Young energies; Peters et al. 2019 (entmax); Blondel et al. 2020 (normmax).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Weights = Float[Array, "*B K"]


@runtime_checkable
class Member(Protocol):
    """A member of the family."""

    def weights(self, logits: Weights) -> Weights:
        """p(z) over the last axis; logits of -inf have no weight. Differentiable."""
        ...

    def regularizer(self, weights: Weights) -> Float[Array, "*B"]:
        """Omega(p)."""
        ...


@dataclasses.dataclass(frozen=True)
class Softmax:
    """The modern Hopfield network; its energy is the log-sum-exp."""

    def weights(self, logits: Weights) -> Weights:
        return jax.nn.softmax(logits, axis=-1)

    def regularizer(self, weights: Weights) -> Float[Array, "*B"]:
        return jax.scipy.special.xlogy(weights, weights).sum(axis=-1)


@dataclasses.dataclass(frozen=True)
class Entmax:
    """Tsallis entropies: from softmax (alpha near 1) over 1.5 to sparsemax (2).

    Raises:
        ValueError: alpha is not above 1; `Softmax` is alpha = 1.
    """

    alpha: float = 1.5

    def __post_init__(self) -> None:
        check_alpha("Entmax", self.alpha)

    def weights(self, logits: Weights) -> Weights:
        return _entmax(logits, self.alpha)

    def regularizer(self, weights: Weights) -> Float[Array, "*B"]:
        alpha = self.alpha
        return ((weights**alpha).sum(axis=-1) - 1) / (alpha * (alpha - 1))


@dataclasses.dataclass(frozen=True)
class Normmax:
    """The alpha-norm as a regularizer.

    Raises:
        ValueError: alpha is not above 1.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        check_alpha("Normmax", self.alpha)

    def weights(self, logits: Weights) -> Weights:
        return _normmax(logits, self.alpha)

    def regularizer(self, weights: Weights) -> Float[Array, "*B"]:
        return (weights**self.alpha).sum(axis=-1) ** (1 / self.alpha) - 1


@dataclasses.dataclass(frozen=True)
class Subsets:
    """Associates with k patterns at once: weights of at most 1 / k.

    With k patterns or fewer, all of them have the same weight.

    Raises:
        ValueError: k is less than 1.
    """

    k: int = 2

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(
                f"Subsets(k={self.k}) must associate with 1 pattern or more."
            )

    def weights(self, logits: Weights) -> Weights:
        chosen = _subset(logits, self.k)
        return chosen / jnp.maximum(chosen.sum(axis=-1, keepdims=True), 1)

    def regularizer(self, weights: Weights) -> Float[Array, "*B"]:
        return (self.k * jnp.square(weights).sum(axis=-1) - 1) / 2


def check_alpha(name: str, alpha: float) -> None:
    if not 1 < alpha < math.inf:
        raise ValueError(
            f"{name}(alpha={alpha}) must be above 1 and finite; alpha = 1 is Softmax()."
        )


# --- the maximizers -------------------------------------------------------------------


def find_threshold(
    excess: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array
) -> jax.Array:
    """The root of a decreasing function between `low` and `high`, by bisection.

    As many halvings as the dtype has bits: no closer number can be represented.
    """
    rounds = {2: 16, 4: 32, 8: 64}[low.dtype.itemsize]

    def halve(_: jax.Array, bounds: tuple) -> tuple:
        low, high = bounds
        middle = (low + high) / 2
        above = excess(middle) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low, high = jax.lax.fori_loop(0, rounds, halve, (low, high))
    return (low + high) / 2


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entmax(logits: jax.Array, alpha: float) -> jax.Array:
    """p_i = [(alpha - 1) z_i - tau]_+ ^ (1 / (alpha - 1)) with sum 1."""
    scaled = (alpha - 1) * logits
    largest = scaled.max(axis=-1, keepdims=True)
    scaled = jnp.where(jnp.isfinite(largest), scaled - largest, 0)

    def power(threshold: jax.Array) -> jax.Array:
        return jnp.maximum(scaled - threshold, 0) ** (1 / (alpha - 1))

    # With a threshold of -1 the largest alone has the weight 1.
    low = jnp.full_like(largest, -1)
    threshold = find_threshold(
        lambda t: power(t).sum(axis=-1, keepdims=True) - 1, low, jnp.zeros_like(low)
    )
    found = power(threshold)
    return found / found.sum(axis=-1, keepdims=True)


@_entmax.defjvp
def _entmax_jvp(alpha: float, primals: tuple, tangents: tuple) -> tuple:
    weights = _entmax(primals[0], alpha)
    slope = jnp.where(weights > 0, weights, 1) ** (2 - alpha)
    slope = jnp.where(weights > 0, slope, 0)
    return weights, differentiate(slope, tangents[0])


def differentiate(slope: jax.Array, tangent: jax.Array) -> jax.Array:
    """slope * (dz - mean of dz weighted by slope): a change that keeps the sum."""
    total = slope.sum(axis=-1, keepdims=True)
    mean = (slope * tangent).sum(axis=-1, keepdims=True) / jnp.where(
        total > 0, total, 1
    )
    return slope * (tangent - mean)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _normmax(logits: jax.Array, alpha: float) -> jax.Array:
    return _normmax_root(logits, alpha)[0]


def _normmax_root(logits: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """(p, s): p = s / sum s, s_i = [z_i - tau]_+ ^ (1 / (alpha - 1)), |s|_alpha = 1."""
    largest = logits.max(axis=-1, keepdims=True)
    scaled = jnp.where(jnp.isfinite(largest), logits - largest, 0)

    def power(threshold: jax.Array) -> jax.Array:
        return jnp.maximum(scaled - threshold, 0) ** (1 / (alpha - 1))

    low = jnp.full_like(largest, -1)
    threshold = find_threshold(
        lambda t: (power(t) ** alpha).sum(axis=-1, keepdims=True) - 1,
        low,
        jnp.zeros_like(low),
    )
    root = power(threshold)
    return root / root.sum(axis=-1, keepdims=True), root


@_normmax.defjvp
def _normmax_jvp(alpha: float, primals: tuple, tangents: tuple) -> tuple:
    weights, root = _normmax_root(primals[0], alpha)
    change = tangents[0] - (weights * tangents[0]).sum(axis=-1, keepdims=True)
    slope = jnp.where(root > 0, jnp.where(root > 0, root, 1) ** (2 - alpha), 0)
    root_dot = slope * change / (alpha - 1)
    total = root.sum(axis=-1, keepdims=True)
    return weights, (root_dot - weights * root_dot.sum(-1, keepdims=True)) / total


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _subset(logits: jax.Array, k: int) -> jax.Array:
    """p_i = min([z_i - tau]_+, 1) with sum k, or all 1 with fewer than k unmasked logits."""
    unmasked = logits > jnp.finfo(logits.dtype).min
    count = jnp.minimum(unmasked.sum(axis=-1, keepdims=True), k)
    ordered = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0]
    least = jnp.take_along_axis(ordered, jnp.maximum(count - 1, 0), axis=-1)
    least = jnp.where(count > 0, least, 0)

    def clip(threshold: jax.Array) -> jax.Array:
        return jnp.where(unmasked, jnp.clip(logits - threshold, 0, 1), 0)

    # One below the k-th largest, k weights are 1; at the k-th largest, fewer than k are.
    threshold = find_threshold(
        lambda t: clip(t).sum(axis=-1, keepdims=True) - count, least - 1, least
    )
    return clip(threshold)


@_subset.defjvp
def _subset_jvp(k: int, primals: tuple, tangents: tuple) -> tuple:
    weights = _subset(primals[0], k)
    moving = ((weights > 0) & (weights < 1)).astype(weights.dtype)
    return weights, differentiate(moving, tangents[0])
