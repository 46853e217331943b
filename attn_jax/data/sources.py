"""Data sets of labeled images, opened by `open_split`: embedded, local, or prepared by TFDS.

A source gives random access and never shuffles, repeats or batches: only `pipeline.py`
does.
"""

import concurrent.futures
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging

from attn_jax.data import (
    arrays,
    bounded,
    catalogue,
    decoding,
    files,
    image_tables,
    tables,
    zips,
)
from attn_jax.data.views import Subset, read_labels
from attn_jax.folder import expand_local

SPLITS = ("train", "validation", "test")

Openers = Mapping[str, Callable[[], "Source"]]  # {split: function that opens it}


@runtime_checkable  # for the type checks of the test run
class Source(Protocol):
    """A random-access collection of records.

    It can be read from several threads, and pickled into worker processes.

    Two attributes are optional: `skipped` is the number of corrupt images left out,
    `left_out` holds (name, reason) of files that are not read (`describe_left_out`).

    An image record holds `image` (uint8 [H, W, C], or the encoded file as `bytes` for
    `decoding.decode`), `label` (int), and `name` (str, for messages) where `image` is
    encoded. Each access returns the same record, whoever reads it and when.
    """

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The name of each label, if they have names."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def fingerprint(self) -> str:
        """A short hex digest, another one for other records; a resumed run compares it.

        It covers the content of arrays and zip members, the names and sizes of files
        in folders, and name, version, split and length of a TensorFlow data set.
        """
        ...


@runtime_checkable
class PlannedSource(Source, Protocol):
    """A source that plans its rows: several records share one, or some come more often.

    Of any other `Source` the pipeline shuffles the records, and each is a row. A planned
    source plans the rows of each epoch itself: row i of the endless stream is row
    `i % rows_per_epoch` of epoch `i // rows_per_epoch`. An evaluation reads the rows of
    `rows(0, 0)` once.
    """

    rows_per_epoch: int  # len(rows(seed, epoch)), for any seed and epoch

    def rows(self, seed: int, epoch: int) -> Sequence[Sequence[int]]:
        """The rows of an epoch in their final, shuffled order.

        Each is a tuple of record indices. A pure function of `seed`, `epoch` and the
        records.
        """
        ...


def open_split(
    data: str,
    split: str,
    *,
    holdout: int = 0,
    examples: int | None = None,
    corrupt: str = "error",
    separator: str | None = None,
) -> "Source":
    """Opens one split of a data set of labeled images.

    Args:
        data: one of
            "digits": scikit-learn's 1,797 handwritten digits (8x8), 360 of them the
                test set; embedded, no file needed;
            "FILE.npz": x_train, y_train, x_test, y_test (x_validation, y_validation, or x_val, y_val),
                images uint8 [N, H, W] or [N, H, W, C];
            "DIR" with idx files (train-images-idx3-ubyte[.gz], ... t10k for the test
                set), or one of these files;
            "FILE.csv" (.tsv, .jsonl, .parquet) with the columns `file` and `label`, which is
                the split "train", or "DIR" with train.csv, validation.csv, test.csv;
            "DIR" or "FILE.zip" with CLASS/IMAGE, which are the split "train", or with
                SPLIT/CLASS/IMAGE, or deeper below CLASS;
            "tfds:NAME" or "tfds:NAME@DATA_DIR": a prepared set of TensorFlow Datasets.
        split: "train", "validation" or "test".
        holdout: number of training examples that form the validation set if the data
            has none: stratified by label, and the same ones in every run.
        examples: number of training examples to use, likewise stratified; None: all.
        corrupt: "error" raises when an image that cannot be decoded is read. "skip"
            decodes every image once while opening, names the corrupt ones in a warning
            and leaves them out (so the order of the data depends on the files alone);
            `skipped` of the result is their number.
        separator: what stands between the labels of an image in a table, such as "|". The
            label of a record is then bool [classes], and nothing is stratified.

    Raises:
        ValueError: the data is missing, malformed or empty; it has no such split;
            `holdout` or `examples` cannot be honored; a separator, but no table.
    """
    if split not in SPLITS:
        raise ValueError(f"{split=} must be one of {', '.join(map(repr, SPLITS))}.")
    if corrupt not in ("error", "skip"):
        raise ValueError(f"{corrupt=} must be 'error' or 'skip'.")
    if holdout < 0:
        raise ValueError(f"{holdout=} must be 0 or a number of training examples.")
    splits = _open(data, separator)
    if holdout and "validation" in splits:
        raise ValueError(
            f"{holdout=}, but {data!r} has a validation split of its own. "
            "Set config.task.holdout to 0."
        )
    if split == "validation" and split not in splits and not holdout:
        raise ValueError(
            f"{data!r} has no validation split. Set config.task.holdout to the number "
            "of training examples to set aside."
        )
    held_out = holdout and split != "test"
    stored = "train" if held_out else split
    if stored not in splits:
        raise ValueError(
            f"{data!r} has no split {stored!r}; it has: {', '.join(splits) or 'none'}."
        )
    source = splits[stored]()
    if corrupt == "skip":
        source = _without_corrupt(source, data)
    if held_out:
        rest, held = arrays.split_stratified(_find_strata(source), holdout)
        source = Subset(source, held if split == "validation" else rest)
    if examples is not None and split == "train" and examples != len(source):
        if not 0 < examples < len(source):
            raise ValueError(
                f"{examples=}, but {data!r} has {len(source):,} training examples; set "
                "config.task.examples to a smaller number, or to None for all."
            )
        _, chosen = arrays.split_stratified(_find_strata(source), examples)
        source = Subset(source, chosen)
    return source


