"""Classification of the rows of a table, by a model that stores the training rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax import metrics
from attn_jax.data import bags, sources
from attn_jax.data.feature_rows import RowReading


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyRows(RowReading):
    """One label for each row of a table: cross-entropy and accuracy; of two classes the AUC, too.

    `attn_jax.data.feature_rows.RowReading` describes the fields.

    Source: Ramsauer et al. 2021, sec. 4 (UCI tables, and molecules by their fingerprints).
    """

    @property
    def coefficients(self) -> dict[str, float]:
        return {"cross_entropy": 1.0}

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The rows asked about, and all stored rows with their classes."""
        targets = jax.nn.one_hot(self.memory.targets, len(self.memory.labels))
        stored = jnp.asarray(self.memory.x)
        return {
            "features": batch["features"],
            "own": batch["own"],
            "stored": stored,
            "targets": targets,
        }

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Cross-entropy in nats and accuracy, without padded rows."""
        logits, labels = outputs["logits"].astype(jnp.float32), batch["labels"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = logits.argmax(-1) == labels
        valid = batch["valid"].astype(jnp.float32)
        count = valid.sum()
        return {
            "cross_entropy": ((losses * valid).sum(), count),
            "accuracy": ((correct * valid).sum(), count),
        }

    def predictions(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        chances = jax.nn.softmax(outputs["logits"].astype(jnp.float32))
        return {"last": chances[:, -1], "labels": batch["labels"]}

    def score(
        self, predictions: Mapping[str, np.ndarray], records: sources.Source
    ) -> dict[str, float]:
        """`auc` of two classes, the second one positive; nothing for more."""
        del records  # the labels come with the predictions
        if len(self.memory.labels) != 2:
            return {}
        return {"auc": bags.area_under_roc(predictions["labels"], predictions["last"])}

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, Any]],
        top: int,
    ) -> dict[str, Any]:
        """`predictions`: the classes as {"label", "probability"}, the most probable first."""
        del named, rows
        chances = np.asarray(jax.nn.softmax(outputs[0]["logits"]))
        return {"predictions": metrics.rank_classes(chances, self.memory.labels, top)}
