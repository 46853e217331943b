"""Ridge regression and nearest neighbours, against big_vision's numbers.

The golden numbers are in tests/golden/vit/fewshot.
"""

import math
import pathlib

import numpy as np
import pytest

from attn_jax import probes

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = dict(np.load(ROOT / "tests/golden/vit/fewshot/ridge.npz"))
CASES = ("n_ge_d", "n_lt_d")  # more examples than dimensions, and fewer
L2 = {"l2e-10": 2.0**-10, "l2e0": 1.0, "l2e10": 2.0**10}


def clusters(per_class, seed=0, spread=0.1):
    """(features, labels) of three directions in five dimensions, at random lengths."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    features = np.eye(5)[labels] + spread * rng.normal(size=(len(labels), 5))
    return features * rng.uniform(0.1, 10, (len(labels), 1)), labels


def golden(case, name):
    return GOLDEN[f"{case}_{name}"]


# --- ridge regression -----------------------------------------------------------------


def fitted(case, l2):
    labels = golden(case, "y_train")
    return probes.fit_ridge(golden(case, "x_train"), labels, l2, int(labels.max()) + 1)


@pytest.mark.parametrize("case", CASES)
def test_weights_and_scores_are_the_originals(case):
    x = golden(case, "x_test")
    for name, linear in zip(L2, fitted(case, list(L2.values())), strict=True):
        ours = {"weights": linear.weights, "scores": linear.scores(x)}
        for array, value in ours.items():
            # X^T X has eigenvalues up to 100^2 N = 4e5, which are added to l2 >= 1e-3: its
            # rounding, 4e5 * 2e-16 = 1e-10, is 1e-7 of the smallest. In weights of at
            # most 1 that was seen as 3e-12; a std without its 1e-5 moves them by 1e-5.
            np.testing.assert_allclose(
                value, golden(case, f"{array}_{name}"), rtol=0, atol=1e-9
            )
        np.testing.assert_array_equal(linear.predict(x), golden(case, f"pred_{name}"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", L2)
def test_the_accuracy_is_the_one_that_the_original_reports(case, name):
    [linear] = fitted(case, [L2[name]])
    correct = linear.predict(golden(case, "x_test")) == golden(case, "y_test")
    # As a count: the original's share of 60 is rounded to float32 on the way.
    assert correct.sum() == round(60 * float(golden(case, f"bv_acc_{name}")), 3)


@pytest.mark.parametrize("case", CASES)
def test_the_solution_solves_the_normal_equations(case):
    x, labels = golden(case, "x_train").astype(np.float64), golden(case, "y_train")
    x = (x - x.mean(0)) / (x.std(0) + 1e-5)
    x = np.concatenate([x, np.full((len(x), 1), 100.0)], axis=1)
    y = np.where(labels[:, None] == np.arange(labels.max() + 1), 1.0, -1.0)
    for l2, linear in zip((0.5, 1024.0), fitted(case, (0.5, 1024.0)), strict=True):
        left = x.T @ (x @ linear.weights) + l2 * linear.weights
        # Of sums up to 100 * 40 = 4e3, whose rounding is 1e-12; the penalty is 0.5 * 0.1.
        np.testing.assert_allclose(left, x.T @ y, rtol=0, atol=1e-8)


def test_a_feature_that_never_changes_is_no_division_by_zero():
    features = np.ones((4, 2))
    features[:, 0] = [0, 0, 1, 1]
    [linear] = probes.fit_ridge(features, np.array([0, 0, 1, 1]), [1.0], 2)
    np.testing.assert_array_equal(linear.predict(features), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("labels", "l2", "message"),
    [
        ([0, 2], [1.0], r"labels \[0, 2\]; .* num_classes - 1 = 1"),
        ([0, -1], [1.0], r"labels \[-1, 0\]"),
        ([0, 1], [0.0], r"l2=\[0.0\] must be one or more numbers above 0"),
        ([0, 1], [], r"l2=\[\] must be"),
    ],
)
def test_ridge_refuses_what_it_cannot_solve(labels, l2, message):
    with pytest.raises(ValueError, match=message):
        probes.fit_ridge(np.eye(2), np.array(labels), l2, 2)


# --- nearest neighbours ---------------------------------------------------------------


def test_directions_are_told_apart_whatever_the_lengths():
    features, labels = clusters(30)
    queries, true = clusters(40, seed=1)
    found = probes.predict_knn(features, labels, queries, k=20)
    np.testing.assert_array_equal(found, true)


def test_neighbours_vote_by_their_similarity():
    # Two examples of class 1 at 60 degrees, one of class 0 at 0: weights 2 e^(0.5/t), e^(1/t).
    features = np.array([[1, 0], [0.5, math.sqrt(0.75)], [0.5, -math.sqrt(0.75)]])
    labels, query = np.array([0, 1, 1]), np.array([[2.0, 0.0]])
    near = dict(k=3, temperature=0.07)  # e^(0.5/0.07) = 1264 outweighs the two
    assert probes.predict_knn(features, labels, query, **near) == [0]
    far = dict(k=3, temperature=1.0)  # e^0.5 = 1.65 does not
    assert probes.predict_knn(features, labels, query, **far) == [1]
    assert probes.predict_knn(features, labels, query, k=1, temperature=1.0) == [0]


def test_neighbours_equal_a_sort_of_all_of_them_in_chunks_of_any_size(monkeypatch):
    features, labels = clusters(30, spread=1.0)
    queries, _ = clusters(20, seed=1, spread=1.0)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, queries)]
    similarity = unit[1] @ unit[0].T
    expected = []
    for row in similarity:
        votes = np.zeros(3)
        for i in np.argsort(-row)[:20]:
            votes[labels[i]] += math.exp(row[i] / 0.07)
        expected.append(votes.argmax())
    assert len({*expected}) == 3 and expected != [*np.repeat(np.arange(3), 20)]
    for chunk in (1, 7 * 90, 2**23):
        monkeypatch.setattr(probes, "CHUNK", chunk)
        found = probes.predict_knn(features, labels, queries, k=20)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("k", [0, 91])
def test_more_neighbours_than_examples_are_refused(k):
    features, labels = clusters(30)
    with pytest.raises(ValueError, match=rf"k={k} neighbors of 90 examples"):
        probes.predict_knn(features, labels, features, k=k)
