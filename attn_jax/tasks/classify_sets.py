"""Classification of images that have any number of labels each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool

from attn_jax import scores
from attn_jax.data import sources, views
from attn_jax.tasks.classify import Classify


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifySets(Classify):
    """`Classify` with a set of labels for each image, of which each is predicted on its own.

    The data is a table of the columns `file` and `label`, or a folder of them. An empty label
    is an image to which no class fits.

    Attributes:
        separator: what stands between the labels of an image.
        loss_kind: always "sigmoid": binary cross-entropy, summed over the classes.

    Raises:
        ValueError: as `Classify`; another loss, or ReaL labels.
    """

    SCORES = ("map",)  # of `score`

    separator: str = "|"
    loss_kind: Literal["softmax", "sigmoid"] = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.separator:
            raise ValueError(
                "config.task.separator is empty; set what stands between the labels of an "
                "image, such as '|'."
            )
        if self.loss_kind != "sigmoid" or self.real_labels is not None:
            raise ValueError(
                f"config.task.loss_kind={self.loss_kind!r} and real_labels={self.real_labels!r} "
                "are for one label an image; set 'sigmoid' and None for ClassifySets."
            )

    @staticmethod
    def derive(fields: Mapping[str, Any]) -> dict[str, Any]:
        """What the data says of `num_classes` and `holdout`, as in `Classify.derive`."""
        data = fields["data"]
        separator = fields.get("separator", ClassifySets.separator)
        source = sources.open_split(data, "train", separator=separator)
        has_validation = "validation" in sources.list_splits(data)
        holdout = 0 if has_validation else max(1, round(len(source) / 10))
        return {"num_classes": len(source.labels or ()), "holdout": holdout}

    def source(self, split: str) -> sources.Source:
        """The records of one split; `label` is bool [num_classes].

        Raises:
            ValueError: the data is missing or malformed, or has other classes.
        """
        source = self.open(split, self.separator)
        if self.class_names is not None:
            source = views.match_label_sets(source, self.class_names, self.data)
        self.check_classes(source, split)
        return source

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """As in `Classify`, but with `labels` bool [num_classes]."""
        image = self.read_augmented(record, rng)
        return {"images": image, "labels": np.asarray(record["label"], bool)}

    def make_targets(self, labels: jax.Array) -> jax.Array:
        """1 for the classes that fit, [B, C]."""
        return labels.astype(jnp.float32)

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Binary cross-entropy in nats, summed over the classes, and scores.

        A class is predicted if its probability is above 1/2. `accuracy` is the share of
        images whose set of classes is predicted exactly; `f1` counts the labels of all
        images together (micro average).

        Raises:
            ValueError: the head's size is not `num_classes`.
        """
        logits = self.read_logits(outputs)
        each = optax.sigmoid_binary_cross_entropy(logits, batch["targets"])
        valid = batch["valid"].astype(jnp.float32)
        labels, predicted = batch["labels"], logits > 0

        both = 2 * (labels & predicted).sum(axis=-1)
        either = labels.sum(axis=-1) + predicted.sum(axis=-1)
        exact = (labels == predicted).all(axis=-1)
        return {
            "cross_entropy": ((each.sum(axis=-1) * valid).sum(), valid.sum()),
            "accuracy": ((exact * valid).sum(), valid.sum()),
            "f1": ((both * valid).sum(), (either * valid).sum()),
        }

    def predictions(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        return {"logits": self.read_logits(outputs), "labels": batch["labels"]}

    def score(
        self, predictions: Mapping[str, np.ndarray], records: sources.Source
    ) -> dict[str, float]:
        """`map`: mean average precision of the classes, over the whole split."""
        del records  # the labels come with the predictions
        return scores.score_rankings(predictions["labels"], predictions["logits"])

    def name_label(self, label: Bool[np.ndarray, " C"]) -> str:
        """The names of the classes that fit an image."""
        found = [super(ClassifySets, self).name_label(i) for i in np.flatnonzero(label)]
        return ", ".join(found) or "none"

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, np.ndarray]],
        top: int,
    ) -> dict[str, Any]:
        """`predictions`, as `Classify`, and `labels`: all with a probability above 1/2."""
        every = super().describe_outputs(named, rows, outputs, self.num_classes)
        ranked = every["predictions"]
        labels = [found["label"] for found in ranked if found["probability"] > 0.5]
        return {"labels": labels, "predictions": ranked[:top]}
