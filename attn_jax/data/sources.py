"""Where records come from: one call, `load`, for embedded, local and catalogue data.

A source is random access and never shuffles, repeats or batches: that is the duty of
`pipeline.py` alone.
"""

import concurrent.futures
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Integer

from attn_jax.data import arrays, bounded, catalogue, decoding, files, zips
from attn_jax.data.views import Subset, read_labels
from attn_jax.folder import expand_local

SPLITS = ("train", "validation", "test")

Openers = Mapping[str, Callable[[], "Source"]]  # {split: opens it}


@runtime_checkable  # the test run checks it wherever it is an annotation
class Source(Protocol):
    """A random-access collection of records, safe to read from several threads and to
    pickle into worker processes.

    Two attributes are optional: `skipped` counts the corrupt images that were left out,
    `left_out` lists (name, reason) of files that are not read (`describe_left_out`).

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
        """A short hex digest that differs where the records differ; a resumed run
        compares it. Arrays and zip members digest their content, files in folders
        their names and sizes, catalogue sets their name, version, split and length."""
        ...


@runtime_checkable
class RaggedSource(Source, Protocol):
    """A source whose records differ in length, so that several can share one row.

    The pipeline shuffles a plain `Source` one record a row. From a ragged one it reads
    the plan of each epoch instead; row i of the endless stream is then row
    `i % rows_per_epoch` of epoch `i // rows_per_epoch`; an evaluation reads the rows of
    `rows(0, 0)` once.
    """

    lengths: Integer[np.ndarray, " N"]  # the stored length of each record
    rows_per_epoch: int  # len(rows(seed, epoch)), whatever seed and epoch

    def rows(self, seed: int, epoch: int) -> Sequence[Sequence[int]]:
        """The epoch's rows in their final (shuffled) order, each a tuple of record
        indices; a pure function of `seed`, `epoch` and the stored lengths."""
        ...


def load(
    data: str,
    split: str,
    *,
    holdout: int = 0,
    examples: int | None = None,
    corrupt: str = "error",
) -> "Source":
    """The records of one split of a data set of labelled images.

    Args:
        data: one of
            "digits": scikit-learn's 1,797 handwritten digits (8x8), 360 of them the
                test set; embedded, no file needed;
            "FILE.npz": x_train, y_train, x_test, y_test (x_validation, y_validation, or x_val, y_val),
                images uint8 [N, H, W] or [N, H, W, C];
            "DIR" with idx files (train-images-idx3-ubyte[.gz], ... t10k for the test
                set), or one of these files;
            "DIR" or "FILE.zip" with SPLIT/CLASS/IMAGE, or deeper below CLASS;
            "tfds:NAME" or "tfds:NAME@DATA_DIR": a prepared set of TensorFlow Datasets.
        split: "train", "validation" or "test".
        holdout: number of training examples that make the validation set where the
            data has none: stratified by label, and the same ones in every run.
        examples: how many of the training examples are used, likewise stratified; None:
            all.
        corrupt: "error" raises when such an image is read; "skip" decodes every image
            once while opening, names the bad ones in a warning and leaves them out, so
            that the order of the data depends on the files alone. The result's
            `skipped` counts them.

    Raises:
        ValueError: the data is missing, malformed or empty, has no such split, or
            `holdout` or `examples` cannot be honoured.
    """
    if split not in SPLITS:
        raise ValueError(f"{split=} must be one of {', '.join(map(repr, SPLITS))}.")
    if corrupt not in ("error", "skip"):
        raise ValueError(f"{corrupt=} must be 'error' or 'skip'.")
    if holdout < 0:
        raise ValueError(f"{holdout=} must be 0 or a number of training examples.")
    splits = _open(data)
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
        rest, held = arrays.stratified(read_labels(source), holdout)
        source = Subset(source, held if split == "validation" else rest)
    if examples is not None and split == "train" and examples != len(source):
        if not 0 < examples < len(source):
            raise ValueError(
                f"{examples=}, but {data!r} has {len(source):,} training examples; set "
                "config.task.examples to at most so many, or to None for all."
            )
        _, chosen = arrays.stratified(read_labels(source), examples)
        source = Subset(source, chosen)
    return source


def describe_left_out(source: Source) -> str:
    """What of the data is not read, to follow the number of records; "" for nothing."""
    parts = []
    if skipped := getattr(source, "skipped", 0):
        parts.append(f"{skipped:,} corrupt {'image' if skipped == 1 else 'images'}")
    by_reason: dict[str, list[str]] = {}
    for name, reason in getattr(source, "left_out", ()):
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        parts.append(f"{len(names):,} {reason}: {bounded.join_names(names, 3)}")
    return f" (left out: {'; '.join(parts)})" if parts else ""


def _open(data: str) -> Openers:
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
    folder = path.parent if arrays.is_idx(path.name) else path
    if not folder.is_dir():
        raise ValueError(
            f"{data!r} is no data set: expected an .npz, .zip or idx file, or a folder."
        )
    return arrays.open_idx(folder) or files.open_folder(folder)


def _find(data: str) -> pathlib.Path:
    """The path that `data` names.

    Raises:
        ValueError: nothing is there.
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
                f" (a relative path, looked for in {pathlib.Path.cwd()}; give it from "
                "there, or as an absolute path)"
            )
        shown = data if len(data) < 200 else data[:200] + "..."
        raise ValueError(f"{shown!r} does not exist{where}. {remedy}") from None
    return path


def _without_corrupt(source: "Source", data: str) -> "Source":
    """`source` without the images that cannot be decoded."""

    def fault(index: int) -> str | None:
        try:
            record = source[index]
            if isinstance(record["image"], bytes):
                decoding.decode(record["image"], 3, name=record["name"])
        except ValueError as error:  # a disk that fails is an OSError, and no reason
            return str(error).partition(". ")[0]  # to train on less
        return None

    if isinstance(source, arrays.Arrays):
        return source
    with concurrent.futures.ThreadPoolExecutor() as threads:  # Pillow frees the GIL
        faults = list(threads.map(fault, range(len(source))))
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
