"""Bags of feature vectors from the user's files: .npz arrays, or a table with a row an instance."""

import csv
import dataclasses
import hashlib
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Integer

from attn_jax.data import bounded
from attn_jax.folder import expand_local

SUFFIXES = (".npz", ".csv", ".tsv")


class Bag(NamedTuple):
    """The instances of a bag, and its label as written; None if the file has no labels."""

    name: str
    instances: Float32[np.ndarray, "K F"]
    label: str | None


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where a file keeps its parts.

    Attributes:
        bag, label: columns of a table; every other column is a feature.
        group: of an .npz with several sets: its arrays are GROUP_x, GROUP_bag, GROUP_y.
    """

    bag: str = "bag"
    label: str = "label"
    group: str | None = None


def read_bags(data: str, columns: Columns, *, labeled: bool = True) -> list[Bag]:
    """Reads the bags of a file, in the order in which they first occur.

    An .npz holds `x` [N, F], `bag` [N] and `y`: a label for each instance, or, if the bags are
    numbered from 0, for each bag. A .csv or .tsv has a row for each instance.

    Args:
        labeled: False: labels may be absent.

    Raises:
        ValueError: the file is missing or malformed; a feature is no finite number; the
            instances of a bag differ in label.
    """
    path = expand_local(data)
    shown = bounded.printable(data)
    if path.suffix not in SUFFIXES or not path.exists():
        raise ValueError(
            f"{shown!r} must be an existing file of bags: .npz (x, bag, y), .csv or .tsv (a "
            "row for each instance)."
        )
    bounded.check_regular(path)
    if path.suffix == ".npz":
        x, names, labels = _read_npz(path, columns, labeled)
    else:
        x, names, labels = _read_table(path, columns, labeled)
    x = check_features(x, shown)
    order: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        order.setdefault(name, []).append(row)
    bags = []
    for name, rows in order.items():
        found = {labels[row] for row in rows} if labels else {None}
        if len(found) > 1:
            shown_labels = ", ".join(sorted(map(str, found)))
            raise ValueError(
                f"{shown}: the instances of bag {bounded.printable(name)} have the labels "
                f"{shown_labels}; a bag has one label."
            )
        bags.append(Bag(name, x[rows], found.pop()))
    return bags


def check_features(x: np.ndarray, shown: str) -> Float32[np.ndarray, "N F"]:
    if x.ndim != 2 or not x.size or not np.issubdtype(x.dtype, np.number):
        raise ValueError(
            f"{shown}: the features are {x.dtype} {list(x.shape)}; they must be numbers [N, F]."
        )
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(
            f"{shown}: feature {column} of instance {row} is {x[row, column]}; every feature "
            "must be a finite number. Fill in missing values."
        )
    return x


def _read_npz(
    path: pathlib.Path, columns: Columns, labeled: bool
) -> tuple[np.ndarray, list[str], list[str] | None]:
    prefix = f"{columns.group}_" if columns.group else ""
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            files = {info.filename: info for info in archive.infolist()}
            for key in ("x", "bag", "y"):
                info = files.get(f"{prefix}{key}.npy")
                if info is not None:
                    bounded.check_expansion(info.compress_size, info.file_size, path)
                    arrays[key] = bounded.read_npy(archive, info)
    except Exception as error:  # a damaged archive raises many kinds
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no readable .npz file: {reason}") from error
    wanted = ("x", "bag", "y") if labeled else ("x", "bag")
    if missing := [f"{prefix}{key}" for key in wanted if key not in arrays]:
        held = bounded.join_names(sorted(name.removesuffix(".npy") for name in files))
        raise ValueError(
            f"{path} lacks the array {missing[0]}; it holds: {held}. Of several sets, "
            "config.task.group names one (GROUP_x, GROUP_bag, GROUP_y)."
        )
    bag = arrays["bag"]
    if bag.shape != arrays["x"].shape[:1]:
        raise ValueError(
            f"{path}: bag is {list(bag.shape)}, but x {list(arrays['x'].shape)}; bag names "
            "the bag of each instance."
        )
    names = [str(name) for name in bag.tolist()]
    if "y" not in arrays:
        return arrays["x"], names, None
    y = arrays["y"]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != bag.shape:
        numbers = np.unique(bag)
        numbered = np.issubdtype(bag.dtype, np.integer) and y.ndim == 1
        if not numbered or not np.array_equal(numbers, np.arange(len(y))):
            raise ValueError(
                f"{path}: y is {list(y.shape)} for {len(bag)} instances in {len(numbers)} "
                "bags; give a label for each instance, or number the bags from 0 and give "
                "one for each bag."
            )
        y = y[bag]
    return arrays["x"], names, [str(label) for label in y.tolist()]


def _read_table(
    path: pathlib.Path, columns: Columns, labeled: bool
) -> tuple[np.ndarray, list[str], list[str] | None]:
    shown = bounded.printable(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            header = next(lines, [])
            wanted = (columns.bag, columns.label) if labeled else (columns.bag,)
            if missing := [name for name in wanted if name not in header]:
                raise ValueError(
                    f"{shown} has no column {missing[0]!r}; its first line has: "
                    f"{bounded.join_names(header)}. Set config.task.bag_column and "
                    "config.task.label_column."
                )
            bag = header.index(columns.bag)
            label = header.index(columns.label) if columns.label in header else None
            features = [i for i in range(len(header)) if i not in (bag, label)]
            x, names, labels = [], [], []
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"{shown}, line {lines.line_num}: {len(cells)} columns instead of "
                        f"{len(header)}."
                    )
                x.append(
                    [
                        _read_number(cells[i], header[i], shown, lines.line_num)
                        for i in features
                    ]
                )
                names.append(cells[bag])
                labels.append("" if label is None else cells[label])
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{shown} is no table in UTF-8: {error}.") from error
    if not x:
        raise ValueError(f"{shown} has no row.")
    return np.array(x, np.float64), names, None if label is None else labels


def _read_number(cell: str, column: str, shown: str, line: int) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(
            f"{shown}, line {line}: {column}={bounded.printable(cell)!r} is no number. Leave out "
            "columns that are no features."
        ) from None


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


class FeatureBags:
    """Bags of one split, with standardized features.

    A record holds `instances` [K, F], `label` (a number), `size` (to which a bag is padded)
    and `name`.
    """

    skipped = 0
    left_out = ()

    def __init__(
        self,
        bags: Sequence[Bag],
        targets: Integer[np.ndarray, " N"],
        labels: tuple[str, ...],
        size: int,
        statistics: Mapping[str, Float32[np.ndarray, " F"]],
    ):
        self.bags, self.targets, self.labels = bags, targets, labels
        self.size, self.statistics = size, statistics

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> dict[str, Any]:
        bag = self.bags[index]
        return {
            "instances": standardize(bag.instances, self.statistics),
            "label": int(self.targets[index]),
            "size": self.size,
            "name": f"bag {bag.name}",
        }

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.labels, self.size)).encode())
        for bag, target in zip(self.bags, self.targets, strict=True):
            digest.update(f"{bag.name} {target} {bag.instances.shape}".encode())
            digest.update(np.ascontiguousarray(bag.instances).data)
        return digest.hexdigest()[:16]


def measure_features(
    bags: Sequence[Bag],
) -> dict[str, Float32[np.ndarray, " F"]]:
    """Mean and deviation of each feature over all instances; 1 for a constant feature."""
    x = np.concatenate([bag.instances for bag in bags]).astype(np.float64)
    deviation = x.std(axis=0)
    deviation[deviation == 0] = 1
    return {
        "mean": x.mean(axis=0).astype(np.float32),
        "deviation": deviation.astype(np.float32),
    }


def standardize(
    x: Float32[np.ndarray, "K columns"],
    statistics: Mapping[str, Float32[np.ndarray, " F"]],
) -> Float32[np.ndarray, "K columns"]:
    """Features of mean 0 and deviation 1 over the training instances.

    Raises:
        ValueError: another number of features than in training.
    """
    mean, deviation = statistics["mean"], statistics["deviation"]
    if x.shape[1] != len(mean):
        raise ValueError(
            f"an instance has {x.shape[1]} features, but {len(mean)} in training."
        )
    return (x - mean) / deviation
