"""Labeled texts of tables, of GLUE's official files, and of the documentation inside Python."""

import hashlib
import json
import pathlib
import sysconfig
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from attn_jax.data import stdlib, tables
from attn_jax.data.arrays import split_stratified
from attn_jax.data.files import LeftOut
from attn_jax.data.tokenizing import Tokenizer

SPLITS = {
    "train": ("train",),
    "validation": ("validation", "dev", "val", "valid"),
    "test": ("test",),
}
ORIGINS = ("language reference", "library")  # the classes of data="stdlib"


class Example(NamedTuple):
    texts: tuple[str, ...]  # one or two
    label: int | float


class Split(NamedTuple):
    """The examples of a split; `classes` as written in the data, None for numbers."""

    examples: list[Example]
    classes: tuple[str, ...] | None
    left_out: LeftOut = ()


class Reading(NamedTuple):
    """How tables are read.

    Attributes:
        columns: of one or two texts, then of the label.
        classes: labels as written in the data, in the order of the head. None: those of the
            train split, sorted; no classes if labels are numbers.
        numbers: labels are numbers.
        holdout: number of training rows that are the validation split if there is none.
        skip_broken: leave out rows with missing columns, and name their lines.
        files: {split: names of its file without suffix}.
    """

    columns: tuple[str | int, ...]
    classes: tuple[str, ...] | None
    numbers: bool
    holdout: int
    skip_broken: bool
    files: Mapping[str, Sequence[str]] = SPLITS


def read_split(data: str, split: str, reading: Reading) -> Split:
    """Reads a split of a table or of a folder of tables.

    Raises:
        ValueError: the data is missing or damaged, or has no such split; a label is unknown, or
            no number; `holdout` leaves nothing to train on.
    """
    files = tables.find_splits(data, reading.files)
    held_out = reading.holdout and "validation" not in files
    stored = "train" if held_out and split == "validation" else split
    if stored not in files:
        remedy = "set config.task.holdout to the number of rows to set aside"
        raise ValueError(
            f"{data!r} has no split {split!r}, only {', '.join(files)}"
            + (f"; {remedy}." if split == "validation" else ".")
        )
    classes = (
        None if reading.numbers else reading.classes or find_classes(files, reading)
    )
    examples, left_out = read_examples(files[stored], classes, reading)
    if held_out and stored == "train":
        if reading.holdout >= len(examples):
            raise ValueError(
                f"config.task.holdout={reading.holdout} leaves nothing to train on; "
                f"{data!r} has {len(examples)} rows."
            )
        strata = [0 if reading.numbers else int(e.label) for e in examples]
        rest, held = split_stratified(np.array(strata), reading.holdout)
        examples = [examples[i] for i in (held if split == "validation" else rest)]
    return Split(examples, classes, left_out)


def find_classes(
    files: Mapping[str, pathlib.Path], reading: Reading
) -> tuple[str, ...]:
    """The different labels of the train split, sorted."""
    rows, _ = tables.read_table(
        files["train"], reading.columns, skip_broken=reading.skip_broken
    )
    return tuple(sorted({row.values[-1] for row in rows}))


def read_examples(
    file: pathlib.Path, classes: tuple[str, ...] | None, reading: Reading
) -> tuple[list[Example], LeftOut]:
    rows, broken = tables.read_table(
        file, reading.columns, skip_broken=reading.skip_broken
    )
    if broken:
        logging.warning(
            "%s: %d broken rows are left out, at lines %s.",
            file,
            len(broken),
            ", ".join(str(b.line) for b in broken[:10]),
        )
    examples = [
        Example(
            row.values[:-1],
            parse_label(row.values[-1], classes, f"{file}, line {row.line}"),
        )
        for row in rows
    ]
    return examples, tuple((f"{file.name}:{b.line}", "broken rows") for b in broken)


def parse_label(text: str, classes: tuple[str, ...] | None, place: str) -> int | float:
    """The number of a class, or the number itself.

    Raises:
        ValueError: the label is unknown, or no number.
    """
    if classes is None:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{place}: the label {text!r:.50} is no number.") from None
    if text not in classes:
        shown = ", ".join(map(repr, classes[:8]))
        raise ValueError(
            f"{place}: the label {text!r:.50} is none of the classes {shown}. Correct it, or "
            "list all classes in config.task.class_names."
        )
    return classes.index(text)


class Texts:
    """Records {"texts", "label", "tokenizer"}."""

    def __init__(
        self,
        examples: Sequence[Example],
        labels: tuple[str, ...] | None,
        tokenizer: Tokenizer,
        left_out: LeftOut = (),
    ):
        self.examples, self.labels = examples, labels
        self.tokenizer, self.left_out = tokenizer, left_out

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        return {
            "texts": example.texts,
            "label": example.label,
            "tokenizer": self.tokenizer,
        }

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.tokenizer.pieces).encode())
        for example in self.examples:
            line = json.dumps([*example.texts, example.label])
            digest.update(f"{line}\n".encode())
        return digest.hexdigest()[:16]


def read_origins(split: str) -> list[Example]:
    """Sentences of the documentation inside Python, labeled by `ORIGINS`; balanced.

    A tenth of the documents is the validation split.
    """
    by_class: tuple[list[Example], list[Example]] = ([], [])
    for name, sentences in stdlib.read_stdlib(sysconfig.get_path("stdlib")):
        held_out = hashlib.sha256(name.encode()).digest()[0] < 26
        if held_out == (split == "validation"):
            label = int(not name.startswith("topics/"))
            by_class[label].extend(Example((text,), label) for text in sentences)
    size = min(map(len, by_class))
    return [
        pair
        for both in zip(*(c[:size] for c in by_class), strict=True)
        for pair in both
    ]
