"""Image input of a task: which images it reads, and how they become the model's input.

An image task inherits one of these two classes, and adds its objective.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float32, Integer, UInt8

from attn_jax.bounds import NonNegativeInt, Path, Pixels, PositiveInt, Width
from attn_jax.data import (
    bounded,
    decoding,
    files,
    framing,
    images,
    sources,
    survey,
)
from attn_jax.folder import expand_local


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageReading:
    """Images of any source at one size, never augmented.

    Attributes:
        data: "digits" (embedded), a path (.npz, idx, folder, .zip, a table of files and
            labels) or "tfds:<name>"; see `attn_jax.data.sources.open_split`.
        image_size: of the model's input in pixels: the side of a square, or (height, width).
        channels: 1 (gray) or 3 (RGB).
        holdout: number of training examples to set aside for validation, if the data has no
            validation split.
        examples: number of training examples to use, stratified by class; None: all.
        corrupt: "error": an image that cannot be decoded stops the run; "skip": such images
            are named, counted and left out when the data is opened.
        resize: smaller side in pixels before the central crop; None resizes to
            `image_size` without a crop.
        exif_rotation: turn photographs upright by their EXIF orientation.
        background: RGB color, 0..255, on which transparent pixels are blended; None
            drops the transparency.
        mean, std: of the pixels, in units of 0..1, one number or one per channel: the model
            gets (pixels / 255 - mean) / std. 0.5 and 0.5 give [-1, 1].

    Raises:
        ValueError: a value out of range.
    """

    data: Path
    image_size: Pixels | tuple[Pixels, Pixels]
    channels: Width = 3
    holdout: NonNegativeInt = 0
    examples: PositiveInt | None = None
    corrupt: Literal["error", "skip"] = "error"
    resize: Pixels | None = None
    exif_rotation: bool = True
    background: tuple[int, int, int] | None = None
    mean: float | tuple[float, ...] = 0.5
    std: float | tuple[float, ...] = 0.5

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if len(numbers) not in (1, self.channels) or not all(
                math.isfinite(number) and (number > 0 or name == "mean")
                for number in numbers
            ):
                above = "" if name == "mean" else " above 0"
                raise ValueError(
                    f"config.task.{name}={value} must be one finite number{above}, or one "
                    f"for each of the {self.channels} channels, in units of 0..1; 0.5 is "
                    "usual, ImageNet's are [0.485, 0.456, 0.406] (mean) and "
                    "[0.229, 0.224, 0.225] (std)."
                )
        if self.background is not None and not all(
            0 <= value <= 255 for value in self.background
        ):
            raise ValueError(
                f"config.task.background={self.background} must be three numbers from 0 to "
                "255, such as [255, 255, 255] for white; None drops transparency."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the model's input in pixels."""
        return framing.sides(self.image_size)

    def open(self, split: str, separator: str | None = None) -> sources.Source:
        """Opens one split; warns of what decoding its images would change silently.

        Args:
            separator: see `sources.open_split`.
        """
        source = sources.open_split(
            self.data,
            split,
            holdout=self.holdout,
            examples=self.examples,
            corrupt=self.corrupt,
            separator=separator,
        )
        survey.warn_of_conversions(
            source,
            self.data,
            channels=self.channels,
            has_background=self.background is not None,
        )
        return source

    def invent_record(self) -> dict[str, Any]:
        """A black image of the model's size with label 0, to plan a run without its data."""
        pixels = np.zeros((*self.size, self.channels), np.uint8)
        return {"image": pixels, "label": 0, "name": "invented"}

    def decode(self, record: Mapping[str, Any]) -> UInt8[np.ndarray, "H W C"]:
        """Decodes the image of a record, at its own size."""
        return decoding.decode(
            record["image"],
            self.channels,
            name=record.get("name", ""),
            exif_rotation=self.exif_rotation,
            background=self.background,
        )

    def read(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> UInt8[np.ndarray, "h w C"]:
        """Decodes the image of a record and fits it to `size`; `rng` None: evaluation."""
        del rng  # nothing random
        return framing.resize_and_crop(self.decode(record), self.size, self.resize)

    def expand_input(self, given: Any) -> list[Any]:
        """The images that an input of `predict` stands for: the files of a folder, or itself."""
        if (
            isinstance(given, str | os.PathLike)
            and (path := expand_local(given)).is_dir()
        ):
            return files.list_images(path)
        return [given]

    def read_input(self, given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Reads an image without a label: the path of a file, or an array [H, W(, C)].

        Raises:
            ValueError: it does not exist or is no image.
        """
        named, pixels = self.decode_input(given)
        return named, [{"images": self.read({"image": pixels}, None)}]

    def decode_input(
        self, given: Any
    ) -> tuple[dict[str, Any], UInt8[np.ndarray, "H W C"]]:
        """(what names the image, its pixels at its own size); as `read_input`."""
        if isinstance(given, np.ndarray):
            return {}, self.decode({"image": given})
        if not isinstance(given, str | os.PathLike):
            raise ValueError(
                f"{given!r:.80} is no image; give the path of a file or folder, or an array of "
                "uint8 pixels [H, W, C]."
            )
        path = expand_local(given)
        if not path.exists():
            raise ValueError(f"{given} does not exist; give an image file or a folder.")
        record = {"image": bounded.read_image_file(path), "name": str(path)}
        try:
            return {"file": str(given)}, self.decode(record)
        except ValueError as error:
            raise ValueError(str(error).replace(decoding.SKIP_ADVICE, ".")) from error

    def to_model_range(
        self, pixels: Integer[Array, "*axes C"]
    ) -> Float32[Array, "*axes C"]:
        """Normalizes pixels 0..255 as the model expects them; on the device."""
        return images.normalize(pixels, self.mean, self.std)

    def describe(self, labels: Sequence[str] | None = None) -> str:
        """Returns the asset that predictions need: JSON of class names and value range.

        It has `mean` and `std` unless both are 0.5.
        """
        known: dict[str, Any] = {} if labels is None else {"labels": list(labels)}
        mean, std = np.broadcast_arrays(self.mean, self.std)
        low, high = ((0 - mean) / std).min(), ((1 - mean) / std).max()
        known["value_range"] = [-1, 1]
        if (self.mean, self.std) != (0.5, 0.5):
            known["value_range"] = [float(low), float(high)]
            known |= {"mean": self.mean, "std": self.std}
        return json.dumps(known, indent=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CroppedImageReading(ImageReading):
    """Images of any source at one size, cropped and mirrored at random in training.

    Attributes:
        crop: in training, "inception" resizes a random window of random aspect ratio;
            "shift" pads by `shift_pixels` and crops back; "none" does as in evaluation.
        crop_area: bounds of the share of the image that an inception crop covers.
        shift_pixels: largest distance of a "shift" along each axis.
        flip: mirror half of the training images left to right.
    """

    crop: Literal["none", "inception", "shift"] = "none"
    crop_area: tuple[float, float] = (0.05, 1.0)
    shift_pixels: NonNegativeInt = 4
    flip: bool = False

    def read(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> UInt8[np.ndarray, "h w C"]:
        """Decodes the image of a record and fits it to `size`; `rng` None: evaluation."""
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
