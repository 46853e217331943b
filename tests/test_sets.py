"""Sets of objects: the matching and average precision against the original and literal loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from slot_models import load

from attn_jax import sets

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLEVR = dict(attributes=(2, 2, 3, 8), unit=6.0)
MATCHED = jax.jit(
    jax.value_and_grad(lambda x, y: sets.sum_matched(sets.compare(x, y)).mean())
)


def draw(seed, *shape):
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize("shape", [(10, 10), (10, 13), (10, 7)])
def test_no_other_matching_costs_less_by_scipy(shape):
    costs = draw(0, 4, *shape)
    ours = jax.jit(sets.match)(costs)
    for cost, *pairs in zip(costs, *ours, strict=True):
        best = cost[linear_sum_assignment(cost)].sum()
        assert len(pairs[0]) == min(shape)
        assert (
            len(set(map(int, pairs[0]))) == len(set(map(int, pairs[1]))) == min(shape)
        )
        # Two sums of ten float32 numbers in another order.
        np.testing.assert_allclose(cost[tuple(pairs)].sum(), best, rtol=1e-6)


def test_a_scene_whose_costs_are_not_numbers_ends_the_search():
    costs = jnp.asarray(draw(0, 3, 10, 10)).at[1].set(jnp.nan).at[2, 3].set(jnp.inf)
    rows, columns = jax.jit(sets.match)(costs)
    assert np.array_equal(np.sort(columns, axis=1), np.tile(np.arange(10), (3, 1)))
    loss = sets.sum_matched(costs)
    assert np.isfinite(loss[0])
    assert np.isnan(loss[1])  # such an update is skipped, and said


@pytest.mark.parametrize("case", ["unit", "wide", "near", "more_pred", "fewer_pred"])
def test_costs_pairs_loss_and_gradient_are_those_of_the_original(shared, case):
    golden = load(shared / "golden" / "slot_attention" / "hungarian_huber.npz")
    golden = {k.split("/")[1]: v for k, v in golden.items() if k.startswith(f"{case}/")}
    x, y = jnp.asarray(golden["x"]), jnp.asarray(golden["y"])
    costs = sets.compare(x, y)
    # The golden set's own limits for losses: one or two roundings.
    np.testing.assert_allclose(costs, golden["pairwise_cost"], rtol=2e-6, atol=1e-6)
    loss, gradient = MATCHED(x, y)
    np.testing.assert_allclose(loss, golden["loss"], rtol=2e-6, atol=1e-6)
    targets, predictions = sets.match(costs)
    for row in range(len(x)):
        ours = dict(
            zip(map(int, targets[row]), map(int, predictions[row]), strict=True)
        )
        theirs = dict(
            zip(golden["match_target"][row], golden["match_pred"][row], strict=True)
        )
        # Rows without an object are alike, so only the set of their predictions is determined.
        real = {t for t in theirs if golden["y"][row, t, -1] == 1}
        assert {t: ours.get(t) for t in real} == {t: theirs[t] for t in real}
        assert set(ours.values()) == set(theirs.values())
    np.testing.assert_allclose(gradient, golden["grad_x"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["base", "empty_scenes_extra_slots", "hard"])
def test_precision_recall_and_their_area_are_those_of_the_original(shared, case):
    golden = load(shared / "golden" / "slot_attention" / "average_precision.npz")
    predicted, target = (jnp.asarray(golden[f"{case}/{n}"]) for n in ("pred", "target"))
    hits = np.asarray(sets.find_hits(predicted, target, **CLEVR))
    found = hits.cumsum(axis=1)
    # Quotients of whole numbers, rounded to float32.
    precision = found / np.arange(1, hits.shape[1] + 1)
    np.testing.assert_allclose(precision, golden[f"{case}/precision"], atol=1e-6)
    recall = found / golden[f"{case}/target"][..., -1].sum()
    np.testing.assert_allclose(recall, golden[f"{case}/recall"], atol=1e-6)
    ours = sets.average_precision(predicted, target, **CLEVR)
    np.testing.assert_allclose(ours, golden[f"{case}/ap"], atol=1e-6)


def score_by_a_loop(predicted, target, threshold):
    """The definition, word by word: attributes of 2 and 3 values after two coordinates."""
    ranked = sorted(
        (
            (-row[-1], scene, k)
            for scene, rows in enumerate(predicted)
            for k, row in enumerate(rows)
        ),
    )
    claimed, hits = set(), []
    for _, scene, k in ranked:
        row, best = predicted[scene][k], (np.inf, None)
        for j, other in enumerate(target[scene]):
            same = all(
                row[c].argmax() == other[c].argmax() for c in (slice(2, 4), slice(4, 7))
            )
            if other[-1] == 1 and same:
                far = 6 * np.sqrt(((row[:2] - other[:2]) ** 2).sum())
                best = min(best, (far, (scene, j)), key=lambda pair: pair[0])
        hit = best[0] < threshold and best[1] not in claimed
        claimed |= {best[1]} if hit else set()
        hits.append(hit)
    area = reached = 0.0
    objects = sum(row[-1] == 1 for rows in target for row in rows)
    points = [
        (sum(hits[: i + 1]) / (i + 1), sum(hits[: i + 1]) / objects)
        for i in range(len(hits))
    ]
    for i, (_, recall) in enumerate(points):
        area += max(precision for precision, _ in points[i:]) * (recall - reached)
        reached = recall
    return area


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_a_literal_loop(seed):
    target, predicted = draw(seed, 7, 3, 8), draw(seed + 100, 7, 5, 8)
    target[..., -1] = np.arange(3) < np.arange(7)[:, None] % 4  # from none to all real
    predicted[:, :3] = 0.3 * predicted[:, :3] + 0.7 * target
    predicted[..., -1] = np.round(
        predicted[..., -1], 1
    )  # several are equally confident
    ours = sets.average_precision(
        jnp.asarray(predicted), jnp.asarray(target), attributes=(2, 3), unit=6.0
    )
    expected = [score_by_a_loop(predicted, target, t) for t in sets.THRESHOLDS]
    assert expected[0] > 0.1  # something is found
    np.testing.assert_allclose(ours, expected, atol=1e-6)  # float32 sums of 35 terms


def test_a_split_without_objects_has_no_average_precision():
    empty = jnp.zeros((2, 3, 8))
    assert np.isnan(
        sets.average_precision(empty, empty, attributes=(2, 3), unit=6.0)
    ).all()
