"""Tables with a row an example: embedded ones and the user's, in folds, with standardized features.

A task of such tables inherits `RowReading` and adds its objective.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Integer

from attn_jax.bounds import NonNegativeInt, Path, PositiveInt
from attn_jax.data import bag_tables, bounded, folds
from attn_jax.folder import expand_local

EMBEDDED = ("iris", "wine", "breast_cancer", "digits")  # of scikit-learn
SUFFIXES = (".csv", ".tsv")
NO_ROW = -1  # the number of a row that is not stored


class Rows(NamedTuple):
    """A table: features [N, F], the name of each row, labels as written, names of the features."""

    x: Float32[np.ndarray, "N F"]
    names: list[str]
    labels: list[str] | None
    features: tuple[str, ...]


def read_rows(data: str, label: str, *, labeled: bool = True) -> Rows:
    """Reads an embedded table, or a .csv or .tsv with named columns.

    Args:
        data: one of `EMBEDDED`, or a path.
        label: the column of the labels; every other column is a feature.
        labeled: False: the labels may be absent.

    Raises:
        ValueError: the file is missing or malformed, or a feature is no finite number.
    """
    if data in EMBEDDED:
        import sklearn.datasets  # slow to import

        table = getattr(sklearn.datasets, f"load_{data}")()
        names = [f"row {i}" for i in range(len(table.data))]
        labels = [str(table.target_names[i]) for i in table.target]
        features = tuple(map(str, table.feature_names))
        return Rows(table.data.astype(np.float32), names, labels, features)
    path = expand_local(data)
    shown = bounded.printable(data)
    if path.suffix not in SUFFIXES or not path.exists():
        raise ValueError(
            f"{shown!r} must be an existing .csv or .tsv, or one of {', '.join(EMBEDDED)}."
        )
    bounded.check_regular(path)
    columns = bag_tables.Columns(bag=None, label=label)
    found = bag_tables.read_table(path, columns, labeled=labeled)
    x = bag_tables.check_features(found.x, shown)
    return Rows(x, found.names, found.labels, found.features)


class FeatureRows:
    """Rows of one split, with standardized features.

    A record holds `features` [F], `label` (a number), `own` (its number among the stored rows, or
    `NO_ROW`) and `name`.
    """

    skipped = 0
    left_out = ()

    def __init__(
        self,
        x: Float32[np.ndarray, "N F"],
        targets: Integer[np.ndarray, " N"],
        own: Integer[np.ndarray, " N"],
        names: Sequence[str],
        labels: tuple[str, ...],
    ):
        self.x, self.targets, self.own = x, targets, own
        self.names, self.labels = names, labels

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "features": self.x[index],
            "label": int(self.targets[index]),
            "own": int(self.own[index]),
            "name": self.names[index],
        }

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.labels, self.x.shape)).encode())
        for array in (self.x, self.targets.astype("<i8"), self.own.astype("<i8")):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


class Memory(NamedTuple):
    """What a run stores: training rows as they are, their classes, and how to read more rows."""

    rows: Float32[np.ndarray, "K F"]
    targets: Integer[np.ndarray, " K"]
    statistics: Mapping[str, Float32[np.ndarray, " F"]]
    labels: tuple[str, ...]
    features: tuple[str, ...]

    @property
    def x(self) -> Float32[np.ndarray, "K F"]:
        """The rows, standardized."""
        return bag_tables.standardize(self.rows, self.statistics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowReading:
    """Rows of a table with one label each, in folds for cross-validation.

    Rows are cut into `folds` parts of equal shares of the classes: the test split is part `fold`, the
    validation split the next one, and training has the others. One run for each `fold` is a
    cross-validation. Features are standardized by the training rows, which are also what the model
    stores; a run keeps them in its folder (assets/table.json).

    Attributes:
        data: "iris", "wine", "breast_cancer" or "digits" (embedded), or a .csv or .tsv with a name for
            each column in its first line and a number in every cell but the labels.
        label_column: of a file; all other columns are features.
        folds, fold, fold_seed: number of parts, the part that is tested, and the seed of the cut,
            which is no part of a run's seed.
        class_names: the labels as written in the data. None: those of the data, sorted. `bind` sets it.
    """

    data: Path
    label_column: str = "label"
    folds: PositiveInt = 5
    fold: NonNegativeInt = 0
    fold_seed: NonNegativeInt = 0
    class_names: tuple[str, ...] | None = None
    # Of the run, from `bind`; not a key of a config.
    _memory: Memory | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        folds.check_fold(self.fold, self.folds)

    @functools.cached_property
    def rows(self) -> Rows:
        return read_rows(self.data, self.label_column)

    @functools.cached_property
    def memory(self) -> Memory:
        """The stored rows: those of the run, or else the training rows of the data.

        Raises:
            ValueError: the data is missing or malformed, or has other labels than `class_names`.
        """
        if self._memory is not None:
            return self._memory
        labels = self.class_names or tuple(sorted(set(self.rows.labels or ())))
        inside = self.cut()["train"]
        rows = self.rows.x[inside]
        return Memory(
            rows,
            self.find_targets(labels)[inside],
            bag_tables.measure_features([rows]),
            labels,
            self.rows.features,
        )

    def cut(self) -> dict[str, np.ndarray]:
        """{split: which rows of the data are in it}."""
        labels = self.rows.labels or []
        return folds.cut_splits(labels, self.folds, self.fold, self.fold_seed)

    def find_targets(self, labels: tuple[str, ...]) -> Integer[np.ndarray, " N"]:
        """The number of each row's label among `labels`."""
        written = self.rows.labels or []
        if unknown := sorted(set(written) - set(labels)):
            raise ValueError(
                f"{bounded.printable(self.data)} has the label {unknown[0]!r}, which is none of "
                f"{bounded.join_names(list(labels))}. Correct it, or train on it."
            )
        numbers = {label: number for number, label in enumerate(labels)}
        return np.array([numbers[label] for label in written])

    def source(self, split: str) -> FeatureRows:
        """The rows of a split.

        Raises:
            ValueError: the data is missing or malformed, a label is rarer than `folds`, the columns
                are not those of the run; the split is none of train, validation, test.
        """
        cut, memory = self.cut(), self.memory
        if split not in cut:
            raise ValueError(f"{split=} must be one of {', '.join(cut)}.")
        self.check_columns(self.rows.features, self.data)
        chosen = np.flatnonzero(cut[split])
        rows = self.rows.x[chosen]
        # Another table may be evaluated, whose rows are none of those stored.
        stored = split == "train" and np.array_equal(rows, memory.rows)
        return FeatureRows(
            bag_tables.standardize(rows, memory.statistics),
            self.find_targets(memory.labels)[chosen],
            np.arange(len(rows)) if stored else np.full(len(rows), NO_ROW),
            [self.rows.names[i] for i in chosen],
            memory.labels,
        )

    def check_columns(self, features: tuple[str, ...], data: str) -> None:
        known = self.memory.features
        if features != known:
            other = next((f for f in known if f not in features), None)
            what = (
                f"lacks the column {other!r}"
                if other
                else "has others or another order"
            )
            raise ValueError(
                f"{bounded.printable(data)} {what}; the features of the training are, in order: "
                f"{bounded.join_names(list(known))}."
            )

    def assets(self, source: FeatureRows) -> dict[str, str]:
        """What predictions need: the stored rows, class and column names, means and deviations."""
        del source  # the memory is that of the training split, whichever is evaluated
        known = self.memory
        arrays = {"rows": known.rows, "targets": known.targets, **known.statistics}
        saved = {key: array.tolist() for key, array in arrays.items()}
        names = {"labels": list(known.labels), "features": list(known.features)}
        return {"table.json": json.dumps({**names, **saved})}

    def bind(self, assets: Mapping[str, str]) -> Any:
        """This task with the stored rows of a run, from its assets."""
        known = json.loads(assets.get("table.json", "{}"))
        if not known:
            return self
        labels = tuple(known["labels"])
        bound = dataclasses.replace(self, class_names=self.class_names or labels)
        memory = Memory(
            np.array(known["rows"], np.float32),
            np.array(known["targets"], np.int64),
            {key: np.array(known[key], np.float32) for key in ("mean", "deviation")},
            labels,
            tuple(known["features"]),
        )
        object.__setattr__(bound, "_memory", memory)
        return bound

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """float32 features [F], the number among the stored rows, and the label."""
        del rng  # nothing random
        return {
            "features": record["features"],
            "own": np.int32(record["own"]),
            "labels": np.int32(record["label"]),
        }

    # --- predictions for new rows ---

    def expand_input(self, given: Any) -> Iterable[Any]:
        """The rows of a file with their names; anything else is a row."""
        if not isinstance(given, str):
            return [given]
        try:
            found = read_rows(given, self.label_column, labeled=False)
            self.check_columns(found.features, given)
        except ValueError:
            return [given]  # `read_input` reports it
        return list(zip(found.names, found.x, strict=True))

    def read_input(
        self, given: Any
    ) -> tuple[dict[str, Any], Sequence[Mapping[str, np.ndarray]]]:
        """A named row of a file, {column: number}, or an array [F].

        Raises:
            ValueError: it is none, or has other features than in training.
        """
        if isinstance(given, str):
            found = read_rows(given, self.label_column, labeled=False)
            self.check_columns(found.features, given)
            raise ValueError(f"{given!r} holds several rows; give them one by one.")
        name, row = given if isinstance(given, tuple) else ("of an array", given)
        if isinstance(row, Mapping):
            self.check_columns(tuple(row), "the row")
            name, row = "of a dict", list(row.values())
        x = bag_tables.check_features(np.asarray([row], np.float64), f"the row {name}")
        x = bag_tables.standardize(x, self.memory.statistics)
        return {"input": name}, [{"features": x[0], "own": np.int32(NO_ROW)}]