def _find_strata(source: "Source") -> np.ndarray:
    """The label of every record; sets of labels are too many to be strata."""
    labels = read_labels(source)
    return labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)


def list_splits(data: str) -> list[str]:
    """The splits that the data itself has; errors as in `open_split`."""
    return list(_open(data))


def describe_left_out(source: Source) -> str:
    """Describes the files that are not read, to follow the number of records; or ""."""
    parts = []
    if skipped := getattr(source, "skipped", 0):
        parts.append(f"{skipped:,} corrupt {'image' if skipped == 1 else 'images'}")
    by_reason: dict[str, list[str]] = {}
    for name, reason in getattr(source, "left_out", ()):
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        parts.append(f"{len(names):,} {reason}: {bounded.join_names(names, 3)}")
    return f" (left out: {'; '.join(parts)})" if parts else ""


def _open(data: str, separator: str | None = None) -> Openers:
    if separator is not None:
        embedded = data == "digits" or data.startswith("tfds:")
        path = pathlib.Path() if embedded else _find(data)
        if embedded or (path.is_file() and path.suffix.lower() not in tables.SUFFIXES):
            raise ValueError(
                f"{data!r} has one label an image; several, with config.task.separator, are "
                f"read from a table of files and labels ({', '.join(tables.SUFFIXES)})."
            )
        return image_tables.open_tables(path, separator)
    if data == "digits":
        return arrays.open_digits()
    if data.startswith("tfds:"):
        return catalogue.open_prepared(data.removeprefix("tfds:"))
    path = _find(data)
    if path.suffix.lower() == ".npz":
        bounded.check_regular(path)
        return arrays.open_npz(path)
    if path.suffix.lower() == ".zip":
        bounded.check_regular(path)
        return zips.open_zip(path)
    if path.suffix.lower() in tables.SUFFIXES:
        return image_tables.open_tables(path)
    folder = path.parent if arrays.is_idx(path.name) else path
    if not folder.is_dir():
        raise ValueError(
            f"{data!r} is no data set: expected an .npz, .zip or idx file, a table of files "
            "and labels, or a folder."
        )
    if openers := arrays.open_idx(folder):
        return openers
    if image_tables.has_tables(folder):
        return image_tables.open_tables(folder)
    return files.open_folder(folder)


def _find(data: str) -> pathlib.Path:
    """Returns the path that `data` names.

    Raises:
        ValueError: the path is empty or does not exist.
    """
    remedy = (
        "Set config.task.data to 'digits', to an .npz or .zip file, to a folder of images "
        "or idx files, or to 'tfds:NAME'."
    )
    if not data:
        raise ValueError(f"config.task.data is empty. {remedy}")
    path = expand_local(data)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        where = ""
        if not path.is_absolute():
            where = (
                f" (relative to {pathlib.Path.cwd()}; an absolute path works from any "
                "folder)"
            )
        shown = data if len(data) < 200 else data[:200] + "..."
        raise ValueError(f"{shown!r} does not exist{where}. {remedy}") from None
    return path


def _without_corrupt(source: "Source", data: str) -> "Source":
    """Leaves out the images of `source` that cannot be decoded."""

    def find_fault(index: int) -> str | None:
        try:
            record = source[index]
            if isinstance(record["image"], bytes):
                decoding.decode(record["image"], 3, name=record["name"])
        except ValueError as error:  # not OSError: a failing disk must end the run
            return str(error).partition(". ")[0]
        return None

    if isinstance(source, arrays.Arrays):
        return source
    with concurrent.futures.ThreadPoolExecutor() as threads:  # Pillow releases the GIL
        faults = list(threads.map(find_fault, range(len(source))))
    good = np.array([i for i, fault in enumerate(faults) if fault is None], np.int64)
    for message in filter(None, faults):
        logging.warning("skipped %s", message)
    if not len(good):
        raise ValueError(
            f"{data!r}: none of {len(faults)} images can be decoded. Check the files."
        )
    if len(good) == len(source):
        return source
    return Subset(source, good, skipped=len(source) - len(good))
