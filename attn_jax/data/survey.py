"""A look at some images of a source, to warn of what decoding would change unseen."""

import io
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from attn_jax.data import decoding

SAMPLE = 200  # images, evenly spaced; their headers take a fraction of a second
DEEP_SAMPLE = 20  # of them, those whose 16-bit values are read


class Seen(NamedTuple):
    """What the header of an image says."""

    color: bool
    transparent: bool
    bits: int
    highest: int | None  # value of a 16-bit image, where it was read


def warn_of_conversions(
    source: Any, data: str, *, channels: int, has_background: bool
) -> None:
    """Logs what `decoding.decode` would drop or make up, once for each set of data.

    That is: color under channels=1, three equal channels of gray images, transparency
    without a background, and 12-bit values in 16-bit files.
    """
    seen = [found for found in sample(source) if found is not None]
    if not seen:
        return
    where = f"of {len(seen):,} images looked at"
    color = sum(found.color for found in seen)
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
    transparent = sum(found.transparent for found in seen)
    if transparent and not has_background:
        _warn_once(
            data,
            "transparency",
            f"{where}, {transparent:,} have transparency, which is dropped: pixels show "
            "the color that they hide, often black. Set config.task.background, such as "
            "to [255, 255, 255], to blend them.",
        )
    deep = [found.highest for found in seen if found.highest is not None]
    if deep and max(deep) < 2**12:
        _warn_once(
            data,
            "12 bits",
            f"{where}, those of 16 bits reach only {max(deep):,}: data of 12 bits or less, "
            "which becomes almost black, for the high byte is read. Rescale the files to "
            "the full range.",
        )


def sample(source: Any) -> list[Seen | None]:
    """The headers of up to `SAMPLE` images; None for one that cannot be opened."""
    count = min(len(source), SAMPLE)
    chosen = np.linspace(0, len(source) - 1, count).astype(int)
    step = max(count // DEEP_SAMPLE, 1)
    return [
        _look_at(source, int(index), deep=number % step == 0)
        for number, index in enumerate(chosen)
    ]


def _look_at(source: Any, index: int, deep: bool) -> Seen | None:
    try:
        image = source[index]["image"]
        if isinstance(image, np.ndarray):
            return Seen(image.ndim == 3 and image.shape[2] > 1, False, 8, None)
        with Image.open(io.BytesIO(image), formats=decoding.FORMATS) as opened:
            bits, highest = decoding.bits_of(opened), None
            small = opened.width * opened.height <= decoding.MAX_PIXELS // 8
            if bits > 12 and small and deep:
                highest = int(np.asarray(opened).max())
            color = opened.mode not in ("1", "L", "LA", "La") and bits == 8
            if opened.mode == "P":  # a palette may hold grays only
                color = _has_color(opened)
            return Seen(color, opened.has_transparency_data, bits, highest)
    except Exception:  # decoding says what is wrong, when the image is read
        return None


def _has_color(image: Image.Image) -> bool:
    palette = np.reshape(image.getpalette("RGB") or [0, 0, 0], (-1, 3))
    return bool((palette != palette[:, :1]).any())


def _warn_once(data: str, kind: str, message: str) -> None:
    """Logs a warning unless there was one of its kind about this data."""
    if (data, kind) not in _warned:
        _warned.add((data, kind))
        logging.warning("%r: %s", data, message)


_warned: set[tuple[str, str]] = set()  # by this process: a split is opened many times
