"""Image input of a task: which images it reads, and what of them the model sees.

A task inherits one of these two classes for its fields; the objective is the task's own.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float32, Integer, UInt8

from attn_jax.data import framing, images, sources


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageReading:
    """Images of any source at one size, never augmented.

    Attributes:
        data: "digits" (embedded), a path (.npz, idx, folder, .zip) or "tfds:<name>"; see
            `attn_jax.data.sources.load`.
        image_size: of the model's input, in pixels: one side or (height, width).
        channels: 1 (grey) or 3 (RGB).
        holdout: training examples set aside where the data has no validation split.
        examples: of the training split, as many of each class as it has in proportion;
            None: all.
        corrupt: an image that cannot be decoded stops the run ("error"), or is named,
            counted and left out when the data is opened ("skip").
        resize: smaller side in pixels before the central crop; None: no resize but to
            `image_size`, where the image has another size.
    """

    data: str
    image_size: int | tuple[int, int]
    channels: int = 3
    holdout: int = 0
    examples: int | None = None
    corrupt: Literal["error", "skip"] = "error"
    resize: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the model's input in pixels."""
        return framing.sides(self.image_size)

    def open(self, split: str) -> sources.Source:
        """The records of one split."""
        return sources.load(
            self.data,
            split,
            holdout=self.holdout,
            examples=self.examples,
            corrupt=self.corrupt,
        )

    def decode(self, record: Mapping[str, Any]) -> UInt8[np.ndarray, "H W C"]:
        """The pixels of a record at their own size."""
        name = record.get("name", "")
        return images.decode(record["image"], self.channels, name=name)

    def read(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> UInt8[np.ndarray, "h w C"]:
        """The pixels of a record at `size`; `rng` is None in evaluation."""
        del rng  # nothing random
        return framing.resize_and_crop(self.decode(record), self.size, self.resize)

    def to_model_range(
        self, pixels: Integer[Array, "*axes"]
    ) -> Float32[Array, "*axes"]:
        """Pixels 0..255 as the model takes them; on the device."""
        return images.normalize(pixels)

    def describe(self, labels: Sequence[str] | None = None) -> str:
        """JSON of what predictions elsewhere must know: value range and class names."""
        known: dict[str, Any] = {} if labels is None else {"labels": list(labels)}
        return json.dumps({**known, "value_range": [-1, 1]}, indent=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CroppedImageReading(ImageReading):
    """Images of any source at one size, cropped and mirrored at random in training.

    Attributes:
        crop: in training, "inception" takes a random area at a random aspect ratio and
            resizes it; "shift" pads by `shift_pixels` and crops back; "none" as evaluation.
        crop_area: bounds of the inception crop's share of the image.
        shift_pixels: largest distance of a "shift" along each axis.
        flip: mirror half of the training images left to right.
    """

    crop: Literal["none", "inception", "shift"] = "none"
    crop_area: tuple[float, float] = (0.05, 1.0)
    shift_pixels: int = 4
    flip: bool = False

    def read(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> UInt8[np.ndarray, "h w C"]:
        """The pixels of a record at `size`; `rng` None: evaluation, not augmented."""
        return framing.frame(
            self.decode(record),
            self.size,
            rng,
            crop=self.crop,
            crop_area=self.crop_area,
            shift_pixels=self.shift_pixels,
            flip=self.flip,
            resize=self.resize,
        )
