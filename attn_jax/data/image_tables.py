"""Labeled images that a table lists: the columns `file` and `label`, one image a row.

The label of a row is the name of a class or, with a separator, of any number of classes.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from attn_jax.data import bounded, files, tables

COLUMNS = ("file", "label")
STEMS = {  # split: names of its table in a folder
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}


class TableImages(files.FolderImages):
    """The images of a table; relative paths start at its folder."""

    def fingerprint(self) -> str:
        """Also covers the labels, which the names do not tell here."""
        text = f"{super().fingerprint()} {self.describe_targets()}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def describe_targets(self) -> list[Any]:
        return [self.labels[target] for target in self.targets]


class LabelSetImages(TableImages):
    """Images with any number of labels; `targets` and `label` are bool [N, C] and [C]."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = bounded.read_image_file(path := self.root / self.names[index])
        return {"image": image, "label": self.targets[index], "name": str(path)}

    def describe_targets(self) -> list[Any]:
        return [[self.labels[i] for i in np.flatnonzero(row)] for row in self.targets]


def has_tables(folder: pathlib.Path) -> bool:
    """Whether a folder has a table for training, and no folders of splits."""
    names = {path.name for path in folder.iterdir()}
    tabled = any(f"train{suffix}" in names for suffix in tables.SUFFIXES)
    return tabled and not files.find_splits(names & files.FOLDERS.keys(), folder)


def open_tables(
    path: pathlib.Path, separator: str | None = None
) -> Mapping[str, Callable[[], TableImages]]:
    """Returns {split: opener} of one table, for "train", or of a folder of them.

    The classes are those of the training table, sorted by name.

    Args:
        separator: what stands between the labels of an image; None: it has one.

    Raises:
        ValueError: a folder has no table for training.
    """
    found = tables.find_splits(str(path), STEMS)
    return {
        split: functools.partial(open_table, table, found["train"], separator)
        for split, table in found.items()
    }


def open_table(
    table: pathlib.Path, training: pathlib.Path, separator: str | None = None
) -> TableImages:
    """Opens the images of a table.

    Raises:
        ValueError: a column is missing or a row is broken; a row's file is missing or no image;
            a label is empty, or the training table lacks it. The first rows are named.
    """
    rows = read_rows(table, separator)
    known = rows if table == training else read_rows(training, separator)
    labels = sorted({label for row in known for label in row.labels})
    numbers = {label: i for i, label in enumerate(labels)}
    root = table.parent
    check_rows(
        table,
        [(row.line, row.file) for row in rows if not files.is_image(row.file)],
        "whose file is no image by its suffix",
    )
    check_rows(
        table,
        [(row.line, row.file) for row in rows if not (root / row.file).is_file()],
        "whose file is missing",
    )
    check_rows(
        table,
        [(r.line, label) for r in rows for label in r.labels if label not in numbers],
        f"with a label that {training.name} lacks",
    )
    names = [row.file for row in rows]
    if separator is None:
        targets = np.array([numbers[row.labels[0]] for row in rows], np.int64)
        return TableImages(root, names, targets, tuple(labels))
    sets = np.zeros((len(rows), len(labels)), bool)
    for i, row in enumerate(rows):
        sets[i, [numbers[label] for label in row.labels]] = True
    return LabelSetImages(root, names, sets, tuple(labels))


class ImageRow(NamedTuple):
    """A row of a table: its line, the file and the names of its classes."""

    line: int
    file: str
    labels: tuple[str, ...]


def read_rows(table: pathlib.Path, separator: str | None) -> list[ImageRow]:
    """Reads a table. With a separator an empty cell is an image without labels."""
    rows, _ = tables.read_table(table, COLUMNS, skip_broken=None)
    if separator is None:
        empty = [(row.line, "") for row in rows if not row.values[1]]
        check_rows(table, empty, "without a label")
        return [ImageRow(line, file, (label,)) for line, (file, label) in rows]
    split = [
        (line, file, [part.strip() for part in cell.split(separator)] if cell else [])
        for line, (file, cell) in rows
    ]
    wrong = [(line, "") for line, _, labels in split if "" in labels]
    check_rows(table, wrong, "with an empty name among its labels")
    if not any(labels for _, _, labels in split):
        raise ValueError(f"{bounded.printable(table)} has no row with a label.")
    return [ImageRow(line, file, tuple(labels)) for line, file, labels in split]


def check_rows(table: pathlib.Path, wrong: list[tuple[int, str]], reason: str) -> None:
    if wrong:
        first = "; ".join(
            f"{line}: {bounded.printable(shown)}" if shown else str(line)
            for line, shown in wrong[:3]
        )
        raise ValueError(
            f"{bounded.printable(table)} has {len(wrong):,} row(s) {reason}, in line {first}. "
            "Correct or remove them; paths start at the folder of the table."
        )
