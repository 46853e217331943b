"""Overlaps of segments against scikit-learn and against values worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from attn_jax import metrics, segmentation

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
