"""Samples images of a source, to warn of what decoding would change silently."""

import io
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from attn_jax.data import decoding

SAMPLE = (
    200  # images, evenly spaced; reading their headers takes a fraction of a second
)
DEEP_SAMPLE = 20  # of these, images whose 16-bit values are read as well


class Header(NamedTuple):
    """Properties of an image, from its header."""

    color: bool
    transparent: bool
    bits: int
    highest: int | None  # value of a 16-bit image, if its values were read


def warn_of_conversions(
    source: Any, data: str, *, channels: int, has_background: bool
) -> None:
    """Warns of what `decoding.decode` would drop or invent, once per data set.

    These are: color if channels=1, three equal channels of gray images, transparency
    without a background, and 12-bit values in 16-bit files.
    """
    headers = [found for found in sample(source) if found is not None]
    if not headers:
        return
    where = f"of {len(headers):,} images looked at"
    color = sum(header.color for header in headers)
    if channels == 1 and color:
        _warn_once(
            data,
            "color",
            f"{where}, {color:,} are stored in color, of which config.task.channels=1 keeps "
            "the brightness only; set config.task.channels to 3 to keep it.",
        )
    if channels == 3 and not color:
        _warn_once(
            data,
            "gray",
            f"{where}, all are gray: config.task.channels=3 repeats them three times; "
            "channels=1 is faster, unless the model was trained on color.",
        )
    transparent = sum(header.transparent for header in headers)
    if transparent and not has_background:
        _warn_once(
            data,
            "transparency",
            f"{where}, {transparent:,} have transparency, which is dropped: transparent "
            "pixels show their hidden color, often black. Set config.task.background, "
            "for example to [255, 255, 255], to blend them.",
        )
    deep = [header.highest for header in headers if header.highest is not None]
    if deep and max(deep) < 2**12:
        _warn_once(
            data,
            "12 bits",
            f"{where}, those of 16 bits reach only {max(deep):,}: data of 12 bits or less. "
            "Only the high byte is read, so they become almost black. Rescale the files "
            "to the full range.",
        )


def sample(source: Any) -> list[Header | None]:
    """Reads the headers of up to `SAMPLE` images; None for one that cannot be opened."""
    count = min(len(source), SAMPLE)
    chosen = np.linspace(0, len(source) - 1, count).astype(int)
    step = max(count // DEEP_SAMPLE, 1)
    return [
        _read_header(source, int(index), deep=number % step == 0)
        for number, index in enumerate(chosen)
    ]


def _read_header(source: Any, index: int, deep: bool) -> Header | None:
    try:
        image = source[index]["image"]
        if isinstance(image, np.ndarray):
            return Header(image.ndim == 3 and image.shape[2] > 1, False, 8, None)
        with Image.open(io.BytesIO(image), formats=decoding.FORMATS) as opened:
            bits, highest = decoding.count_bits(opened), None
            small = opened.width * opened.height <= decoding.MAX_PIXELS // 8
            if bits > 12 and small and deep:
                highest = int(np.asarray(opened).max())
            color = opened.mode not in ("1", "L", "LA", "La") and bits == 8
            if opened.mode == "P":  # a palette may hold grays only
                color = _has_color(opened)
            return Header(color, opened.has_transparency_data, bits, highest)
    except Exception:  # decoding reports it when the image is read
        return None


def _has_color(image: Image.Image) -> bool:
    palette = np.reshape(image.getpalette("RGB") or [0, 0, 0], (-1, 3))
    return bool((palette != palette[:, :1]).any())


def _warn_once(data: str, kind: str, message: str) -> None:
    """Logs a warning, unless one of its kind was logged for this data."""
    if (data, kind) not in _warned:
        _warned.add((data, kind))
        logging.warning("%r: %s", data, message)


_warned: set[tuple[str, str]] = set()  # in this process, which opens a split repeatedly
