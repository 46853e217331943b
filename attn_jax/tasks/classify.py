"""Image classification: one label an image, cross-entropy, top-1 accuracy."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax.data import images, sources


@dataclasses.dataclass(frozen=True)
class Classify:
    """Images from any source, augmented in training, to logits.

    Attributes:
        data: "digits" (embedded), a path (.npz, idx, folder, .zip) or "tfds:<name>".
        num_classes: of the model's head; at least the number of labels in the data.
        image_size: of the model's input, in pixels: one side or (height, width).
        channels: 1 or 3.
        holdout: training examples set aside where the data has no validation split.
        corrupt: an image that cannot be decoded stops the run ("error"), or is named,
            counted and left out when the data is opened ("skip").
        crop: in training, "inception" takes a random area at a random aspect ratio and
            resizes it; "shift" pads by `shift_pixels` and crops back; "none" as evaluation.
        crop_area: bounds of the inception crop's share of the image.
        flip: mirror half of the training images left to right.
        resize: smaller side in pixels before the central crop; None: no resize but to
            `image_size`, where the image has another size.
        label_smoothing: probability spread evenly over all classes, in training only.
        loss: "softmax", or "sigmoid" over each class by itself (as the paper pre-trains).
    """

    data: str
    num_classes: int
    image_size: int | tuple[int, int]
    channels: int = 3
    holdout: int = 0
    corrupt: Literal["error", "skip"] = "error"
    crop: Literal["none", "inception", "shift"] = "none"
    crop_area: tuple[float, float] = (0.05, 1.0)
    shift_pixels: int = 4
    flip: bool = False
    resize: int | None = None
    label_smoothing: float = 0.0
    loss_kind: Literal["softmax", "sigmoid"] = "softmax"

    @property
    def coefficients(self) -> dict[str, float]:
        return {"cross_entropy": 1.0}

    @property
    def size(self) -> tuple[int, int]:
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def source(self, split: str) -> sources.Source:
        source = sources.load(
            self.data, split, holdout=self.holdout, corrupt=self.corrupt
        )
        found = len(source.labels or ())
        if found > self.num_classes:
            raise ValueError(
                f"{self.data} has {found} classes, but config.task.num_classes="
                f"{self.num_classes}; set it and config.model.num_classes to {found}."
            )
        return source

    def assets(self, source: sources.Source) -> dict[str, str]:
        """What evaluation elsewhere must know of the training data."""
        known = {"labels": list(source.labels or ()), "value_range": [-1, 1]}
        return {"images.json": json.dumps(known, indent=1)}

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """uint8 image [H, W, C] and label; `rng` None means evaluation: no augmentation."""
        name = record.get("name", "")
        image = images.decode(record["image"], self.channels, name=name)
        if rng is None or self.crop == "none":
            image = self.centred(image)
        elif self.crop == "inception":
            image = images.inception_crop(image, self.size, rng, area=self.crop_area)
        else:
            image = images.shift_crop(self.centred(image), self.shift_pixels, rng)
        if rng is not None and self.flip:
            image = images.flip(image, rng)
        return {"images": image, "labels": np.int32(record["label"])}

    def centred(self, image: np.ndarray) -> np.ndarray:
        if self.resize is not None:
            image = images.resize_small(image, self.resize)
            return images.central_crop(image, self.size)
        if image.shape[:2] != self.size:
            image = images.resize_u8(image, self.size)
        return image

    def prepare(
        self, batch: Mapping[str, jax.Array], key: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Images to [-1, 1] float32, labels to target distributions [B, C]."""
        del key  # nothing random yet; mixing images draws here, on the global batch
        targets = jax.nn.one_hot(batch["labels"], self.num_classes)
        if train and self.label_smoothing:
            targets = optax.smooth_labels(targets, self.label_smoothing)
        pixels = batch["images"].astype(jnp.float32)
        return {**batch, "images": (pixels - 127.5) / 127.5, "targets": targets}

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"images": batch["images"]}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Cross-entropy in nats and accuracy, padded rows left out.

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
        return {
            "cross_entropy": ((losses * valid).sum(), count),
            "accuracy": ((correct * valid).sum(), count),
        }
