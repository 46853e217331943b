"""Decodes instance masks: one image of ids, or one image an object."""

import io
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt16
from PIL import Image

from attn_jax.data import bounded, decoding

FORMATS = (
    "PNG",
    "BMP",
    "TIFF",
    "GIF",
    "PPM",
)  # no JPEG: its values are near, not equal
MOST = 2**16 - 1  # objects of an image


def number(
    values: Integer[np.ndarray, "H W"], name: object
) -> UInt16[np.ndarray, "H W"]:
    """Numbers the values of a mask: 0 stays 0, the others become 1, 2, ... in rising order.

    So masks of 0 and 1 and masks of 0 and 255 are one.

    Raises:
        ValueError: a value is negative, or there are more than 65,535.
    """
    found, places = np.unique(values, return_inverse=True)
    if found[0] < 0 or len(found) > MOST:
        raise ValueError(
            f"the mask {bounded.printable(name)} has {len(found):,} values from {found[0]}; "
            f"ids must be 0 (background) or more, and at most {MOST:,} of them."
        )
    background = int(found[0] == 0)
    return (places.reshape(values.shape) + 1 - background).astype(np.uint16)


def read_values(path: pathlib.Path) -> Integer[np.ndarray, "H W"]:
    """Reads the ids of a mask: gray or palette values; each color of RGB is an id, black 0.

    Raises:
        ValueError: the file is no image without loss, or cut short.
    """
    data = bounded.read_image_file(path)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > decoding.MAX_PIXELS:
                raise ValueError(f"it has more than {decoding.MAX_PIXELS:,} pixels")
            if image.mode in ("RGB", "RGBA"):
                red, green, blue = np.asarray(image.convert("RGB"), np.int32).T
                return (red << 16 | green << 8 | blue).T
            values = np.asarray(image.convert("L") if image.mode == "LA" else image)
    except Exception as error:  # each Pillow plugin raises its own kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"the mask {bounded.printable(path)} cannot be read: {reason}. It must be one of "
            f"{', '.join(FORMATS)}."
        ) from error
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise ValueError(
            f"the mask {bounded.printable(path)} has {values.dtype} values; ids must be whole "
            "numbers. Store it as a gray PNG of 8 or 16 bits."
        )
    return values.astype(np.int32)


def read_ids(path: pathlib.Path) -> UInt16[np.ndarray, "H W"]:
    """Reads a mask of ids, renumbered as by `number`."""
    return number(read_values(path), path)


def read_stack(paths: Sequence[pathlib.Path]) -> UInt16[np.ndarray, "H W"]:
    """Reads one mask an object: each is where its file is not 0; later ones are in front.

    Raises:
        ValueError: two differ in size; there are more than 65,535.
    """
    if len(paths) > MOST:
        raise ValueError(f"{paths[0].parent} holds more than {MOST:,} masks.")
    first = read_values(paths[0])
    mask = (first != 0).astype(np.uint16)
    for i, path in enumerate(paths[1:], 2):
        values = read_values(path)
        if values.shape != mask.shape:
            raise ValueError(
                f"the masks {bounded.printable(paths[0])} of {list(mask.shape)} pixels and "
                f"{path.name} of {list(values.shape)} are of one image, but differ in size."
            )
        mask[values != 0] = i
    return mask


def check_size(
    image: np.ndarray, mask: np.ndarray, name: object, which: object
) -> None:
    """Raises ValueError unless a mask has the height and width of its image."""
    if image.shape[:2] != mask.shape:
        raise ValueError(
            f"{bounded.printable(name)} has {list(image.shape[:2])} pixels (height, width), its "
            f"mask {bounded.printable(which)} {list(mask.shape)}; they must be equal. Resize the mask by "
            "nearest neighbours, or make it again."
        )
