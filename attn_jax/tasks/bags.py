"""Bag classification: is an instance of the target class in the bag?"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax.bounds import NonNegativeInt, Path, Pixels, Width
from attn_jax.data import bags, images, sources


@dataclasses.dataclass(frozen=True)
class Bags:
    """Bags of images with one label each, to one logit.

    The bags of a split are drawn from that split's images alone, so no image of a
    training bag is in a validation or test bag.

    Attributes:
        data: of the single images, as in `attn_jax.data.sources.load`.
        target: label of the images that make a bag positive.
        image_size: of the model's input, in pixels, one side; others are resized.
        channels: 1 or 3.
        holdout: training images set aside for validation bags where the data has no
            validation split.
        train_bags, validation_bags, test_bags: how many, half of them positive. They
            are fixed: an epoch is a pass over the same bags.
        mean_size, std_size: of the normal distribution of instances in a bag.
        max_size: instances to which a bag is clipped and padded.
        bag_seed: of the bags; not the run's, so that runs differ in seed on the same
            bags.
        shift_pixels: in training, each instance is moved by up to so many pixels.

    Source: Ilse et al. 2018 section 4.2; Ramsauer's notebook has the same task.
    """

    data: Path
    target: int
    image_size: Pixels
    channels: Width = 1
    holdout: NonNegativeInt = 0
    train_bags: int = 500
    validation_bags: int = 200
    test_bags: int = 1000
    mean_size: float = 10.0
    std_size: float = 2.0
    max_size: Width = 16
    bag_seed: int = 0
    shift_pixels: int = 0

    @property
    def coefficients(self) -> dict[str, float]:
        return {"cross_entropy": 1.0}

    def source(self, split: str) -> sources.Source:
        records = sources.load(self.data, split, holdout=self.holdout)
        number = {
            "train": self.train_bags,
            "validation": self.validation_bags,
            "test": self.test_bags,
        }
        # The same seed for all splits would give them bags of the same sizes in turn.
        seed = 3 * self.bag_seed + sources.SPLITS.index(split)
        return bags.LabelledBags(
            records,
            target=self.target,
            bags=number[split],
            mean_size=self.mean_size,
            std_size=self.std_size,
            max_size=self.max_size,
            seed=seed,
            name=f"{self.data} {split} bag",
        )

    def assets(self, source: sources.Source) -> dict[str, str]:
        """What evaluation elsewhere must know of the training data."""
        known = {"labels": list(source.labels or ()), "value_range": [-1, 1]}
        return {"bags.json": json.dumps(known, indent=1)}

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """uint8 instances [K, H, W, C], mask [K], label; `rng` None: no augmentation.

        Raises:
            ValueError: the bag has no instance, or more than `max_size`.
        """
        size = (self.image_size, self.image_size)
        pictures = []
        for instance in record["instances"]:
            name = instance.get("name", "")
            image = images.decode(instance["image"], self.channels, name=name)
            if image.shape[:2] != size:
                image = images.resize_u8(image, size)
            if rng is not None and self.shift_pixels:
                image = images.shift_crop(image, self.shift_pixels, rng)
            pictures.append(image)
        stacked, mask = bags.padded(pictures, self.max_size, name=record["name"])
        label = np.int32(record["label"])
        return {"instances": stacked, "mask": mask, "labels": label}

    def prepare(
        self, batch: Mapping[str, jax.Array], key: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Instances to [-1, 1] float32."""
        del key, train  # nothing random
        return {**batch, "instances": images.centred(batch["instances"])}

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"instances": batch["instances"], "mask": batch["mask"]}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Binary cross-entropy in nats and accuracy, padded rows left out."""
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
        """Area under the receiver operating characteristic, over the whole set."""
        del records  # the labels come with the predictions
        labels, logits = predictions["labels"], predictions["logits"]
        return {"auc": bags.area_under_roc(labels, logits)}
