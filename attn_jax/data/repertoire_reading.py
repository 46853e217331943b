"""Immune repertoires for a task: which file, which fold, how many sequences.

A task of repertoires inherits `RepertoireReading` and adds its objective.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from attn_jax.bounds import NonNegativeInt, Path, PositiveInt, Probability, Width
from attn_jax.data import folds
from attn_jax.data.repertoires import (
    Columns,
    LabeledRepertoires,
    Repertoire,
    draw_repertoire,
    read_labeled,
    read_repertoire,
)
from attn_jax.folder import expand_local


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepertoireReading:
    """Immune repertoires of two classes, generated or from files, for cross-validation.

    Repertoires are cut into `folds` parts as `attn_jax.data.bag_reading.BagReading` cuts bags.

    Attributes:
        data: a table (.tsv, .csv) of files and labels, see
            `attn_jax.data.repertoires.read_labeled`. "generated": drawn, see `draw_repertoire` there.
        file_column, label_column: of that table.
        sequence_column, count_column: of the files that it names. `count_column` None: every sequence counts
            once.
        folds, fold, fold_seed: number of parts, the part that is tested, and the seed of the cut.
        draw: in training, so many random sequences of a repertoire that has more. None: all.
        max_sequences: to which repertoires are padded. None: those of the largest. `bind` sets it.
        max_length: letters to which sequences are padded.
        use_counts: multiply the letters of a sequence by the logarithm of its count, as DeepRC does for
            CMV. The letters of a sequence that was seen once are then zeros.
        class_names: as in `BagReading`.
        repertoires, sequences, motifs, rate, data_seed: of generated data: how many repertoires, every
            second of them positive; of how many sequences; what is implanted, into which share of
            them; the seed, which is no part of a run's seed.

    Source: Widrich et al. 2020 (DeepRC).
    """

    data: Path = "generated"
    file_column: str = "file"
    label_column: str = "label"
    sequence_column: str = "amino_acid"
    count_column: str | None = "templates"
    folds: PositiveInt = 5
    fold: NonNegativeInt = 0
    fold_seed: NonNegativeInt = 0
    draw: Width | None = None
    max_sequences: Width | None = None
    max_length: Width = 30
    use_counts: bool = False
    class_names: tuple[str, ...] | None = None
    repertoires: Width = 200
    sequences: Width = 2000
    motifs: tuple[str, ...] = ("SFEN",)
    rate: Probability = 0.01
    data_seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        folds.check_fold(self.fold, self.folds)

    @property
    def columns(self) -> Columns:
        return Columns(
            self.file_column,
            self.label_column,
            self.sequence_column,
            self.count_column,
        )

    def source(self, split: str) -> LabeledRepertoires:
        """The repertoires of a split.

        Raises:
            ValueError: the data is missing or malformed, has not two labels, or too few
                repertoires; the split is none of train, validation, test.
        """
        found = self.read_all()
        written = [str(each.label) for each in found]
        names = folds.find_classes(written, self.class_names, self.data)
        splits = folds.cut_splits(written, self.folds, self.fold, self.fold_seed)
        chosen = folds.choose_split(splits, split)
        return LabeledRepertoires(
            [found[i] for i in chosen],
            np.array([names.index(written[i]) for i in chosen]),
            names,
            self.max_sequences or max(len(each.counts) for each in found),
        )

    def read_all(self) -> list[Repertoire]:
        """All repertoires."""
        if self.data != "generated":
            return read_labeled(self.data, self.columns)
        return [
            draw_repertoire(
                index,
                sequences=self.sequences,
                motifs=self.motifs,
                rate=self.rate,
                length=self.max_length,
                seed=self.data_seed,
            )
            for index in range(self.repertoires)
        ]

    def assets(self, source: LabeledRepertoires) -> dict[str, str]:
        """What predictions need: class names, and how many sequences a repertoire may have."""
        known = {"labels": list(source.labels), "max_sequences": source.size}
        return {"bags.json": json.dumps(known, indent=1)}

    def bind(self, assets: Mapping[str, str]) -> Any:
        """This task with what a run learned from its data, from its assets."""
        known = json.loads(assets.get("bags.json", "{}"))
        if not known:
            return self
        return dataclasses.replace(
            self,
            class_names=self.class_names or tuple(known["labels"]),
            max_sequences=self.max_sequences or known["max_sequences"],
        )

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """int8 instances [K, L], mask [K], factors [K] and label; all sequences if `rng` is None.

        Raises:
            ValueError: there are more sequences than `max_sequences`, or more letters than `max_length`.
        """
        found: Repertoire = record["repertoire"]
        size = record["size"]
        count, letters = found.sequences.shape
        if count > size or letters > self.max_length:
            raise ValueError(
                f"{found.name} has {count} sequences of up to {letters} letters; at most "
                f"config.task.max_sequences={size} of config.task.max_length={self.max_length} fit."
            )
        chosen = np.arange(count)
        if rng is not None and self.draw is not None:
            size = min(size, self.draw)
            if count > size:
                chosen = rng.choice(count, size, replace=False)
        instances = np.full((size, self.max_length), -1, np.int8)
        instances[: len(chosen), :letters] = found.sequences[chosen]
        factors = np.ones(size, np.float32)
        if self.use_counts:
            factors[: len(chosen)] = np.log(found.counts[chosen])
        return {
            "instances": instances,
            "mask": np.arange(size) < len(chosen),
            "factors": factors,
            "labels": np.int32(record["label"]),
        }

    def read_input(
        self, given: Any
    ) -> tuple[dict[str, Any], list[Mapping[str, np.ndarray]]]:
        """A repertoire from its file.

        Raises:
            ValueError: the file is missing or malformed, or has more sequences than fit.
        """
        found = read_repertoire(expand_local(given), self.columns)
        size = self.max_sequences or len(found.counts)
        row = self.example({"repertoire": found, "label": 0, "size": size}, None)
        del row["labels"]
        return {"input": given, "instances": len(found.counts)}, [row]
