"""Overlaps of segments against scikit-learn and against values worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from attn_jax import metrics, segmentation
from attn_jax.data import scenes

pytestmark = pytest.mark.usefixtures("quick_compilation")

# A quotient of whole numbers, then a mean of a few of them: roundings of float32.
CLOSE = dict(rtol=0, atol=1e-6)


def draw_segments(seed, number=5):
    """(true, predicted) ids [3, 7, 11], half of whose pixels agree."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, number, (3, 7, 11))
    other = rng.integers(0, number, true.shape)
    predicted = np.where(rng.random(true.shape) < 0.5, true, other)
    return true.astype(np.int32), predicted.astype(np.int32)


def find_best(true, predicted):
    """[(best IoU, pixels)] of the true segments that one image has, by scikit-learn."""
    true, predicted = true.ravel(), predicted.ravel()
    return [
        (
            max(jaccard_score(true == t, predicted == p) for p in set(predicted)),
            (true == t).sum(),
        )
        for t in sorted(set(true) - {0})
    ]


@pytest.mark.parametrize("outside", [4, 5, -1, 2**30])
def test_overlaps_are_scikit_learn_s_and_ids_out_of_range_are_a_segment(outside):
    """Where such ids vanish instead, both metrics are off by over 0.01."""
    true, predicted = draw_segments(outside % 7)
    best = [find_best(t, p) for t, p in zip(true, predicted, strict=True)]
    given = [jnp.where(ids == 4, outside, ids) for ids in (true, predicted)]
    sizes = {"num_true": 4, "num_predicted": 4}
    expected = [np.mean([iou for iou, _ in image]) for image in best]
    found = segmentation.mean_best_overlap(*given, **sizes)
    np.testing.assert_allclose(found, expected, **CLOSE)
    expected = [np.average(iou, weights=n) for iou, n in map(np.transpose, best)]
    found = segmentation.segmentation_covering(*given, **sizes)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize(
    ("true", "predicted", "overlap", "covering"),
    [
        ([0, 0, 1, 1, 2], [3, 3, 0, 0, 1], 1.0, 1.0),
        ([0, 1, 1, 1, 2], [0, 0, 0, 0, 0], 2 / 5, 1 / 2),  # 3/5 and 1/5, 3 and 1 pixels
        ([0, 0, 0, 1, 1], [0, 0, 0, 0, 1], 1 / 2, 1 / 2),  # 1/5 and 1/2: the better
        ([0, 0, 0, 1, 1], [2, 2, 1, 1, 1], 2 / 3, 2 / 3),  # loses by the background
        ([0, 0, 0, 0, 0], [0, 1, 2, 3, 0], 1.0, 1.0),  # nothing to cover
    ],
)
def test_overlaps_of_small_segments(true, predicted, overlap, covering):
    given = jnp.array([true]), jnp.array([predicted])
    sizes = {"num_true": 3, "num_predicted": 4}
    found = segmentation.mean_best_overlap(*given, **sizes)
    np.testing.assert_allclose(found, [overlap], **CLOSE)
    found = segmentation.segmentation_covering(*given, **sizes)
    np.testing.assert_allclose(found, [covering], **CLOSE)


def test_without_a_background_every_true_segment_is_covered():
    true, predicted = jnp.array([[0, 0, 1, 1]]), jnp.array([[0, 0, 0, 1]])
    sizes = {"num_true": 2, "num_predicted": 2}
    found = segmentation.mean_best_overlap(true, predicted, background=None, **sizes)
    np.testing.assert_allclose(found, [(2 / 3 + 1 / 2) / 2], **CLOSE)


def test_renaming_the_predicted_segments_changes_no_metric():
    true, predicted = draw_segments(0)
    renamed = jnp.array([3, 0, 4, 2, 1])[predicted]
    for metric in (
        segmentation.mean_best_overlap,
        segmentation.segmentation_covering,
        metrics.adjusted_rand_index,
    ):
        one, other = (
            metric(jnp.asarray(true), jnp.asarray(ids), num_true=5, num_predicted=5)
            for ids in (predicted, renamed)
        )
        np.testing.assert_allclose(one, other, **CLOSE)


def draw_bands(images, seed, side=20, bands=4):
    """Rows or columns of an image as bands, named anew and moved a little in each."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(images):
        borders = np.arange(1, bands) * side / bands + rng.uniform(-1, 1, bands - 1)
        band = rng.permutation(bands)[np.searchsorted(borders, np.arange(side))]
        rows = np.broadcast_to(band, (side, side))
        drawn.append(rows if rng.random() < 0.5 else rows.T)
    return jnp.asarray(np.stack(drawn))


def test_bands_agree_from_image_to_image_and_objects_do_not():
    def mean(segments, number):
        return segmentation.measure_position_agreement(
            jnp.asarray(segments), number=number
        ).mean()

    assert mean(draw_bands(32, 0), 4) > segmentation.STRIPES + 0.1
    # 3 pieces of 35x35 pixels; the background in one slot, or in those of the pieces.
    source = scenes.Tetrominoes("train", 32)
    masks = np.stack([source[i]["mask"] for i in range(32)]).astype(np.int32)
    assert mean(masks, 4) < 0.3
    assert mean(nearest_piece(masks), 4) < segmentation.STRIPES - 0.1


def nearest_piece(masks):
    """Each pixel in the segment of the piece whose center is nearest."""
    rows, columns = np.indices(masks.shape[1:])
    found = []
    for mask in masks:
        centers = [np.argwhere(mask == i).mean(axis=0) for i in (1, 2, 3)]
        far = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in centers]
        found.append(np.argmin(far, axis=0))
    return np.stack(found).astype(np.int32)


def test_an_image_agrees_with_its_own_copies_and_not_with_itself():
    one = draw_segments(0)[0][:1]
    found = segmentation.measure_position_agreement(jnp.asarray(one), number=5)
    assert np.isnan(found).all()
    twice = jnp.concatenate([one, (one + 1) % 5])
    found = segmentation.measure_position_agreement(twice, number=5)
    np.testing.assert_array_equal(found, [1, 1])
