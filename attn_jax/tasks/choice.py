"""Multiple choice: which of several endings goes on from a text, as in SWAG."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax import metrics
from attn_jax.bounds import Path, PositiveInt
from attn_jax.data import invented, tables
from attn_jax.data.tokenizing import Tokenizer, Tokenizing

SPLITS = {"train": ("train",), "validation": ("val", "validation", "dev")}
# SWAG's columns: the context, the start of the second sentence, endings, number of the right one.
COLUMNS = ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3", "label")


class Question(NamedTuple):
    context: str
    endings: tuple[str, ...]
    label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Tokenizing):
    """The right one of `choices` endings; each is a row [CLS] context [SEP] ending [SEP].

    `attn_jax.data.tokenizing.Tokenizing` describes the fields of the vocabulary.

    Attributes:
        data: SWAG's folder (train.csv, val.csv). "generated": invented sentences, which need no
            file.
        choices: endings of a context.

    Source: Devlin et al. 2019, sec. 4.4; Zellers et al. 2018 (SWAG).
    """

    data: Path
    choices: PositiveInt = 4

    @property
    def coefficients(self) -> dict[str, float]:
        return {"cross_entropy": 1.0}

    def source(self, split: str) -> "Questions":
        """The questions of a split.

        Raises:
            ValueError: the data is missing or damaged, or has no such split; a label is none
                of the endings.
        """
        questions = self.read_questions(split)
        tokenizer = self.open_tokenizer(
            lambda: (
                text
                for question in self.read_questions("train")
                for text in (question.context, *question.endings)
            )
        )
        return Questions(questions, tokenizer)

    def read_questions(self, split: str) -> list[Question]:
        if self.data == "generated":
            made = invented.make_choices(split)
            return [Question(text, tuple(ends), label) for text, ends, label in made]
        files = tables.find_splits(self.data, SPLITS)
        if split not in files:
            raise ValueError(
                f"{self.data!r} has no split {split!r}, only {', '.join(files)}."
            )
        rows, _ = tables.read_table(files[split], COLUMNS)
        questions = []
        for line, (context, start, *endings, label) in rows:
            if label not in ("0", "1", "2", "3"):
                raise ValueError(
                    f"{files[split]}, line {line}: the label {label!r:.30} is none of 0 to 3."
                )
            ends = tuple(f"{start} {ending}" for ending in endings)
            questions.append(Question(context, ends, int(label)))
        return questions

    def assets(self, source: "Questions") -> dict[str, str]:
        return self.describe_text(source.tokenizer)

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """`token_ids`, `segment_ids`, `mask` [choices, S] and `labels` [], int32."""
        del rng
        rows = self.make_rows(record["context"], record["endings"], record["tokenizer"])
        return {**rows, "labels": np.int32(record["label"])}

    def make_rows(
        self, context: str, endings: Sequence[str], tokenizer: Tokenizer
    ) -> dict[str, np.ndarray]:
        start = tokenizer.encode(context)
        rows = [
            self.make_row(tokenizer, start, tokenizer.encode(ending))
            for ending in endings
        ]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Cross-entropy in nats over the endings, and accuracy.

        Raises:
            ValueError: the model lacks the head.
        """
        if "choice_logits" not in outputs:
            raise ValueError(
                "the model has no choice_logits; set config.model.head to "
                "{'cls': 'attn_jax.models.bert:ChoiceHead'}."
            )
        logits = outputs["choice_logits"].astype(jnp.float32)
        labels, valid = batch["labels"], batch["valid"].astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = logits.argmax(-1) == labels
        return {
            "cross_entropy": ((losses * valid).sum(), valid.sum()),
            "accuracy": ((correct * valid).sum(), valid.sum()),
        }

    def read_input(self, given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The rows of {"context": ..., "endings": [...]}.

        Raises:
            ValueError: it is no such object, or has another number of endings.
        """
        if (
            not isinstance(given, dict)
            or given.keys() != {"context", "endings"}
            or not isinstance(given["endings"], list)
            or not all(
                isinstance(t, str) for t in (given["context"], *given["endings"])
            )
        ):
            raise ValueError(
                f"{given!r:.80} is no question; give an object with the text 'context' and the "
                "texts 'endings'."
            )
        if len(given["endings"]) != self.choices:
            raise ValueError(
                f"there are {len(given['endings'])} endings, but config.task.choices="
                f"{self.choices}."
            )
        row = self.make_rows(given["context"], given["endings"], self.tokenizer)
        start, *ends = map(self.tokenizer.encode, (given["context"], *given["endings"]))
        cut = self.count_cut(start, max(ends, key=len))
        return {"text": given["context"], **given, **cut}, [row]

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, np.ndarray]],
        top: int,
    ) -> dict[str, Any]:
        """`predictions`: the `top` most probable endings."""
        del rows
        chances = np.asarray(jax.nn.softmax(outputs[0]["choice_logits"]))
        return {"predictions": metrics.rank_classes(chances, named["endings"], top)}


class Questions:
    """Records {"context", "endings", "label", "tokenizer"}."""

    labels = None

    def __init__(self, questions: Sequence[Question], tokenizer: Tokenizer):
        self.questions, self.tokenizer = questions, tokenizer

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.questions[index]._asdict(), "tokenizer": self.tokenizer}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.tokenizer.pieces).encode())
        for question in self.questions:
            digest.update(json.dumps(question).encode())
        return digest.hexdigest()[:16]
