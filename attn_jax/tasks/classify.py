"""Image classification: one label per image, cross-entropy, top-1 and top-5 accuracy."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jaxtyping import Array, Float, Int, UInt8

from attn_jax import metrics
from attn_jax.bounds import NonNegativeFloat, Probability, Width
from attn_jax.data import augment, real_labels, sources
from attn_jax.data.reading import CroppedImageReading
from attn_jax.data.views import find_highest_label, match_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify(CroppedImageReading):
    """Classification of images from any source, augmented in training.

    `attn_jax.data.reading.CroppedImageReading` describes the fields that select and read
    the images.

    Attributes:
        num_classes: size of the model's head; must match the classes of the data.
        class_names: names of the model's classes, in order. Data with class names is
            matched to them by name. None: the data's own classes. `bind` sets it.
        randaugment: (layers, magnitude) of RandAugment after crop and flip; 10 is the
            paper's full magnitude. None is off; magnitude 0 is not (`data/augment.py`).
        erase: probability that a window of a training image is replaced by noise.
        mixup: alpha > 0 blends each training image and target with the previous ones in
            the batch, with one a ~ Beta(alpha, alpha) per batch (big_vision: p = 0.2).
        cutmix: alpha > 0 pastes a window of the previous image instead (timm: 1.0). With
            both, each batch uses one of them at random.
        label_smoothing: probability spread evenly over all classes, in training only.
        loss_kind: "softmax", or "sigmoid" for each class (as in the paper's pre-training).
        real_labels: path of real.json, for an evaluation on ImageNet's validation images:
            all labels that fit each image (Beyer et al. 2020). Adds `real_accuracy`.
    """

    num_classes: Width
    class_names: tuple[str, ...] | None = None
    randaugment: tuple[int, int] | None = None
    erase: Probability = 0.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    label_smoothing: Probability = 0.0
    loss_kind: Literal["softmax", "sigmoid"] = "softmax"
    real_labels: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for invalid settings, before any data is read."""
        super().__post_init__()
        names = self.class_names or ()
        if len(set(names)) != len(names) or len(names) > self.num_classes:
            raise ValueError(
                f"config.task.class_names lists {len(names)} names, {len(set(names))} of "
                f"them distinct; list at most num_classes={self.num_classes}, all distinct."
            )
        pair = self.randaugment
        if pair is not None and (len(pair) != 2 or min(pair) < 0):
            raise ValueError(
                f"config.task.randaugment={pair} must be (layers, magnitude), both 0 or "
                "more, such as (2, 10); None is off."
            )
        if not 0 <= self.erase <= 1:
            raise ValueError(
                f"config.task.erase={self.erase} is a probability and must be from 0 to 1; "
                "0 is off, 0.25 is usual."
            )
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < math.inf:
                raise ValueError(
                    f"config.task.{name}={alpha} is the alpha of Beta(alpha, alpha) and "
                    "must be non-negative and finite, such as 0.2; 0 is off."
                )

    @staticmethod
    def derive(fields: Mapping[str, Any]) -> dict[str, Any]:
        """What the data says of fields that a config leaves open.

        `num_classes`, and `holdout`: a tenth of the training images, or none if the data has
        a validation split.

        Args:
            fields: those that are known, among them `data`.
        """
        data = fields["data"]
        source = sources.open_split(data, "train")
        highest = find_highest_label(source)
        if highest is None:
            raise ValueError(
                f"{data!r} does not list its classes; set config.task.num_classes."
            )
        has_validation = "validation" in sources.list_splits(data)
        holdout = 0 if has_validation else max(1, round(len(source) / 10))
        return {"num_classes": highest + 1, "holdout": holdout}

    @property
    def coefficients(self) -> dict[str, float]:
        return {"cross_entropy": 1.0}

    def source(self, split: str) -> sources.Source:
        """The records of one split, with labels as in `class_names` if that is set.

        Raises:
            ValueError: the data is missing or malformed, or has other classes.
        """
        source = self.open(split)
        if self.class_names is not None:
            source = match_labels(source, self.class_names, self.data)
        self.check_classes(source, split)
        if self.real_labels is not None:
            real_labels.read(self.real_labels, self.num_classes)  # raises errors early
        return source

    def check_classes(self, source: sources.Source, split: str) -> None:
        """Raises ValueError if the head does not have the classes of the data."""
        highest = find_highest_label(source)
        if highest is None or highest == self.num_classes - 1:
            return
        remedy = f"set it and config.model.num_classes to {highest + 1}"
        if highest >= self.num_classes:
            raise ValueError(
                f"{self.data} has labels from 0 to {highest}, but config.task.num_classes="
                f"{self.num_classes}; {remedy}."
            )
        if source.labels and self.class_names is None:
            shown = ", ".join(source.labels[:5])
            raise ValueError(
                f"{self.data} has {highest + 1} classes ({shown}{', ...' * (highest > 4)}), "
                f"but config.task.num_classes={self.num_classes}; {remedy}, or name all of "
                "them in config.task.class_names."
            )
        if split == "train" and not source.labels:
            logging.warning(
                "%s only has labels from 0 to %d, but config.task.num_classes=%d; if there "
                "are no other classes, %s.",
                *(self.data, highest, self.num_classes, remedy),
            )

    def bind(self, assets: Mapping[str, str]) -> "Classify":
        """This task with the class names of a run's training data, from its assets."""
        names = json.loads(assets.get("images.json", "{}")).get("labels")
        if not names or self.class_names is not None:
            return self
        return dataclasses.replace(self, class_names=tuple(names))

    def assets(self, source: sources.Source) -> dict[str, str]:
        """Files that an evaluation needs: class names and value range."""
        return {"images.json": self.describe(source.labels or ())}

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """uint8 image [H, W, C] and label; not augmented if `rng` is None (evaluation).

        With `real_labels`, also the classes that fit the image, bool [num_classes].
        """
        name = record.get("name", "")
        if not 0 <= record["label"] < self.num_classes:
            raise ValueError(
                f"{name or 'a record'} of {self.data} has the label {record['label']}, but "
                f"config.task.num_classes={self.num_classes}; labels count from 0."
            )
        image = self.read_augmented(record, rng)
        example = {"images": image, "labels": np.int32(record["label"])}
        if self.real_labels is not None:
            table = real_labels.read(self.real_labels, self.num_classes)
            fitting = table[real_labels.find_row(record, len(table))]
            example["real_labels"] = np.isin(np.arange(self.num_classes), fitting)
        return example

    def read_augmented(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> UInt8[np.ndarray, "H W C"]:
        """The image of a record at the model's size; not augmented if `rng` is None."""
        image = self.read(record, rng)
        if rng is not None and self.randaugment is not None:
            image = augment.randaugment(image, *self.randaugment, rng)
        if rng is not None and self.erase:
            image = augment.random_erase(image, self.erase, rng)
        return image

    def prepare(
        self, batch: Mapping[str, jax.Array], key: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Converts images to float32 in the model's range; adds target distributions [B, C].

        In training, mixup and cutmix are applied here, to the global batch, so that pairs
        and random draws do not depend on the number of processes. `labels` are not mixed.
        Without labels, as in `predict`, there are no targets.
        """
        if "labels" not in batch:
            return {**batch, "images": self.to_model_range(batch["images"])}
        targets = self.make_targets(batch["labels"])
        if train and self.label_smoothing:
            targets = optax.smooth_labels(targets, self.label_smoothing)
        pixels = self.to_model_range(batch["images"])
        if train and (self.mixup or self.cutmix):
            pixels, targets = self.mix(pixels, targets, key)
        return {**batch, "images": pixels, "targets": targets}

    def make_targets(self, labels: jax.Array) -> jax.Array:
        """The distribution [B, C] with all probability on the label."""
        return jax.nn.one_hot(labels, self.num_classes)

    def mix(
        self, pixels: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes images [B, H, W, C] and targets [B, C] with those of the previous row.

        Source: Zhang 2017 and big_vision, utils.py `get_mixup` (mixup); Yun 2019 and
        timm, data/mixup.py (cutmix, and choosing one of both per batch).
        """
        beta_key, window_key, coin_key = jax.random.split(key, 3)
        window = jnp.asarray(self.cutmix > 0)
        if self.mixup and self.cutmix:
            window = jax.random.bernoulli(coin_key)
        a = draw_beta(beta_key, jnp.where(window, self.cutmix, self.mixup))
        # `keep` is the weight of each pixel of the image itself, `share` of its target.
        pasted = draw_cutmix_mask(window_key, a, (pixels.shape[1], pixels.shape[2]))
        blended = jnp.maximum(a, 1 - a)  # the image itself has the larger weight
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
        """Cross-entropy in nats and accuracy, without padded rows.

        `top5_accuracy` is reported for more than 5 classes; if logits are equal, the lower
        class ranks first. `real_accuracy` is the share of images whose predicted class is
        one of their ReaL labels; images without such labels do not count.

        Raises:
            ValueError: the head's size is not `num_classes`.
        """
        logits = self.read_logits(outputs)
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
            in_top5 = compute_rank(batch["labels"], logits) < 5
            terms["top5_accuracy"] = ((in_top5 * valid).sum(), count)
        if self.real_labels is not None:
            real = batch["real_labels"]
            fits = jnp.take_along_axis(real, logits.argmax(-1)[:, None], axis=-1)[:, 0]
            counted = valid * real.any(axis=-1)
            terms["real_accuracy"] = ((fits * counted).sum(), counted.sum())
        return terms

    def read_logits(self, outputs: Mapping[str, jax.Array]) -> jax.Array:
        logits = outputs["logits"].astype(jnp.float32)
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"the model has {logits.shape[-1]} classes and the task "
                f"{self.num_classes}; set config.model.num_classes and "
                "config.task.num_classes to the same number."
            )
        return logits

    def name_label(self, label: Any) -> str:
        """The name of a class, or its number if the data has no names."""
        return self.class_names[int(label)] if self.class_names else str(int(label))

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, np.ndarray]],
        top: int,
    ) -> dict[str, Any]:
        """`predictions`: the `top` most probable classes, as {"label", "probability"}.

        With the "sigmoid" loss the probabilities of the classes are independent.
        """
        del named, rows
        to_probabilities = (
            jax.nn.softmax if self.loss_kind == "softmax" else jax.nn.sigmoid
        )
        chances = np.asarray(to_probabilities(outputs[0]["logits"]))
        return {"predictions": metrics.rank_classes(chances, self.class_names, top)}


