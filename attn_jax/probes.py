"""Simple classifiers that measure the quality of features, in NumPy and float64.

Axes: N examples, D features, Q queries, C classes. Labels are integers from 0.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

BIAS = 100.0  # the constant feature: so large that its weight is hardly regularized
CHUNK = 2**23  # similarities held at a time, 64 MiB


@dataclasses.dataclass(frozen=True)
class LinearClassifier:
    """A linear classifier of whitened features.

    Attributes:
        mean, std: of each feature over the training examples; `std` is never 0.
        weights: the last row belongs to the constant feature `BIAS`.
    """

    mean: Float[np.ndarray, " D"]
    std: Float[np.ndarray, " D"]
    weights: Float[np.ndarray, "D+1 C"]

    def scores(self, features: Float[np.ndarray, "Q D"]) -> Float[np.ndarray, "Q C"]:
        return append_bias((features - self.mean) / self.std) @ self.weights

    def predict(self, features: Float[np.ndarray, "Q D"]) -> Integer[np.ndarray, " Q"]:
        """The label with the highest score; the lowest such label if scores are equal."""
        return self.scores(features).argmax(axis=1)


def fit_ridge(
    features: Float[np.ndarray, "N D"],
    labels: Integer[np.ndarray, " N"],
    l2: Sequence[float],
    num_classes: int,
) -> list[LinearClassifier]:
    """For each l2 the W that minimizes |X W - Y|^2 + l2 |W|^2, in closed form.

    X are the features, (x - mean) / (std + 1e-5), and the constant 100; Y is 1 at the label
    and -1 elsewhere. A single eigendecomposition, of the smaller of X^T X and X X^T, serves
    every l2.

    Raises:
        ValueError: there are no examples, a label is out of range, or an l2 is not above 0.

    Source: big_vision, evaluators/fewshot_lsr.py (there in float32).
    """
    if not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{len(labels)} examples with the labels {np.unique(labels).tolist()}; there "
            f"must be at least one, with labels from 0 to num_classes - 1 = "
            f"{num_classes - 1}. Correct the labels or num_classes."
        )
    if not l2 or min(l2) <= 0:
        raise ValueError(
            f"l2={list(l2)} must be one or more numbers above 0: with 0 the solution is "
            "not unique if examples are few. Use a small number instead."
        )
    features = features.astype(np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-5
    x = append_bias((features - mean) / std)
    y = 2 * np.eye(num_classes)[labels] - 1
    if x.shape[0] >= x.shape[1]:
        eigenvalues, left = np.linalg.eigh(x.T @ x)
        right = left.T @ (x.T @ y)
    else:
        eigenvalues, q = np.linalg.eigh(x @ x.T)
        left, right = x.T @ q, q.T @ y
    return [
        LinearClassifier(mean, std, (left / (eigenvalues + each)) @ right)
        for each in l2
    ]


def append_bias(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D+1"]:
    return np.pad(features, ((0, 0), (0, 1)), constant_values=BIAS)


def predict_knn(
    features: Float[np.ndarray, "N D"],
    labels: Integer[np.ndarray, " N"],
    queries: Float[np.ndarray, "Q D"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Integer[np.ndarray, " Q"]:
    """The label of each query by a vote of its k nearest neighbors in cosine similarity.

    A vote has the weight exp(similarity / temperature); in a tie the lowest label wins.

    Raises:
        ValueError: k is not between 1 and N.

    Source: Wu et al. 2018 (Instance Discrimination) section 3.4, with the k = 20 of Caron
    et al. 2021 (DINO, eval_knn.py), section 3.2.
    """
    if not 1 <= k <= len(labels):
        raise ValueError(
            f"{k=} neighbors of {len(labels)} examples; k must be from 1 to their "
            "number. Lower it, or give more examples."
        )
    examples, queries = normalize_rows(features), normalize_rows(queries)
    classes = int(labels.max()) + 1
    predicted = []
    rows = max(1, CHUNK // max(len(labels), classes))
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ examples.T
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
        votes = np.zeros((len(similarity), classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], labels[nearest]), weights)
        predicted.append(votes.argmax(axis=1))
    return np.concatenate(predicted) if predicted else np.zeros(0, np.int64)


def normalize_rows(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Each row divided by its length; a row of zeros stays zero."""
    features = features.astype(np.float64)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, 1e-12)
