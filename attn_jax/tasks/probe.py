"""Probe: the accuracy of simple classifiers on a model's `pooled` features.

This is an evaluation, not a training objective: it has no loss. Use it in `config.evals`.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from attn_jax import probes
from attn_jax.bounds import NonNegativeInt
from attn_jax.data import sources
from attn_jax.data.reading import ImageReading
from attn_jax.data.views import Subset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(ImageReading):
    """Few-shot linear and nearest-neighbor accuracy on any source of labeled images.

    `accuracy_N_shot` is the accuracy on the split of a ridge regression on N training
    images per class, averaged over `draws` random sets; `accuracy_knn` is that of the
    nearest neighbors among all training images. Images are not augmented.

    `attn_jax.data.reading.ImageReading` describes the fields that select and read the
    images.

    Attributes:
        shots: training images per class; () omits the linear probe.
        draws: random sets for each number of shots. In one draw, smaller sets are subsets
            of larger ones.
        l2: strength of the ridge penalty.
        neighbours: k of the nearest neighbors, 20 is usual; 0 omits them. They need the
            features of all training images.
        seed: seed of the draws; runs with different seeds use the same sets.

    Raises:
        ValueError: a number is out of range, or there is nothing to measure.

    Source: big_vision, evaluators/fewshot_lsr.py and configs/common_fewshot.py, with the
    same defaults for shots and l2. (There, images are resized to 256 pixels and cropped to
    the central 224, and the sets are the first images of a shuffled data set.)
    """

    shots: tuple[int, ...] = (1, 5, 10, 25)
    draws: int = 3
    l2: float = 1024.0
    neighbours: NonNegativeInt = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.shots, default=1) < 1 or self.draws < 1 or self.l2 <= 0:
            raise ValueError(
                f"shots={self.shots} and draws={self.draws} must be 1 or more, "
                f"l2={self.l2} above 0; correct them in config.evals."
            )
        if self.neighbours < 0 or not (self.shots or self.neighbours):
            raise ValueError(
                f"shots={self.shots} and neighbours={self.neighbours} leave nothing to "
                "measure; give one of them in config.evals (neighbours=20 is usual)."
            )

    @property
    def coefficients(self) -> dict[str, float]:
        return {}

    def source(self, split: str) -> "SupportAndQueries":
        """The training images that the probe learns from, then all records of `split`.

        Raises:
            ValueError: `split` is the training split, or that split has too few examples.
        """
        if split == "train":
            raise ValueError(
                "split='train' holds the examples that a probe learns from; set "
                "config.evals.NAME.split to 'validation' or 'test'."
            )
        training, queries = self.open("train"), self.open(split)
        if self.neighbours > len(training):
            raise ValueError(
                f"neighbours={self.neighbours}, but {self.data!r} has {len(training)} "
                "training examples; lower config.evals.NAME.task.neighbours."
            )
        everything = Subset(training, np.arange(len(training)))
        drawn = {}
        if self.shots:  # otherwise labels are not needed, and may be slow to read
            targets = everything.targets
            drawn = {
                (shots, draw): self.draw_support(targets, training.labels, shots, draw)
                for shots in self.shots
                for draw in range(self.draws)
            }
        if self.neighbours:
            chosen = everything.indices
        else:
            chosen = np.unique(np.concatenate([*drawn.values()]))
        support = Subset(training, chosen)
        rows = {key: np.searchsorted(chosen, members) for key, members in drawn.items()}
        return SupportAndQueries(support, queries, rows)

    def draw_support(
        self,
        targets: Integer[np.ndarray, " N"],
        names: tuple[str, ...] | None,
        shots: int,
        draw: int,
    ) -> Integer[np.ndarray, " n"]:
        """The numbers of the training examples to learn from: `shots` of each class.

        Raises:
            ValueError: a class has too few examples.
        """
        rng = np.random.default_rng((self.seed, draw))
        members = []
        for label in np.unique(targets):
            of_class = np.flatnonzero(targets == label)
            if len(of_class) < shots:
                name = names[label] if names else label
                raise ValueError(
                    f"{shots} shots, but the class {name!r} of {self.data!r} has "
                    f"{len(of_class)} training examples; lower shots in config.evals, "
                    "or holdout."
                )
            members.append(rng.permutation(of_class)[:shots])
        return np.concatenate(members)

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """uint8 image [H, W, C] and label, never augmented."""
        return {
            "images": self.read(record, rng),
            "labels": np.int32(record["label"]),
        }

    def prepare(
        self, batch: Mapping[str, jax.Array], key: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Converts images to float32 in the model's range."""
        del key, train  # nothing random
        return {**batch, "images": self.to_model_range(batch["images"])}

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"images": batch["images"]}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """No terms: a probe is scored over the whole split, in `score`."""
        del outputs, batch
        return {}

    def predictions(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Features [B, D] in float32, and labels.

        Raises:
            ValueError: the model has no output `pooled` with one vector per image.
        """
        pooled = outputs.get("pooled")
        if pooled is None or pooled.ndim != 2:
            shape = None if pooled is None else pooled.shape
            raise ValueError(
                f"a probe reads the output `pooled` [B, D], which is {shape} in this "
                f"model (outputs: {', '.join(outputs)}); pool its tokens, in a ViT by "
                "config.model.pool."
            )
        return {"pooled": pooled.astype(jnp.float32), "labels": batch["labels"]}

    def score(
        self, predictions: Mapping[str, np.ndarray], records: "SupportAndQueries"
    ) -> dict[str, float]:
        """`accuracy_N_shot` for each N in `shots`, and `accuracy_knn`.

        NaN if a feature is not finite, so that this does not end a diverged run.
        """
        order = np.argsort(predictions["index"])
        features = predictions["pooled"][order].astype(np.float64)
        labels = predictions["labels"][order]
        if not np.isfinite(features).all():
            names = [f"accuracy_{shots}_shot" for shots in self.shots]
            names += ["accuracy_knn"] if self.neighbours else []
            return dict.fromkeys(names, math.nan)
        size, classes = len(records.support), int(labels.max()) + 1
        queries, true = features[size:], labels[size:]
        results = {}
        for shots in self.shots:
            shares = []
            for draw in range(self.draws):
                rows = records.drawn[shots, draw]
                x, y = features[rows], labels[rows]
                [probe] = probes.fit_ridge(x, y, [self.l2], classes)
                shares.append(np.mean(probe.predict(queries) == true))
            results[f"accuracy_{shots}_shot"] = float(np.mean(shares))
        if self.neighbours:
            found = probes.predict_knn(
                features[:size], labels[:size], queries, k=self.neighbours
            )
            results["accuracy_knn"] = float(np.mean(found == true))
        return results


class SupportAndQueries:
    """The records that a probe learns from, then those that it classifies.

    `drawn` holds {(shots, draw): numbers of the records in this source}.
    """

    def __init__(
        self,
        support: Subset,
        queries: sources.Source,
        drawn: Mapping[tuple[int, int], Integer[np.ndarray, " n"]],
    ):
        self.support, self.queries, self.drawn = support, queries, drawn
        self.labels = queries.labels
        self.skipped = support.skipped + getattr(queries, "skipped", 0)
        self.left_out = support.left_out + getattr(queries, "left_out", ())

    def __len__(self) -> int:
        return len(self.support) + len(self.queries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.support):
            return self.support[index]
        return self.queries[index - len(self.support)]

    def fingerprint(self) -> str:
        text = f"{self.support.fingerprint()} {self.queries.fingerprint()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]
