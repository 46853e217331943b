"""Image operations on the host, in NumPy: resize, crop, flip, scale.

They give the numbers of big_vision's preprocessing (`tf.image`, half-pixel centers)
without TensorFlow. All randomness comes from the `np.random.Generator` that the caller
passes, so an image is a function of its record and the generator's seed.
Axes: H height, W width, C channels; h, w are sizes after the operation.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float32, Num, Shaped, UInt8


def resize(
    image: Num[np.ndarray, "H W C"],
    size: tuple[int, int],
    method: str = "bilinear",
    *,
    antialias: bool = False,
) -> Float32[np.ndarray, "h w C"]:
    """`tf.image.resize(image, size, method, antialias=antialias)`, not rounded.

    Args:
        size: (height, width) in pixels.
        method: "nearest", "bilinear", "bicubic" (Keys' kernel, a = -0.5) or "area" (the
            mean over each output pixel's box).
        antialias: widen the kernel by the reduction factor; no effect on "nearest" and
            "area", nor when enlarging.

    Raises:
        ValueError: the image or the size is empty, or the method unknown.

    Source: TensorFlow 2, resize_*_op.cc and scale_and_translate_op.cc.
    """
    if min(*image.shape, *size) < 1:
        raise ValueError(
            f"cannot resize an image of shape {list(image.shape)} to {tuple(size)}: "
            "every side must be at least 1 pixel."
        )
    for axis in (0, 1):
        image = _resample(
            image, axis, *_taps(image.shape[axis], size[axis], method, antialias)
        )
    return image


def _resample(
    image: np.ndarray, axis: int, indices: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Returns sum_k weights[k] * image[indices[k]] along `axis`; the weights sum to 1.

    One gather per tap reads little more than the image itself; a product with a dense
    [h, H] matrix would cost h times as much. The sum is computed as first + sum_k
    weights[k] * (image[k] - first), so that rounding cannot turn a flat 255 into 254.
    """
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    first = image.take(indices[0], axis).astype(np.float32)
    total = first.copy()
    for index, weight in zip(indices[1:], weights[1:], strict=True):
        difference = np.subtract(image.take(index, axis), first, dtype=np.float32)
        difference *= weight.reshape(shape)
        total += difference
    return total


@functools.lru_cache(maxsize=8192)  # crops of every side up to 4096 on both axes
def _taps(
    old: int, new: int, method: str, antialias: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (indices, weights), [taps, new]: the old pixels that make up each new one."""
    scale = old / new
    if method == "area":
        left = np.arange(new) * scale
        right = left + scale
        first = np.floor(left)
        offsets = np.arange(int(np.ceil(scale)) + 1)
        pixel = first[:, None] + offsets
        weights = np.minimum(pixel + 1, right[:, None]) - np.maximum(
            pixel, left[:, None]
        )
        weights = np.maximum(weights, 0)
    elif method == "nearest":
        pixel = np.floor((np.arange(new) + 0.5) * scale)[:, None]
        weights = np.ones_like(pixel)
    elif method in ("bilinear", "bicubic"):
        center = (np.arange(new) + 0.5) * scale - 0.5
        width = max(scale, 1.0) if antialias else 1.0
        reach = int(np.ceil((1 if method == "bilinear" else 2) * width))
        pixel = np.floor(center)[:, None] + np.arange(1 - reach, reach + 1)
        distance = np.abs(pixel - center[:, None]) / width
        if method == "bilinear":
            weights = np.maximum(1 - distance, 0)
        else:
            if not antialias:  # TensorFlow tabulates the kernel in steps of 1/1024
                distance = np.round(distance * 1024) / 1024
            weights = _keys_cubic(distance)
        # Taps outside the image get no weight, except in bilinear resizing without
        # antialias: there the clip below repeats the edge.
        if antialias or method == "bicubic":
            weights = weights * ((pixel >= 0) & (pixel < old))
    else:
        raise ValueError(
            f"{method=} must be 'nearest', 'bilinear', 'bicubic' or 'area'."
        )
    weights = weights / weights.sum(1, keepdims=True)
    used = (weights != 0).any(0)
    indices = np.clip(pixel, 0, old - 1).astype(np.intp)[:, used].T.copy()
    weights = weights[:, used].T.astype(np.float32)
    indices.flags.writeable = weights.flags.writeable = False  # shared by the cache
    return indices, weights


def _keys_cubic(x: np.ndarray) -> np.ndarray:
    """Evaluates Keys' cubic convolution kernel (a = -0.5) at distance `x`."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resize_u8(
    image: UInt8[np.ndarray, "H W C"],
    size: tuple[int, int],
    method: str = "bilinear",
    *,
    antialias: bool = False,
) -> UInt8[np.ndarray, "h w C"]:
    """`resize`, clipped to 0..255 and truncated to uint8, not rounded.

    Source: big_vision, pp/ops_image.py `get_resize`.
    """
    resized = resize(image, size, method, antialias=antialias)
    return np.clip(resized, 0, 255, out=resized).astype(np.uint8)


def resize_small(
    image: UInt8[np.ndarray, "H W C"],
    smaller: int,
    method: str = "area",
    *,
    antialias: bool = True,
) -> UInt8[np.ndarray, "h w C"]:
    """Resizes the smaller side to `smaller` pixels and keeps the aspect ratio.

    Source: big_vision, pp/ops_image.py `get_resize_small`, whose defaults these are.
    """
    height, width = image.shape[:2]
    # float32 as in the original: it decides ties of the rounding below.
    ratio = np.float32(smaller) / np.float32(min(height, width))
    scaled = np.round(np.array([height, width], np.float32) * ratio)
    size = (int(scaled[0]), int(scaled[1]))
    return resize_u8(image, size, method, antialias=antialias)


def central_crop(
    image: Shaped[np.ndarray, "H W C"], size: tuple[int, int] | None = None
) -> Shaped[np.ndarray, "h w C"]:
    """Crops the central `size` (height, width) pixels; None crops the largest square.

    If a margin is odd, the extra pixel is at the bottom or right.

    Raises:
        ValueError: the image is smaller than `size`.
    """
    height, width = image.shape[:2]
    h, w = size or (min(height, width),) * 2
    if h > height or w > width:
        raise ValueError(
            f"image is {height}x{width}; a central crop of {h}x{w} must fit inside. "
            "Resize it to a larger size first, or crop less."
        )
    top, left = (height - h) // 2, (width - w) // 2
    return image[top : top + h, left : left + w]


def inception_crop(
    image: UInt8[np.ndarray, "H W C"],
    size: tuple[int, int],
    rng: np.random.Generator,
    area: tuple[float, float] = (0.05, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> UInt8[np.ndarray, "h w C"]:
    """Resizes a window of random area and aspect to `size` (bilinear, no antialias).

    Args:
        size: (height, width) in pixels.
        area: range of the window's share of the image, 0 < low <= high.
        ratio: range of width / height. (big_vision uses TensorFlow's default: 0.75, 1.33.)

    Raises:
        ValueError: a range is empty or not positive.

    Source: Szegedy 2015 section 6; big_vision, pp/ops_image.py `get_inception_crop`.
    """
    height, width = image.shape[:2]
    top, left, h, w = draw_inception_window(height, width, rng, area, ratio)
    return resize_u8(image[top : top + h, left : left + w], size)


def draw_inception_window(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.05, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draws (top, left, height, width) of a crop; the whole image after 100 failures.

    The aspect ratio is uniform, and so is the window's height given the ratio, which
    favors small areas. The last offset on either axis is never drawn, as in TensorFlow.

    Source: TensorFlow, sample_distorted_bounding_box_op.cc `GenerateRandomCrop`.
    """
    for key, (low, high) in (("area", area), ("ratio", ratio)):
        if not 0 < low <= high:
            raise ValueError(
                f"{key}=({low}, {high}) must be (low, high) with 0 < low <= high."
            )
    least, most = area[0] * height * width, area[1] * height * width
    for _ in range(100):
        aspect = rng.uniform(*ratio)
        h = round((least / aspect) ** 0.5)
        highest = round((most / aspect) ** 0.5)
        if round(highest * aspect) > width:
            highest = int((width + 0.5 - 1e-7) / aspect)
            if round(highest * aspect) > width:
                highest -= 1
        highest = min(highest, height)
        h = int(rng.integers(h, highest + 1)) if h < highest else highest
        w = round(h * aspect)
        if w * h < least:  # rounding may miss the bounds by one pixel
            h, w = h + 1, round((h + 1) * aspect)
        if w * h > most:
            h, w = h - 1, round((h - 1) * aspect)
        if least <= w * h <= most and 0 < h <= height and 0 < w <= width:
            top = int(rng.integers(height - h)) if h < height else 0
            left = int(rng.integers(width - w)) if w < width else 0
            return top, left, h, w
    return 0, 0, height, width


def shift_crop(
    image: Shaped[np.ndarray, "H W C"], pixels: int, rng: np.random.Generator
) -> Shaped[np.ndarray, "H W C"]:
    """Moves the image by up to `pixels` along each axis; uncovered pixels become zero.

    Raises:
        ValueError: `pixels` is negative.

    Source: He 2016 section 4.2 (CIFAR: pad 4 pixels on each side, crop at random).
    """
    if pixels < 0:
        raise ValueError(f"{pixels=} must be 0 or more.")
    height, width = image.shape[:2]
    top, left = rng.integers(2 * pixels + 1, size=2)
    padded = np.zeros(
        (height + 2 * pixels, width + 2 * pixels, image.shape[2]), image.dtype
    )
    padded[pixels : pixels + height, pixels : pixels + width] = image
    return padded[top : top + height, left : left + width]


def flip(
    image: Shaped[np.ndarray, "H W C"], rng: np.random.Generator
) -> Shaped[np.ndarray, "H W C"]:
    """Mirrors the image left to right with probability 1/2."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def normalize(
    pixels: Num[Array, "*axes C"],
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.5,
) -> Float32[Array, "*axes C"]:
    """Returns (pixels / 255 - mean) / std, the input of a model; on the device.

    Args:
        mean, std: one number, or one per channel, in units of 0..1. With 0.5 and 0.5,
            0..255 becomes [-1, 1].

    Source: vision_transformer, input_pipeline.py. The last bit may differ: XLA multiplies
    by 1/127.5 where the original divides.
    """
    return (pixels.astype(np.float32) - _per_channel(mean, pixels.ndim)) / _per_channel(
        std, pixels.ndim
    )


def _per_channel(value: float | tuple[float, ...], ndim: int) -> float | np.ndarray:
    """Returns 255 times a number, or times an array that broadcasts over the last axis."""
    if isinstance(value, int | float):
        return 255 * value
    return np.float32(255) * np.array(value, np.float32).reshape(
        (1,) * (ndim - 1) + (-1,)
    )


def value_range(
    image: Num[np.ndarray, "H W C"],
    vmin: float = -1.0,
    vmax: float = 1.0,
    in_min: float | Sequence[float] = 0.0,
    in_max: float | Sequence[float] = 255.0,
    *,
    clip: bool = False,
) -> Float32[np.ndarray, "H W C"]:
    """Maps [in_min, in_max] linearly to [vmin, vmax]; `clip` cuts off values beyond.

    Args:
        in_min, in_max: one value, or one per channel (mean -/+ std of a data set).

    Raises:
        ValueError: in_min equals in_max.

    Source: big_vision, pp/ops_image.py `get_value_range`.
    """
    low, high = np.asarray(in_min, np.float32), np.asarray(in_max, np.float32)
    if np.any(low == high):
        raise ValueError(f"{in_min=} and {in_max=} must differ in every channel.")
    scaled = (image.astype(np.float32) - low) / (high - low)
    scaled = np.float32(vmin) + scaled * np.float32(vmax - vmin)
    return np.clip(scaled, vmin, vmax) if clip else scaled
