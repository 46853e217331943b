"""How well segments cover the true ones, and whether slots divide every image alike.

Axes: B images, T true and P predicted segments, H W pixels. Ids out of range form one
additional segment, as in `metrics.adjusted_rand_index`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from attn_jax import metrics

# Above it slots are stripes. Objects that lie anywhere agree by 0.2 from image to image, by
# 0.5 if their slots share out the background by nearness; bands of the image whose borders
# move by a twentieth of its side agree by 0.8.
STRIPES = 0.65


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


@functools.partial(jax.jit, static_argnames=("number", "others"))
def measure_position_agreement(
    segments: Integer[Array, "N H W"], *, number: int, others: int = 4
) -> Float[Array, " N"]:
    """How far the segments of an image are those of other images: 1 if the same.

    The adjusted Rand index between an image's segments and those of each of the `others`
    next images (the first ones follow the last); the largest of them, because slots may
    divide images in a few ways, such as into rows or into columns. Segments that follow the
    content agree less, see `STRIPES`. Slots that divide every image by position, whatever it
    shows, agree: the "stripes" of one of five seeds in Locatello et al. 2020.

    Args:
        number: segments of an image; see `metrics.adjusted_rand_index`.
        others: N - 1 if there are fewer. A single image has nothing to agree with: NaN.
    """
    compare = functools.partial(
        metrics.adjusted_rand_index, segments, num_true=number, num_predicted=number
    )
    best = jnp.full(len(segments), jnp.nan)
    for distance in range(1, min(others, len(segments) - 1) + 1):
        best = jnp.fmax(best, compare(jnp.roll(segments, -distance, axis=0)))
    return best


def _leave_out(
    size: Float[Array, "B T"], background: int | None
) -> Float[Array, "B T"]:
    return size if background is None else size.at[:, background].set(0)


def _average(best: Float[Array, "B T"], weights: Array) -> Float[Array, " B"]:
    total = weights.sum(axis=1)
    mean = (best * weights).sum(axis=1) / jnp.maximum(total, 1)
    return jnp.where(total == 0, 1.0, mean)
