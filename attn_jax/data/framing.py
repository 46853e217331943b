"""Crops and resizes images to the model's input size: at random in training, else centrally."""

from typing import Literal

import numpy as np
from jaxtyping import Float32, Integer, UInt8

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


def frame_scene(
    image: UInt8[np.ndarray, "H W C"],
    mask: Integer[np.ndarray, "H W"] | None,
    size: int,
    crop: Literal["center", "whole", "clevr"],
) -> tuple[Float32[np.ndarray, "h h C"], Integer[np.ndarray, "h h"] | None]:
    """Crops and resizes an image and its mask to a square; values 0..255 are not rounded.

    Images are resized bilinearly, masks to their nearest pixel.

    Args:
        crop: "center", the largest central square (with antialias); "whole", the whole image
            squeezed, and "clevr", rows 29-220 and columns 64-255 of 240 x 320 (both without
            antialias, as the original code has them).

    Raises:
        ValueError: the image is not of 240 x 320 pixels, but the crop is that of CLEVR.

    Source: google-research, slot_attention/data.py.
    """
    pixels = image if mask is None else np.dstack([image, mask])
    if crop == "center":
        pixels = images.central_crop(pixels)
    elif crop == "clevr":
        if image.shape[:2] != (240, 320):
            raise ValueError(
                f"the image has {list(image.shape[:2])} pixels (height, width), but "
                "config.task.crop='clevr' is made for [240, 320]; set it to 'center' or "
                "'whole'."
            )
        pixels = pixels[29:221, 64:256]
    channels = image.shape[2]
    framed = images.resize(
        pixels[..., :channels], (size, size), antialias=crop == "center"
    )
    if mask is None:
        return framed, None
    ids = images.resize(pixels[..., channels:], (size, size), "nearest")
    return framed, ids[..., 0].astype(mask.dtype)


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of a size in pixels; one number means a square."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
