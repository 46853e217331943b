"""Cross-validation of labeled bags and rows: their classes, and which are in which split."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from attn_jax.data import bounded


def check_fold(fold: int, folds: int) -> None:
    """Raises ValueError if there is no such part."""
    if fold >= folds:
        raise ValueError(
            f"config.task.fold={fold} must be below config.task.folds={folds}; "
            "parts are numbered from 0."
        )


def find_classes(
    labels: Sequence[str], class_names: tuple[str, ...] | None, data: str
) -> tuple[str, ...]:
    """The two classes: those given, or those of the data, sorted.

    Raises:
        ValueError: the data has not these two.
    """
    found = sorted(set(labels))
    names = class_names or tuple(found)
    if len(names) != 2 or not set(found) <= set(names):
        raise ValueError(
            f"{bounded.printable(data)} has the labels "
            f"{bounded.join_names(found)}; there must be two"
            + (f", {' and '.join(names)}." if class_names else ".")
        )
    return names


def cut_splits(
    labels: Sequence[str], folds: int, fold: int, seed: int
) -> dict[str, Bool[np.ndarray, " N"]]:
    """{split: which bags it has}: test is part `fold`, validation the next, training the others.

    Raises:
        ValueError: a label is rarer than `folds`.
    """
    parts = assign_folds(labels, folds, seed)
    test, validation = parts == fold, parts == (fold + 1) % folds
    return {"train": ~(test | validation), "validation": validation, "test": test}


def choose_split(
    splits: dict[str, Bool[np.ndarray, " N"]], split: str
) -> Int64[np.ndarray, " n"]:
    """The numbers of the bags of a split.

    Raises:
        ValueError: there is no such split.
    """
    if split not in splits:
        raise ValueError(f"{split=} must be one of {', '.join(splits)}.")
    return np.flatnonzero(splits[split])


def assign_folds(
    labels: Sequence[str], folds: int, seed: int
) -> Int64[np.ndarray, " N"]:
    """The fold of each bag, stratified by label.

    Raises:
        ValueError: a label is rarer than `folds`.
    """
    from sklearn.model_selection import StratifiedKFold  # slow to import

    names, counts = np.unique(labels, return_counts=True)
    if folds < 3 or counts.min() < folds:
        raise ValueError(
            f"config.task.folds={folds} must be 3 or more (train, validation, test), and at "
            f"most the number of bags of the rarest label, {counts.min()} of {str(names[counts.argmin()])!r}."
        )
    cutter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    found = np.zeros(len(labels), np.int64)
    for number, (_, held) in enumerate(cutter.split(np.zeros(len(labels)), labels)):
        found[held] = number
    return found
