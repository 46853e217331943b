"""Sets of objects: predictions matched to them, and average precision, in pure JAX.

Axes: B scenes, M targets, K predictions, m = min(M, K) pairs, n = B * K predictions of all
scenes, P properties: coordinates, then one one-hot vector for each attribute, and last 1 for
an object and 0 for a row without one.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

# In the unit of the scene; a prediction farther away than this is no hit.
THRESHOLDS = (math.inf, 1.0, 0.5, 0.25, 0.125)


def compare(
    predictions: Float[Array, "B K P"], targets: Float[Array, "B M P"]
) -> Float[Array, "B M K"]:
    """The cost of every pair: the mean over its properties of the Huber loss, delta 1."""
    pairs = optax.losses.huber_loss(predictions[:, None], targets[:, :, None])
    return pairs.mean(axis=-1)


def match(
    costs: Float[Array, "B M K"],
) -> tuple[Int[Array, "B m"], Int[Array, "B m"]]:
    """(targets, predictions) of the m pairs whose costs have the least sum.

    No target and no prediction is in two pairs. Without a derivative. Costs that are not
    finite count as very large.
    """
    # With a NaN, the search for the shortest path would never end.
    costs = jax.lax.stop_gradient(costs)
    costs = jnp.nan_to_num(costs, nan=1e9, posinf=1e9, neginf=-1e9)
    rows, columns = jax.vmap(optax.assignment.hungarian_algorithm)(costs)
    return rows, columns


def sum_matched(costs: Float[Array, "B M K"]) -> Float[Array, " B"]:
    """The sum of the costs of the matched pairs of each scene."""
    targets, predictions = match(costs)
    of_targets = jnp.take_along_axis(costs, targets[:, :, None], axis=1)
    pairs = jnp.take_along_axis(of_targets, predictions[:, :, None], axis=2)
    return pairs.sum(axis=(1, 2))


@functools.partial(jax.jit, static_argnames=("attributes", "unit", "thresholds"))
def find_hits(
    predictions: Float[Array, "B K P"],
    targets: Float[Array, "B M P"],
    *,
    attributes: Sequence[int],
    unit: float,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Bool[Array, "thresholds n"]:
    """Whether each prediction hits an object, the most confident of all scenes first.

    A prediction refers to the nearest object of its scene of which every attribute is the
    predicted one. It is a hit if that object is nearer than the threshold and no more
    confident prediction has hit it. Then it does not fall back on another object. Equally
    confident predictions are ranked by scene and row.

    Args:
        attributes: widths of the one-hot vectors.
        unit: length of the scene along a coordinate, which is from 0 to 1 in the arrays.
    """
    scenes, M = targets.shape[:2]
    coordinates = targets.shape[-1] - 1 - sum(attributes)
    alike = (targets[..., -1] > 0.5)[:, None, :]  # [B, 1, M], then [B, K, M]
    start = coordinates
    for width in attributes:
        columns = slice(start, start + width)
        predicted = predictions[..., columns].argmax(axis=-1)
        alike &= predicted[:, :, None] == targets[..., columns].argmax(axis=-1)[:, None]
        start += width
    where = slice(coordinates)
    apart = predictions[:, :, None, where] - targets[:, None, :, where]
    distances = unit * jnp.sqrt(jnp.square(apart).sum(axis=-1))
    distances = jnp.where(alike, distances, jnp.inf)

    order = jnp.argsort(-predictions[..., -1].reshape(-1), stable=True)
    distance = distances.min(axis=-1).reshape(-1)[order]
    nearest = distances.argmin(axis=-1) + M * jnp.arange(scenes)[:, None]
    nearest = nearest.reshape(-1)[order]
    ranks = jnp.arange(len(order))

    def of_threshold(threshold: float) -> jax.Array:
        rank = jnp.where(distance < threshold, ranks, len(order))
        first = jax.ops.segment_min(rank, nearest, num_segments=scenes * M)
        return (distance < threshold) & (ranks == first[nearest])

    return jnp.stack([of_threshold(threshold) for threshold in thresholds])


def average_precision(
    predictions: Float[Array, "B K P"],
    targets: Float[Array, "B M P"],
    *,
    attributes: Sequence[int],
    unit: float,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Float[Array, " thresholds"]:
    """The area under precision over recall at each threshold, over all scenes together.

    Precision at a recall is the largest at that recall or a higher one. NaN if no scene has
    an object. Arguments as in `find_hits`.

    Source: google-research, slot_attention/utils.py, `average_precision_clevr`; Zhang et
    al. 2019 (Deep Set Prediction Networks).
    """
    hits = find_hits(
        predictions,
        targets,
        attributes=tuple(attributes),
        unit=unit,
        thresholds=tuple(thresholds),
    )
    objects = (targets[..., -1] > 0.5).sum()
    ranks = jnp.arange(1, hits.shape[-1] + 1).reshape(1, -1)
    precision = hits.cumsum(axis=-1) / ranks
    envelope = jax.lax.cummax(precision, axis=1, reverse=True)
    return jnp.where(hits, envelope, 0).sum(axis=-1) / objects
