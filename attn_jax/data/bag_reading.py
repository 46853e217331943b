"""The user's own bags of feature vectors: which file, which fold, which statistics.

A task of such bags inherits `BagReading` and adds its objective.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attn_jax.bounds import NonNegativeInt, Path, PositiveInt, Width
from attn_jax.data import bag_tables, bags, folds, invented


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagReading:
    """Bags of feature vectors of two classes, from a file, for cross-validation.

    Bags are cut into `folds` parts of equal shares of both classes: the test split is part `fold`, the
    validation split the next one, and training has the others. One run for each `fold` is a
    cross-validation. Features are standardized by the instances of the training bags.

    Attributes:
        data: an .npz (`x`, `bag`, `y`), .csv or .tsv, see `attn_jax.data.bag_tables.read_bags`.
            "generated": bags of random vectors, some of which hold a witness; needs no file.
        bag_column, label_column: columns of a table; all others are features.
        group: of an .npz with several sets: its arrays are GROUP_x, GROUP_bag, GROUP_y.
        folds, fold, fold_seed: number of parts, the part that is tested, and the seed of the cut,
            which is no part of a run's seed.
        max_size: instances to which bags are padded. None: those of the largest bag.
        class_names: the two labels as written in the data; the second one is the positive class.
            None: those of the data, sorted. `bind` sets it.

    Source: Andrews et al. 2002 (Fox, Tiger, Elephant); Ramsauer et al. 2021, sec. 4.
    """

    data: Path
    bag_column: str = "bag"
    label_column: str = "label"
    group: str | None = None
    folds: PositiveInt = 5
    fold: NonNegativeInt = 0
    fold_seed: NonNegativeInt = 0
    max_size: Width | None = None
    class_names: tuple[str, ...] | None = None
    # Means and deviations of the training instances, from `bind`; not a key of a config.
    _statistics: Mapping[str, np.ndarray] | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        folds.check_fold(self.fold, self.folds)

    @property
    def columns(self) -> bag_tables.Columns:
        return bag_tables.Columns(self.bag_column, self.label_column, self.group)

    def source(self, split: str) -> bag_tables.FeatureBags:
        """The bags of a split.

        Raises:
            ValueError: the data is missing or malformed, has not two labels, or too few
                bags; the split is none of train, validation, test.
        """
        if self.data == "generated":
            found = [bag_tables.Bag(*bag) for bag in invented.make_bags()]
        else:
            found = bag_tables.read_bags(self.data, self.columns)
        written = [str(bag.label) for bag in found]
        names = folds.find_classes(written, self.class_names, self.data)
        splits = folds.cut_splits(written, self.folds, self.fold, self.fold_seed)
        training = folds.choose_split(splits, "train")
        statistics = self._statistics or bag_tables.measure_features(
            [found[i].instances for i in training]
        )
        chosen = folds.choose_split(splits, split)
        return bag_tables.FeatureBags(
            [found[i] for i in chosen],
            np.array([names.index(written[i]) for i in chosen]),
            names,
            self.max_size or max(len(bag.instances) for bag in found),
            statistics,
        )

    def assets(self, source: bag_tables.FeatureBags) -> dict[str, str]:
        """What predictions need: class names, sizes, means and deviations."""
        statistics = {key: x.tolist() for key, x in source.statistics.items()}
        known = {"labels": list(source.labels), "max_size": source.size, **statistics}
        return {"bags.json": json.dumps(known, indent=1)}

    def bind(self, assets: Mapping[str, str]) -> Any:
        """This task with class names and statistics of a run, from its assets."""
        known = json.loads(assets.get("bags.json", "{}"))
        if not known:
            return self
        bound = dataclasses.replace(
            self,
            class_names=self.class_names or tuple(known["labels"]),
            max_size=self.max_size or known["max_size"],
        )
        statistics = {
            key: np.array(known[key], np.float32) for key in ("mean", "deviation")
        }
        object.__setattr__(bound, "_statistics", statistics)
        return bound

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """float32 instances [K, F], mask [K] and label."""
        del rng  # nothing random
        instances, mask = self.pad(record["instances"], record["size"], record["name"])
        return {
            "instances": instances,
            "mask": mask,
            "labels": np.int32(record["label"]),
        }

    def pad(
        self, instances: np.ndarray, size: int, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        return bags.pad_bag(list(instances), size, name=name)

    # --- predictions for new bags ---

    def expand_input(self, given: Any) -> Iterable[Any]:
        """The bags of a file; anything else is a bag."""
        if not isinstance(given, str):
            return [given]
        try:
            return bag_tables.read_bags(given, self.columns, labeled=False)
        except ValueError:
            return [given]  # `read_input` reports it

    def read_input(
        self, given: Any
    ) -> tuple[dict[str, Any], Sequence[Mapping[str, np.ndarray]]]:
        """A bag of a file, or an array [K, F].

        Raises:
            ValueError: it is none, or has other features or more instances than in training.
        """
        if isinstance(given, str):
            bag_tables.read_bags(given, self.columns, labeled=False)
            raise ValueError(f"{given!r} holds several bags; give them one by one.")
        bag = given
        if not isinstance(bag, bag_tables.Bag):
            array = np.asarray(given, np.float32)
            if array.ndim != 2:
                raise ValueError(
                    f"a bag is an array [instances, features], not {list(array.shape)}."
                )
            if array.size:  # `pad` refuses a bag without instances
                array = bag_tables.check_features(array, "the bag")
            bag = bag_tables.Bag("of an array", array, None)
        if self._statistics is None or self.max_size is None:
            raise ValueError(
                "the means of the features are unknown; predict with a run's folder."
            )
        x = bag_tables.standardize(bag.instances, self._statistics)
        instances, mask = self.pad(x, self.max_size, f"bag {bag.name}")
        named = {"input": bag.name, "instances": len(x)}
        return named, [{"instances": instances, "mask": mask}]
