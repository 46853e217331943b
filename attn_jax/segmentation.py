"""How well predicted segments cover the true ones, and whether they only cover positions.

Axes: B images, T true and P predicted segments, H W pixels. Ids out of range form one
additional segment, as in `metrics.adjusted_rand_index`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from attn_jax import metrics


def measure_best_overlaps(
    true: Integer[Array, "B ..."],
    predicted: Integer[Array, "B ..."],
    *,
    num_true: int,
    num_predicted: int,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(largest IoU with a predicted segment, pixels) of each true segment.

    The IoU is intersection over union in pixels; it is 0 for a true segment without
    pixels. Several true segments may have the same predicted one as their best.
    """
    both = metrics.count_overlaps(
        true, predicted, num_true=num_true, num_predicted=num_predicted
    )
    size = both.sum(axis=2)
    union = size[:, :, None] + both.sum(axis=1)[:, None] - both
    return (both / jnp.maximum(union, 1)).max(axis=2), size


def mean_best_overlap(
    true: Integer[Array, "B ..."],
    predicted: Integer[Array, "B ..."],
    *,
    num_true: int,
    num_predicted: int,
    background: int | None = 0,
) -> Float[Array, " B"]:
    """mBO: the mean over the true segments of the largest IoU with a predicted segment.

    With ids of objects this is the mBO of instances, with ids of classes that of classes.
    An image without true segments has nothing to cover, and 1 is returned.

    Args:
        background: id of a true segment that is no object. It is left out of the mean, but
            predicted segments still lose by covering it.

    Source: Pont-Tuset et al. 2017 (average best overlap); Seitzer et al. 2023 (DINOSAUR).
    """
    best, size = measure_best_overlaps(
        true, predicted, num_true=num_true, num_predicted=num_predicted
    )
    return _average(best, _leave_out(size, background) > 0)


def segmentation_covering(
    true: Integer[Array, "B ..."],
    predicted: Integer[Array, "B ..."],
    *,
    num_true: int,
    num_predicted: int,
    background: int | None = 0,
) -> Float[Array, " B"]:
    """The mean of `mean_best_overlap`, weighted by the sizes of the true segments.

    Source: Arbelaez et al. 2011; for scenes, Engelcke et al. 2020 (GENESIS), where the
    background is left out, too.
    """
    best, size = measure_best_overlaps(
        true, predicted, num_true=num_true, num_predicted=num_predicted
    )
    return _average(best, _leave_out(size, background))


def _leave_out(
    size: Float[Array, "B T"], background: int | None
) -> Float[Array, "B T"]:
    return size if background is None else size.at[:, background].set(0)


def _average(best: Float[Array, "B T"], weights: Array) -> Float[Array, " B"]:
    total = weights.sum(axis=1)
    mean = (best * weights).sum(axis=1) / jnp.maximum(total, 1)
    return jnp.where(total == 0, 1.0, mean)
