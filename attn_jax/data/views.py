"""Sources derived from another source: a part of its records, or other label numbers."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Integer

from attn_jax.data import bounded


class Subset:
    """The records of `source` at `indices`, in that order."""

    def __init__(
        self, source: Any, indices: Integer[np.ndarray, " N"], skipped: int = 0
    ):
        self.source, self.indices = source, indices
        self.labels = source.labels
        self.skipped = skipped or getattr(source, "skipped", 0)
        self.left_out = getattr(source, "left_out", ())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    @property
    def targets(self) -> np.ndarray:
        return read_labels(self.source)[self.indices]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.fingerprint().encode())
        digest.update(self.indices.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


class Relabeled:
    """The records of `source` with label i replaced by `numbers[i]`.

    `labels` are the names of the new numbers. `numbers` is -1 for a label that does not
    occur in the records and has no new number.
    """

    def __init__(
        self, source: Any, numbers: Integer[np.ndarray, " L"], labels: tuple[str, ...]
    ):
        self.source, self.numbers, self.labels = source, numbers, labels
        self.skipped = getattr(source, "skipped", 0)
        self.left_out = getattr(source, "left_out", ())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        return {**record, "label": int(self.numbers[record["label"]])}

    @property
    def targets(self) -> np.ndarray:
        return self.numbers[read_labels(self.source)]

    def fingerprint(self) -> str:
        text = f"{self.source.fingerprint()} {self.numbers.tolist()} {self.labels}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def match_labels(source: Any, names: Sequence[str], data: str) -> Any:
    """Renumbers the labels of a source as in `names`, matched by name.

    A source without label names is returned as it is.

    Raises:
        ValueError: the source has examples of a class that is not in `names`.
    """
    names = tuple(names)
    if not source.labels or source.labels == names:
        return source
    present = set(np.unique(read_labels(source)).tolist())
    number = {name: i for i, name in enumerate(names)}
    if unknown := [
        name
        for label, name in enumerate(source.labels)
        if label in present and name not in number
    ]:
        raise unknown_classes_error(unknown, names, data)
    known = {source.labels[label] for label in present}
    if absent := [name for name in names if name not in known]:
        logging.warning(
            "%r has no example of %d of the %d classes: %s",
            data,
            len(absent),
            len(names),
            bounded.join_names(absent),
        )
    numbers = np.array([number.get(name, -1) for name in source.labels], np.int64)
    return Relabeled(source, numbers, names)


class Reordered:
    """The records of `source` with `labels` as the classes of their sets of labels."""

    def __init__(self, source: Any, labels: tuple[str, ...]):
        self.source, self.labels = source, labels
        self.places = [labels.index(label) for label in source.labels]
        self.skipped = getattr(source, "skipped", 0)
        self.left_out = getattr(source, "left_out", ())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        label = np.zeros(len(self.labels), bool)
        label[self.places] = record["label"]
        return {**record, "label": label}

    def fingerprint(self) -> str:
        text = f"{self.source.fingerprint()} {self.labels}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def match_label_sets(source: Any, names: Sequence[str], data: str) -> Any:
    """The records of a source whose label is bool [classes], with `names` as the classes.

    Raises:
        ValueError: the source has a class that is not in `names`.
    """
    if source.labels == (names := tuple(names)):
        return source
    if unknown := [label for label in source.labels if label not in names]:
        raise unknown_classes_error(unknown, names, data)
    return Reordered(source, names)


def unknown_classes_error(
    unknown: Sequence[str], names: Sequence[str], data: str
) -> ValueError:
    return ValueError(
        f"{data!r} holds {len(unknown)} classes that the run does not know: "
        f"{bounded.join_names(unknown)}. It knows: {bounded.join_names(names)}. Leave these "
        "classes out, or rename them."
    )


def find_highest_label(source: Any) -> int | None:
    """Returns the highest label that the source may hold; None if this takes reading all."""
    if source.labels:
        return len(source.labels) - 1
    if isinstance(source, Subset):
        return find_highest_label(source.source)
    targets = getattr(source, "targets", None)
    return None if targets is None else int(targets.max())


def read_labels(source: Any) -> np.ndarray:
    """Returns the label of every record; reads the records if the source lists no labels."""
    targets = getattr(source, "targets", None)
    if targets is None:
        targets = np.array([source[i]["label"] for i in range(len(source))])
    return targets
