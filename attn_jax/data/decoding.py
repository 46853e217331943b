"""Decodes images to pixels, by Pillow, on the host.

Axes: H height, W width, C channels.
"""

import io

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from attn_jax.data import bounded

# Only these: Pillow would start Ghostscript for a PostScript file, whatever its name.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it only warns

Color = tuple[int, int, int]


# For data of a run; a prediction has no such key.
SKIP_ADVICE = ", or set config.task.corrupt='skip' to leave out such images."


def decode(
    data: bytes | Shaped[np.ndarray, "..."],
    channels: int,
    *,
    name: str = "",
    exif_rotation: bool = True,
    background: Color | None = None,
) -> UInt8[np.ndarray, "H W C"]:
    """Decodes an image, or converts an array, to pixels of 1 or 3 channels.

    Pillow's conversions apply: luma is .299 R + .587 G + .114 B; CMYK and palettes are
    converted to RGB first. Only the first frame of an animation is read. 16-bit values
    keep their high byte, values of a 12-bit TIFF their 8 highest bits.

    Args:
        data: a file's content, or uint8 [H, W] or [H, W, 1 | 3].
        channels: 1 (gray) or 3 (RGB).
        name: of the image in error messages, such as its path.
        exif_rotation: turn the image as its EXIF orientation says. (TensorFlow does not.
            Pillow always turns TIFF files.)
        background: RGB color, 0..255, on which transparent pixels are blended; None
            drops the alpha channel, so their hidden color shows.

    Raises:
        ValueError: `channels` is neither 1 nor 3; the bytes are no image of `FORMATS`, are
            cut short, or promise more than `MAX_PIXELS`; the array has another dtype or
            shape.
    """
    if channels not in (1, 3):
        raise ValueError(f"{channels=} must be 1 (gray) or 3 (RGB).")
    if isinstance(data, np.ndarray):
        return _convert_array(data, channels, name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _to_pixels(image, channels, exif_rotation, background)
    except UnidentifiedImageError as error:
        cause: Exception
        reason, cause = f"its format is none of {', '.join(FORMATS)}", error
    except Exception as error:  # each Pillow plugin raises its own kinds
        reason, cause = str(error).partition("\n")[0] or type(error).__name__, error
    raise ValueError(
        f"{bounded.printable(name or 'this image')} ({len(data)} bytes) cannot be decoded: {reason}. "
        f"Replace or remove it{SKIP_ADVICE}"
    ) from cause


def _to_pixels(
    image: Image.Image, channels: int, exif_rotation: bool, background: Color | None
) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"its header promises {image.width:,} x {image.height:,} pixels, more than "
            f"{MAX_PIXELS:,}"
        )
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is unknown")
    if image.mode == "I" and image.format == "TIFF":
        raise ValueError("its pixels are 32-bit integers, whose range is unknown")
    image.load()
    bits = count_bits(image)
    if exif_rotation:
        image = _turn_upright(image)
    if bits > 8:  # Pillow's own conversion would clip at 255
        high = np.asarray(image) >> (bits - 8)
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    if background is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image).convert("RGB")
    if channels == 3:  # Image.convert copies even if the mode is the same
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return np.asarray(image.convert("L"))[:, :, None]


def count_bits(image: Image.Image) -> int:
    """Returns the bits of a value: 8, or up to 16 of an integer image."""
    if not image.mode.startswith("I"):
        return 8
    tags = getattr(image, "tag_v2", {})  # of a TIFF, whose values may have 12 bits
    stored = tags.get(258, 16)
    return int(stored[0] if isinstance(stored, tuple) else stored)


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # malformed metadata, although the pixels can be decoded
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _convert_array(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    image = array[:, :, None] if array.ndim == 2 else array
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            f"{name or 'this image'} is {array.dtype} {list(array.shape)}; an image "
            "array must be uint8 [H, W], [H, W, 1] or [H, W, 3]. Convert the data."
        )
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
