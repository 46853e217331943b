"""Labeled images that a table lists: the columns `file` and `label`, one image a row."""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping

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
        labels = [self.labels[target] for target in self.targets]
        text = f"{super().fingerprint()} {labels}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def has_tables(folder: pathlib.Path) -> bool:
    """Whether a folder has a table for training, and no folders of splits."""
    names = {path.name for path in folder.iterdir()}
    tabled = any(f"train{suffix}" in names for suffix in tables.SUFFIXES)
    return tabled and not files.find_splits(names & files.FOLDERS.keys(), folder)


def open_tables(path: pathlib.Path) -> Mapping[str, Callable[[], TableImages]]:
    """Returns {split: opener} of one table, for "train", or of a folder of them.

    The classes are those of the training table, sorted by name.

    Raises:
        ValueError: a folder has no table for training.
    """
    found = tables.find_splits(str(path), STEMS)
    return {
        split: functools.partial(open_table, table, found["train"])
        for split, table in found.items()
    }


def open_table(table: pathlib.Path, training: pathlib.Path) -> TableImages:
    """Opens the images of a table.

    Raises:
        ValueError: a column is missing or a row is broken; a row's file is missing or no image;
            a label is empty, or the training table lacks it. The first rows are named.
    """
    rows = read_rows(table)
    labels = sorted({label for _, (_, label) in rows})
    if table != training:
        labels = sorted({label for _, (_, label) in read_rows(training)})
    numbers = {label: i for i, label in enumerate(labels)}
    root = table.parent
    check_rows(
        table,
        [(line, file) for line, (file, _) in rows if not files.is_image(file)],
        "whose file is no image by its suffix",
    )
    check_rows(
        table,
        [(line, file) for line, (file, _) in rows if not (root / file).is_file()],
        "whose file is missing",
    )
    check_rows(
        table,
        [(line, label) for line, (_, label) in rows if label not in numbers],
        f"with a label that {training.name} lacks",
    )
    return TableImages(
        root,
        [file for _, (file, _) in rows],
        np.array([numbers[label] for _, (_, label) in rows], np.int64),
        tuple(labels),
    )


def read_rows(table: pathlib.Path) -> list[tables.Row]:
    rows, _ = tables.read_table(table, COLUMNS, skip_broken=None)
    check_rows(
        table, [(row.line, "") for row in rows if not row.values[1]], "without a label"
    )
    return rows


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
