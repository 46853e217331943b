"""Bag classification: does a bag contain an instance of the target class?"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax import metrics
from attn_jax.bounds import Bound, NonNegativeInt, PositiveInt, Probability, Width
from attn_jax.data import bags, generated_bags, images, sources
from attn_jax.data.bag_reading import BagReading
from attn_jax.data.reading import ImageReading
from attn_jax.data.repertoire_reading import RepertoireReading


class BagObjective:
    """One logit for each bag: cross-entropy, accuracy, and the area under the ROC curve."""

    @property
    def coefficients(self) -> dict[str, float]:
        return {"cross_entropy": 1.0}

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"instances": batch["instances"], "mask": batch["mask"]}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Binary cross-entropy in nats and accuracy, without padded rows."""
        logits = outputs["logits"].astype(jnp.float32)
        labels = batch["labels"]
        losses = optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32))
        correct = (logits > 0) == (labels == 1)
        valid = batch["valid"].astype(jnp.float32)
        count = valid.sum()
        return {
            "cross_entropy": ((losses * valid).sum(), count),
            "accuracy": ((correct * valid).sum(), count),
        }

    def predictions(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        logits = outputs["logits"].astype(jnp.float32)
        return {"logits": logits, "labels": batch["labels"]}

    def score(
        self, predictions: Mapping[str, np.ndarray], records: sources.Source
    ) -> dict[str, float]:
        """`auc`: the area under the ROC curve, over the whole split."""
        del records  # the labels come with the predictions
        labels, logits = predictions["labels"], predictions["logits"]
        return {"auc": bags.area_under_roc(labels, logits)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bags(BagObjective, ImageReading):
    """Binary classification of bags of images.

    The bags of a split are drawn from that split's images alone, so no image of a
    training bag is in a validation or test bag.

    `attn_jax.data.reading.ImageReading` describes the fields that select and read the
    single images.

    Attributes:
        target: label of the images that make a bag positive.
        class_names: names of the labels that `target` refers to. The target is then found
            by name in data with class names. None: `target` is a label of the data itself.
            `bind` sets it.
        channels: 1 (gray) or 3 (RGB).
        train_bags, validation_bags, test_bags: number of bags, half of them positive. They
            are fixed: an epoch is a pass over the same bags.
        mean_size, std_size: of the normally distributed number of instances in a bag.
        max_size: number of instances to which bags are clipped and padded.
        witnesses: images of the target in a positive bag. None: as many as chance puts there,
            one or more.
        bag_seed: seed of the bags; runs with different seeds share them.
        shift_pixels: in training, each instance is shifted by up to this many pixels.

    Source: Ilse et al. 2018 section 4.2; Ramsauer's notebook has the same task.
    """

    target: int
    class_names: tuple[str, ...] | None = None
    channels: Width = 1
    train_bags: int = 500
    validation_bags: int = 200
    test_bags: int = 1000
    mean_size: float = 10.0
    std_size: float = 2.0
    max_size: Width = 16
    witnesses: PositiveInt | None = None
    bag_seed: int = 0
    shift_pixels: int = 0

    def source(self, split: str) -> sources.Source:
        """The bags of one split.

        Raises:
            ValueError: the data is missing or malformed, lacks the target's class or has
                too few images.
        """
        records = self.open(split)
        number = {
            "train": self.train_bags,
            "validation": self.validation_bags,
            "test": self.test_bags,
        }
        # With one seed for all splits, their bags would have the same sequence of sizes.
        seed = 3 * self.bag_seed + sources.SPLITS.index(split)
        return bags.LabeledBags(
            records,
            target=self.find_target(records),
            bags=number[split],
            mean_size=self.mean_size,
            std_size=self.std_size,
            max_size=self.max_size,
            witnesses=self.witnesses,
            seed=seed,
            name=f"{self.data} {split} bag",
        )

    def invent_record(self) -> dict[str, Any]:
        """A bag of one black image, to plan a run without its data."""
        return {"instances": [super().invent_record()], "label": 0, "name": "invented"}

    def find_target(self, records: sources.Source) -> int:
        """The label of the target class in this data."""
        names = self.class_names
        if names is None or not records.labels or self.target >= len(names):
            return self.target
        if names[self.target] not in records.labels:
            raise ValueError(
                f"{self.data!r} has no class {names[self.target]!r}, which is the target "
                f"(config.task.target={self.target}); it has: "
                f"{', '.join(records.labels[:8])}. Use data with this class."
            )
        return records.labels.index(names[self.target])

    def bind(self, assets: Mapping[str, str]) -> "Bags":
        """This task with the class names of a run's training images, from its assets."""
        names = json.loads(assets.get("instances.json", "{}")).get("labels")
        if not names or self.class_names is not None:
            return self
        return dataclasses.replace(self, class_names=tuple(names))

    def assets(self, source: bags.LabeledBags) -> dict[str, str]:
        """Files that an evaluation needs: names of the bags' labels and of the classes."""
        names = self.class_names or source.source.labels or ()
        return {
            "bags.json": self.describe(source.labels),
            "instances.json": json.dumps({"labels": list(names)}, indent=1),
        }

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """uint8 instances [K, H, W, C], mask [K] and label; not augmented if `rng` is None.

        Raises:
            ValueError: the bag has no instance, or more than `max_size`.
        """
        pictures = []
        for instance in record["instances"]:
            image = self.read(instance, rng)
            if rng is not None and self.shift_pixels:
                image = images.shift_crop(image, self.shift_pixels, rng)
            pictures.append(image)
        stacked, mask = bags.pad_bag(pictures, self.max_size, name=record["name"])
        label = np.int32(record["label"])
        return {"instances": stacked, "mask": mask, "labels": label}

    def prepare(
        self, batch: Mapping[str, jax.Array], key: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Converts instances to float32 in the model's range."""
        del key, train  # nothing random
        return {**batch, "instances": self.to_model_range(batch["instances"])}


class OwnBagObjective(BagObjective):
    """The objective of bags with named classes, of which new ones are predicted."""

    class_names: tuple[str, ...] | None

    INTERMEDIATES = True  # `predict` asks for them: the weights of the instances

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, Any]],
        top: int,
    ) -> dict[str, Any]:
        """`predictions`: the classes as {"label", "probability"}, the more probable first.

        Of a pooling that weighs instances also `weights`: the `top` instances as {"instance", "weight"},
        by their number in the bag, from 0.
        """
        del rows
        chance = float(jax.nn.sigmoid(outputs[0]["logits"]))
        chances = np.array([1 - chance, chance])
        names = self.class_names or ("0", "1")
        found = {"predictions": metrics.rank_classes(chances, names, top)}
        if "weights" not in outputs[0]:
            return found
        weights = outputs[0]["weights"][: named["instances"]]
        found["weights"] = [
            {"instance": int(i), "weight": float(weights[i])}
            for i in np.argsort(-weights, kind="stable")[:top]
        ]
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureBags(BagReading, OwnBagObjective):
    """Binary classification of the user's own bags of feature vectors.

    `attn_jax.data.bag_reading.BagReading` describes the fields.

    Source: Andrews et al. 2002 (Fox, Tiger, Elephant); Ramsauer et al. 2021, sec. 4.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repertoires(RepertoireReading, OwnBagObjective):
    """Binary classification of immune repertoires, bags of sequences of amino acids.

    `attn_jax.data.repertoire_reading.RepertoireReading` describes the fields.

    Source: Widrich et al. 2020 (DeepRC).
    """

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {**super().inputs(batch), "factors": batch["factors"]}


class GeneratedObjective(BagObjective):
    """The objective of bags that a seed generates: `BitPatterns`, `LatchSequences`."""

    def assets(self, source: generated_bags.GeneratedBags) -> dict[str, str]:
        """The names of the labels."""
        return {"bags.json": json.dumps({"labels": list(source.labels)}, indent=1)}

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """float32 instances [K, F], mask [K] (every instance is real) and label."""
        del rng  # nothing random
        return {
            "instances": record["instances"].astype(np.float32),
            "mask": np.ones(len(record["instances"]), bool),
            "labels": np.int32(record["label"]),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitPatterns(GeneratedObjective):
    """Bags of bit patterns: a bag is positive if one of its instances is a signal.

    Attributes:
        bags, instances, bits: how many bags, of how many instances, of how many bits.
        signals: distinct patterns that occur in no negative bag.
        signals_per_bag: instances of a positive bag that are signals.
        positive: share of positive bags.
        held_out: the test split has so many bags from each end.
        signal_seed, bag_seed: of the signals and of the bags; runs with different seeds
            share them. The defaults give the bags of the official example.

    Source: the official code, see `attn_jax.data.generated_bags.draw_bit_patterns`.
    """

    bags: Width = 2048
    instances: Width = 16
    bits: Annotated[int, Bound(1, 32)] = 8
    signals: PositiveInt = 8
    signals_per_bag: PositiveInt = 1
    positive: Probability = 0.5
    held_out: PositiveInt = 256
    signal_seed: NonNegativeInt = 43
    bag_seed: NonNegativeInt = 44

    def source(self, split: str) -> generated_bags.GeneratedBags:
        """The bags of "train" or "test".

        Raises:
            ValueError: the bags cannot be drawn, or there is no such split.
        """
        drawn, _ = generated_bags.draw_bit_patterns(
            bags=self.bags,
            instances=self.instances,
            bits=self.bits,
            signals=self.signals,
            signals_per_bag=self.signals_per_bag,
            positive=self.positive,
            signal_seed=self.signal_seed,
            bag_seed=self.bag_seed,
        )
        return generated_bags.GeneratedBags(drawn, split, self.held_out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatchSequences(GeneratedObjective):
    """Sequences of characters of which the first alone tells the label.

    Attributes:
        sequences, length, characters: how many, how long, of how many characters.
        held_out: the test split has so many sequences from each end.
        sequence_seed: of the sequences. The default gives those of the official example.

    Source: the official code, see `attn_jax.data.generated_bags.draw_latch_sequences`.
    """

    sequences: Width = 4096
    length: Width = 32
    characters: Width = 20
    held_out: PositiveInt = 512
    sequence_seed: NonNegativeInt = 43

    def source(self, split: str) -> generated_bags.GeneratedBags:
        """The sequences of "train" or "test".

        Raises:
            ValueError: the sequences cannot be drawn, or there is no such split.
        """
        drawn = generated_bags.draw_latch_sequences(
            sequences=self.sequences,
            length=self.length,
            characters=self.characters,
            seed=self.sequence_seed,
        )
        return generated_bags.GeneratedBags(drawn, split, self.held_out)