def compute_rank(
    labels: Int[Array, " B"], logits: Float[Array, "B C"]
) -> Int[Array, " B"]:
    """Rank of each label, from 0, in the order of `jax.lax.top_k`: lower class on ties.

    Counts instead of sorting, which would exchange data between devices. NaN ranks before
    all numbers, but a label whose own logit is NaN ranks last.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    earlier = jnp.arange(logits.shape[-1])[None] < labels[:, None]
    ahead = ~(logits <= own) | ((logits == own) & earlier)
    return ahead.sum(axis=-1)


def draw_beta(key: jax.Array, alpha: Float[Array, ""]) -> Float[Array, ""]:
    """A sample of Beta(alpha, alpha), from two gamma variables.

    Both come from a single call: `jax.random.beta` needs two, which compile for seconds
    each.
    """
    first, second = jax.random.loggamma(key, alpha, (2,))
    return jax.nn.sigmoid(first - second)


def draw_cutmix_mask(
    key: jax.Array, kept: Float[Array, ""], size: tuple[int, int]
) -> Float[Array, "H W"]:
    """Ones with a window of zeros; its share of the area is 1 - `kept` before clipping.

    The window's center is uniform, its aspect ratio is that of the image.
    """
    side = jnp.sqrt(1 - kept)
    inside = []
    for length, center_key in zip(size, jax.random.split(key), strict=True):
        half = (length * side).astype(jnp.int32) // 2
        center = jax.random.randint(center_key, (), 0, length)
        pixel = jnp.arange(length)
        inside.append((center - half <= pixel) & (pixel < center + half))
    return 1.0 - (inside[0][:, None] & inside[1][None, :])
