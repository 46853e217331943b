"""Image classification: one label an image, cross-entropy, top-1 and top-5 accuracy."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from attn_jax.bounds import (
    NonNegativeFloat,
    NonNegativeInt,
    Path,
    Pixels,
    PositiveInt,
    Probability,
    Width,
)
from attn_jax.data import augment, framing, images, real_labels, sources


@dataclasses.dataclass(frozen=True)
class Classify:
    """Images from any source, augmented in training, to logits.

    Attributes:
        data: "digits" (embedded), a path (.npz, idx, folder, .zip) or "tfds:<name>".
        num_classes: of the model's head; at least the number of labels in the data.
        image_size: of the model's input, in pixels: one side or (height, width).
        channels: 1 or 3.
        holdout: training examples set aside where the data has no validation split.
        examples: of the training split, as many of each class as it has in proportion;
            None: all.
        corrupt: an image that cannot be decoded stops the run ("error"), or is named,
            counted and left out when the data is opened ("skip").
        crop: in training, "inception" takes a random area at a random aspect ratio and
            resizes it; "shift" pads by `shift_pixels` and crops back; "none" as evaluation.
        crop_area: bounds of the inception crop's share of the image.
        flip: mirror half of the training images left to right.
        randaugment: (layers, magnitude) of RandAugment after crop and flip; 10 is the
            paper's full magnitude. None is off; magnitude 0 is not (`data/augment.py`).
        erase: probability that a window of a training image becomes noise.
        mixup: alpha > 0 blends each training image and target with its neighbour's in
            the batch, with one a ~ Beta(alpha, alpha) a batch (big_vision's p, .2).
        cutmix: alpha > 0 pastes a window of the neighbour instead (timm: 1.0). With
            both, a coin decides for each batch.
        resize: smaller side in pixels before the central crop; None: no resize but to
            `image_size`, where the image has another size.
        label_smoothing: probability spread evenly over all classes, in training only.
        loss: "softmax", or "sigmoid" over each class by itself (as the paper pre-trains).
        real_labels: path of real.json, for an evaluation on ImageNet's validation images:
            all labels that fit each (Beyer et al. 2020). Adds `real_accuracy`.
    """

    data: Path
    num_classes: Width
    image_size: Pixels | tuple[Pixels, Pixels]
    channels: Width = 3
    holdout: NonNegativeInt = 0
    examples: PositiveInt | None = None
    corrupt: Literal["error", "skip"] = "error"
    crop: Literal["none", "inception", "shift"] = "none"
    crop_area: tuple[float, float] = (0.05, 1.0)
    shift_pixels: NonNegativeInt = 4
    flip: bool = False
    randaugment: tuple[int, int] | None = None
    erase: Probability = 0.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    resize: Pixels | None = None
    label_smoothing: Probability = 0.0
    loss_kind: Literal["softmax", "sigmoid"] = "softmax"
    real_labels: str | None = None

    def __post_init__(self) -> None:
        """Refuses augmentation that cannot be honoured, before any data is read."""
        pair = self.randaugment
        if pair is not None and (len(pair) != 2 or min(pair) < 0):
            raise ValueError(
                f"config.task.randaugment={pair} must be (layers, magnitude), both 0 or "
                "more, such as (2, 10); None is off."
            )
        if not 0 <= self.erase <= 1:
            raise ValueError(
                f"config.task.erase={self.erase} is a probability and must lie in 0..1; "
                "0 is off, 0.25 is usual."
            )
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < math.inf:
                raise ValueError(
                    f"config.task.{name}={alpha} is the alpha of Beta(alpha, alpha) and "
                    "must be positive and finite, such as 0.2; 0 is off."
                )

    @property
    def coefficients(self) -> dict[str, float]:
        return {"cross_entropy": 1.0}

    @property
    def size(self) -> tuple[int, int]:
        return framing.sides(self.image_size)

    def source(self, split: str) -> sources.Source:
        source = sources.load(
            self.data,
            split,
            holdout=self.holdout,
            examples=self.examples,
            corrupt=self.corrupt,
        )
        highest = sources.highest_label(source)
        if highest is not None and highest >= self.num_classes:
            raise ValueError(
                f"{self.data} has labels from 0 to {highest}, but config.task.num_classes="
                f"{self.num_classes}; set it and config.model.num_classes to {highest + 1}."
            )
        if self.real_labels is not None:
            real_labels.read(self.real_labels, self.num_classes)  # errors come early
        return source

    def assets(self, source: sources.Source) -> dict[str, str]:
        """What evaluation elsewhere must know of the training data."""
        known = {"labels": list(source.labels or ()), "value_range": [-1, 1]}
        return {"images.json": json.dumps(known, indent=1)}

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """uint8 image [H, W, C] and label; `rng` None means evaluation: no augmentation.

        With `real_labels`, also which classes [num_classes] fit the image.
        """
        name = record.get("name", "")
        if (
            not 0 <= record["label"] < self.num_classes
        ):  # would be an example of no class
            raise ValueError(
                f"{name or 'a record'} of {self.data} has the label {record['label']}, but "
                f"config.task.num_classes={self.num_classes}; labels count from 0."
            )
        image = images.decode(record["image"], self.channels, name=name)
        image = framing.frame(
            image,
            self.size,
            rng,
            crop=self.crop,
            crop_area=self.crop_area,
            shift_pixels=self.shift_pixels,
            flip=self.flip,
            resize=self.resize,
        )
        if rng is not None and self.randaugment is not None:
            image = augment.randaugment(image, *self.randaugment, rng)
        if rng is not None and self.erase:
            image = augment.random_erase(image, self.erase, rng)
        example = {"images": image, "labels": np.int32(record["label"])}
        if self.real_labels is not None:
            table = real_labels.read(self.real_labels, self.num_classes)
            fitting = table[real_labels.row_of(record, len(table))]
            example["real_labels"] = np.isin(np.arange(self.num_classes), fitting)
        return example

    def prepare(
        self, batch: Mapping[str, jax.Array], key: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Images to [-1, 1] float32, labels to target distributions [B, C].

        Training mixes both here, on the global batch, so that neighbours and draws do
        not depend on how many processes read it; `labels` stay those of the images.
        """
        targets = jax.nn.one_hot(batch["labels"], self.num_classes)
        if train and self.label_smoothing:
            targets = optax.smooth_labels(targets, self.label_smoothing)
        pixels = images.centred(batch["images"])
        if train and (self.mixup or self.cutmix):
            pixels, targets = self.mixed(pixels, targets, key)
        return {**batch, "images": pixels, "targets": targets}

    def mixed(
        self, pixels: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Images [B, H, W, C] and targets [B, C], each mixed with those one row before.

        Source: Zhang 2017 and big_vision, utils.py `get_mixup` (mixup); Yun 2019 and
        timm, data/mixup.py (cutmix, the coin).
        """
        beta_key, window_key, coin_key = jax.random.split(key, 3)
        window = jnp.asarray(self.cutmix > 0)
        if self.mixup and self.cutmix:
            window = jax.random.bernoulli(coin_key)
        a = beta(beta_key, jnp.where(window, self.cutmix, self.mixup))
        # What each pixel, and what the target, keeps of its own.
        pasted = cutmix_keep(window_key, a, (pixels.shape[1], pixels.shape[2]))
        blended = jnp.maximum(a, 1 - a)  # an image stays the larger part
        keep = jnp.where(window, pasted, blended)
        share = jnp.where(window, pasted.mean(), blended)
        keep = keep[None, :, :, None]
        pixels = keep * pixels + (1 - keep) * jnp.roll(pixels, 1, axis=0)
        targets = share * targets + (1 - share) * jnp.roll(targets, 1, axis=0)
        return pixels, targets

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"images": batch["images"]}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Cross-entropy in nats and accuracy, padded rows left out.

        `top5_accuracy` where there are more than 5 classes; of equal logits the lower class
        counts first. `real_accuracy` is the share of images whose first class is one of
        those that fit; images that none fits do not count.

        Raises:
            ValueError: the head's classes are not the task's.
        """
        logits = outputs["logits"].astype(jnp.float32)
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"the model has {logits.shape[-1]} classes and the task "
                f"{self.num_classes}; set config.model.num_classes and "
                "config.task.num_classes to the same number."
            )
        if self.loss_kind == "softmax":
            losses = optax.softmax_cross_entropy(logits, batch["targets"])
        else:
            each = optax.sigmoid_binary_cross_entropy(logits, batch["targets"])
            losses = each.sum(axis=-1)
        correct = logits.argmax(-1) == batch["labels"]
        valid = batch["valid"].astype(jnp.float32)
        count = valid.sum()
        terms = {
            "cross_entropy": ((losses * valid).sum(), count),
            "accuracy": ((correct * valid).sum(), count),
        }
        if self.num_classes > 5:
            in_top5 = rank_of(batch["labels"], logits) < 5
            terms["top5_accuracy"] = ((in_top5 * valid).sum(), count)
        if self.real_labels is not None:
            real = batch["real_labels"]
            fits = jnp.take_along_axis(real, logits.argmax(-1)[:, None], axis=-1)[:, 0]
            counted = valid * real.any(axis=-1)
            terms["real_accuracy"] = ((fits * counted).sum(), counted.sum())
        return terms


def rank_of(labels: Int[Array, " B"], logits: Float[Array, "B C"]) -> Int[Array, " B"]:
    """Each label's place, from 0, in the order of `jax.lax.top_k`: ties by lower class.

    Counted, not sorted: a count needs no exchange between devices. A nan is ahead of every
    number; where the label's own logit is nan, it is last.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    earlier = jnp.arange(logits.shape[-1])[None] < labels[:, None]
    ahead = ~(logits <= own) | ((logits == own) & earlier)
    return ahead.sum(axis=-1)


def beta(key: jax.Array, alpha: Float[Array, ""]) -> Float[Array, ""]:
    """A draw of Beta(alpha, alpha), as the ratio of two gammas.

    One call draws both: `jax.random.beta` takes two, each of which compiles for seconds.
    """
    first, second = jax.random.loggamma(key, alpha, (2,))
    return jax.nn.sigmoid(first - second)


def cutmix_keep(
    key: jax.Array, kept: Float[Array, ""], size: tuple[int, int]
) -> Float[Array, "H W"]:
    """Ones with a window of zeros, whose area is 1 - `kept` before the border cuts it.

    Its centre is uniform and its aspect the image's.
    """
    side = jnp.sqrt(1 - kept)
    inside = []
    for length, centre_key in zip(size, jax.random.split(key), strict=True):
        half = (length * side).astype(jnp.int32) // 2
        centre = jax.random.randint(centre_key, (), 0, length)
        pixel = jnp.arange(length)
        inside.append((centre - half <= pixel) & (pixel < centre + half))
    return 1.0 - (inside[0][:, None] & inside[1][None, :])
