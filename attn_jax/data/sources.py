"""Where records come from: one call, `load`, for embedded, local and catalogue data.

A source is random access and never shuffles, repeats or batches: that is the duty of
`pipeline.py` alone.
"""

import concurrent.futures
import hashlib
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from attn_jax.data import arrays, catalogue, files, images

SPLITS = ("train", "validation", "test")

Openers = Mapping[str, Callable[[], "Source"]]  # {split: opens it}


@runtime_checkable  # the test run checks it wherever it is an annotation
class Source(Protocol):
    """A random-access collection of records, safe to read from several threads and to
    pickle into worker processes.

    An image record holds `image` (uint8 [H, W, C], or the encoded file as `bytes` for
    `images.decode`), `label` (int), and `name` (str, for messages) where `image` is
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
            "FILE.npz": x_train, y_train, x_test, y_test (x_validation, y_validation),
                images uint8 [N, H, W] or [N, H, W, C];
            "DIR" with idx files (train-images-idx3-ubyte[.gz], ... t10k for the test
                set), or one of these files;
            "DIR" or "FILE.zip" with SPLIT/CLASS/IMAGE;
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
        rest, held = arrays.stratified(_labels(source), holdout)
        source = Subset(source, held if split == "validation" else rest)
    if examples is not None and split == "train" and examples != len(source):
        if not 0 < examples < len(source):
            raise ValueError(
                f"{examples=}, but {data!r} has {len(source):,} training examples; set "
                "config.task.examples to at most so many, or to None for all."
            )
        _, chosen = arrays.stratified(_labels(source), examples)
        source = Subset(source, chosen)
    return source


def _open(data: str) -> Openers:
    if data == "digits":
        return arrays.digits_openers()
    if data.startswith("tfds:"):
        return catalogue.openers(data.removeprefix("tfds:"))
    path = pathlib.Path(data).expanduser()
    if not data or not path.exists():
        raise ValueError(
            f"{data!r} does not exist. Set config.task.data to 'digits', to an .npz or "
            ".zip file, to a folder of images or idx files, or to 'tfds:NAME'."
        )
    if path.suffix == ".npz":
        return arrays.npz_openers(path)
    if path.suffix == ".zip":
        return files.zip_openers(path)
    folder = path.parent if arrays.is_idx(path.name) else path
    if not folder.is_dir():
        raise ValueError(
            f"{data!r} is no data set: expected an .npz, .zip or idx file, or a folder."
        )
    return arrays.idx_openers(folder) or files.folder_openers(folder)


class Subset:
    """The records of `source` at `indices`, in that order."""

    def __init__(
        self, source: "Source", indices: Integer[np.ndarray, " N"], skipped: int = 0
    ):
        self.source, self.indices = source, indices
        self.labels = source.labels
        self.skipped = skipped or getattr(source, "skipped", 0)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    @property
    def targets(self) -> np.ndarray:
        return _labels(self.source)[self.indices]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.fingerprint().encode())
        digest.update(self.indices.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def highest_label(source: "Source") -> int | None:
    """By the names or the list of the labels; None: only the records themselves tell."""
    if source.labels:
        return len(source.labels) - 1
    if isinstance(source, Subset):
        return highest_label(source.source)
    targets = getattr(source, "targets", None)
    return None if targets is None else int(targets.max())


def _labels(source: "Source") -> np.ndarray:
    """The label of every record; read record by record only where none are listed."""
    targets = getattr(source, "targets", None)
    if targets is None:
        targets = np.array([source[i]["label"] for i in range(len(source))])
    return targets


def _without_corrupt(source: "Source", data: str) -> "Source":
    """`source` without the images that cannot be decoded."""

    def fault(index: int) -> str | None:
        try:
            record = source[index]
            if isinstance(record["image"], bytes):
                images.decode(record["image"], 3, name=record["name"])
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
