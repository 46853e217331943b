"""Classification or regression of a text or a pair of texts, such as GLUE's tasks."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax import metrics, scores
from attn_jax.bounds import NonNegativeInt, Path, Width
from attn_jax.data import glue, labeled_texts
from attn_jax.data.tokenizing import Tokenizing, refuse_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextClassify(Tokenizing):
    """A class or a number for each text or pair of texts.

    `attn_jax.data.tokenizing.Tokenizing` describes the fields of the vocabulary.

    Attributes:
        data: a folder with tables train, validation (or dev) and test, or one table, of which
            `holdout` rows are the validation split: .tsv, .csv, .jsonl or .parquet, see
            `attn_jax.data.tables.read_table`. With `glue_task`, a task's official folder. "stdlib":
            whether a sentence of the documentation inside Python is from the language
            reference or from the library; needs no file.
        num_classes: outputs of the model's head; 1 for a number.
        glue_task: a task of `attn_jax.data.glue.TASKS`, which sets columns and classes. None: the
            columns below.
        text_column, pair_column, label_column: names of the columns; without `pair_column`
            there is one text.
        class_names: the labels as written in the data, in the order of the head. None: those
            of the train split, sorted; `bind` sets it.
        holdout: number of training rows that are the validation split if the data has none,
            stratified by class.
        broken_rows: "error", or "skip" to leave out rows with missing columns; they are
            counted, and their lines named.

    Source: Devlin et al. 2019, sec. 4.1; google-research/bert run_classifier.py.
    """

    data: Path
    num_classes: Width
    glue_task: str | None = None
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    class_names: tuple[str, ...] | None = None
    holdout: NonNegativeInt = 0
    broken_rows: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        if self.glue_task is not None and self.glue_task not in glue.TASKS:
            raise ValueError(
                f"config.task.glue_task={self.glue_task!r} is none of {', '.join(glue.TASKS)}."
            )
        names = self.class_names
        if names is not None and (
            len(names) != self.num_classes or len(set(names)) != len(names)
        ):
            raise ValueError(
                f"config.task.class_names={list(names)} must be {self.num_classes} different "
                "names, one for each of config.task.num_classes."
            )

    @property
    def coefficients(self) -> dict[str, float]:
        return {"squared_error" if self.num_classes == 1 else "cross_entropy": 1.0}

    def bind(self, assets: Mapping[str, str]) -> Any:
        """This task with vocabulary and class names of a run, see `Tokenizing.bind`."""
        bound = super().bind(assets)
        names = json.loads(assets.get("text.json", "{}")).get("labels")
        if names and bound.class_names is None and len(names) == self.num_classes:
            pieces = bound._pieces
            bound = dataclasses.replace(bound, class_names=tuple(names))
            object.__setattr__(bound, "_pieces", pieces)
        return bound

    def source(self, split: str) -> labeled_texts.Texts:
        """The texts of a split.

        Raises:
            ValueError: the data is missing or damaged, or has no such split; a label is
                unknown; there are more or fewer classes than `num_classes`.
        """
        found = self.read_split(split)
        tokenizer = self.open_tokenizer(
            lambda: (t for e in self.read_split("train").examples for t in e.texts)
        )
        names = glue.TASKS[self.glue_task].names if self.glue_task else found.classes
        return labeled_texts.Texts(found.examples, names, tokenizer, found.left_out)

    def read_split(self, split: str) -> labeled_texts.Split:
        if self.data == "stdlib":
            found = labeled_texts.Split(
                labeled_texts.read_origins(split), labeled_texts.ORIGINS
            )
        else:
            found = labeled_texts.read_split(self.data, split, self.reading)
        number = 1 if found.classes is None else len(found.classes)
        if number != self.num_classes:
            shown = ", ".join(map(repr, (found.classes or ())[:8])) or "a number"
            raise ValueError(
                f"{self.data!r} has {number} classes ({shown}), but "
                f"config.task.num_classes={self.num_classes}; set it and "
                f"config.model.head.num_classes to {number}."
            )
        return found

    @property
    def reading(self) -> labeled_texts.Reading:
        skip_broken = self.broken_rows == "skip"
        if self.glue_task is not None:
            task = glue.TASKS[self.glue_task]
            columns = (*task.texts, task.label)
            # Official test sets have no labels.
            files = {"train": ("train",)} | {s: (f,) for s, f in task.development}
            return labeled_texts.Reading(
                columns, task.classes, task.classes is None, 0, skip_broken, files
            )
        pair = () if self.pair_column is None else (self.pair_column,)
        return labeled_texts.Reading(
            (self.text_column, *pair, self.label_column),
            self.class_names,
            self.num_classes == 1,
            self.holdout,
            skip_broken,
        )

    def assets(self, source: labeled_texts.Texts) -> dict[str, str]:
        """The vocabulary, and the names of the classes."""
        known = {} if source.labels is None else {"labels": list(source.labels)}
        return self.describe_text(source.tokenizer, **known)

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """`token_ids`, `segment_ids`, `mask` [S] and `labels` [], int32 or float32."""
        del rng
        encoded = [record["tokenizer"].encode(text) for text in record["texts"]]
        kind = np.float32 if self.num_classes == 1 else np.int32
        row = self.make_row(record["tokenizer"], *encoded)
        return {**row, "labels": kind(record["label"])}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Cross-entropy in nats and accuracy, or the squared error of a number.

        Raises:
            ValueError: the model lacks the head, or it has another number of classes.
        """
        logits = self.read_logits(outputs)
        labels, valid = batch["labels"], batch["valid"].astype(jnp.float32)
        count = valid.sum()
        if self.num_classes == 1:
            squared = jnp.square(logits[:, 0] - labels)
            return {"squared_error": ((squared * valid).sum(), count)}
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = logits.argmax(-1) == labels
        return {
            "cross_entropy": ((losses * valid).sum(), count),
            "accuracy": ((correct * valid).sum(), count),
        }

    def read_logits(self, outputs: Mapping[str, jax.Array]) -> jax.Array:
        logits = outputs.get("class_logits")
        if logits is None or logits.shape[-1] != self.num_classes:
            found = (
                "no class_logits" if logits is None else f"{logits.shape[-1]} classes"
            )
            raise ValueError(
                f"the model has {found}, but config.task.num_classes={self.num_classes}; set "
                "config.model.head to {'cls': 'attn_jax.models.bert:ClassHead', "
                f"'num_classes': {self.num_classes}}}."
            )
        return logits.astype(jnp.float32)

    def predictions(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        return {"logits": self.read_logits(outputs), "labels": batch["labels"]}

    def score(
        self, predictions: Mapping[str, np.ndarray], records: labeled_texts.Texts
    ) -> dict[str, float]:
        """The metrics of the GLUE task; else accuracy, with F1 and Matthews for two classes.

        For a number: Pearson and Spearman correlation.
        """
        del records
        logits, labels = predictions["logits"], predictions["labels"]
        if self.num_classes == 1:
            return scores.score_numbers(labels, logits[:, 0])
        found = scores.score_classes(labels, logits.argmax(-1), self.num_classes)
        wanted = glue.TASKS[self.glue_task].metrics if self.glue_task else tuple(found)
        return {name: found[name] for name in wanted}

    def read_input(self, given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Tokenizes a text, or {"text": ..., "pair": ...}, without a label.

        An object may have the names of the run's columns instead. `pieces_cut` says how much of
        a text is longer than a row.

        Raises:
            ValueError: it is neither.
        """
        refuse_file(given)
        named = {"text": given} if isinstance(given, str) else given
        columns = self.reading.columns[:-1]  # numbers where a file has no header
        has_names = all(isinstance(column, str) for column in columns)
        ways = [columns] if has_names and set(columns) - {"text", "pair"} else []
        keys = next(
            (
                keys
                for keys in (("text",), ("text", "pair"), *ways)
                if isinstance(named, dict) and named.keys() == set(keys)
            ),
            None,
        )
        if keys is None or not all(isinstance(text, str) for text in named.values()):
            own = "".join(f"{' and '.join(map(repr, way))}, or " for way in ways)
            raise ValueError(
                f"{given!r:.80} is no text; give a string, or an object with the texts {own}"
                "'text' and 'pair'."
            )
        encoded = [self.tokenizer.encode(named[key]) for key in keys]
        row = self.make_row(self.tokenizer, *encoded)
        return {**named, **self.count_cut(*encoded)}, [row]

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, np.ndarray]],
        top: int,
    ) -> dict[str, Any]:
        """`predictions`: the `top` most probable classes; or `value`, a number."""
        del named, rows
        logits = outputs[0]["class_logits"]
        if self.num_classes == 1:
            return {"value": float(logits[0])}
        chances = np.asarray(jax.nn.softmax(logits))
        return {"predictions": metrics.rank_classes(chances, self.class_names, top)}
