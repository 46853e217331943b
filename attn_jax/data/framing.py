"""Crops and resizes images to the model's input size: at random in training, else centrally."""

from typing import Literal

import numpy as np
from jaxtyping import UInt8

from attn_jax.data import images


def frame(
    image: UInt8[np.ndarray, "H W C"],
    size: tuple[int, int],
    rng: np.random.Generator | None,
    *,
    crop: Literal["none", "inception", "shift"] = "none",
    crop_area: tuple[float, float] = (0.05, 1.0),
    shift_pixels: int = 4,
    flip: bool = False,
    resize: int | None = None,
) -> UInt8[np.ndarray, "h w C"]:
    """Crops and resizes an image to `size` (height, width) in pixels.

    Args:
        rng: of the random crop and flip; None in evaluation.
        crop: in training, "inception" resizes a random window of random aspect ratio;
            "shift" pads by `shift_pixels` and crops back; "none" does as in evaluation.
        crop_area: bounds of the share of the image that an inception crop covers.
        flip: mirror half of the training images left to right.
        resize: smaller side in pixels before the central crop; None resizes to `size`
            without a crop.
    """
    if rng is None or crop == "none":
        framed = resize_and_crop(image, size, resize)
    elif crop == "inception":
        framed = images.inception_crop(image, size, rng, area=crop_area)
    else:
        framed = images.shift_crop(
            resize_and_crop(image, size, resize), shift_pixels, rng
        )
    return images.flip(framed, rng) if rng is not None and flip else framed


def resize_and_crop(
    image: UInt8[np.ndarray, "H W C"], size: tuple[int, int], resize: int | None
) -> UInt8[np.ndarray, "h w C"]:
    """Resizes and crops an image centrally to `size` (height, width), as in evaluation.

    Args:
        resize: smaller side in pixels before the central crop; None resizes to `size`
            without a crop, which may change the aspect ratio.
    """
    if resize is not None:
        return images.central_crop(images.resize_small(image, resize), size)
    return image if image.shape[:2] == size else images.resize_u8(image, size)


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of a size in pixels; one number means a square."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
