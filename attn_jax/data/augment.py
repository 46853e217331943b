"""RandAugment as big_vision applies it, and random erasing, in NumPy and Pillow.

The 16 operations give the same bytes as TensorFlow's, oddities included, because recipes
were tuned with them (timm's RandAugment differs). An operation never changes its input,
but may return it. A gray image is treated as one channel of a color image.
Axes: H height, W width, C channels (1 or 3).

Source: Cubuk 2020; big_vision, pp/archive/autoaugment.py; golden arrays of TF 2.21.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "H W C"]
FILL = 128  # value outside the image and under a cutout


def randaugment(
    image: Pixels,
    layers: int,
    magnitude: float,
    rng: np.random.Generator,
) -> Pixels:
    """Applies `layers` operations in turn, each drawn uniformly from `OPERATIONS`.

    Args:
        layers: number of operations; 0 returns the image.
        magnitude: strength of all operations, 10 being the paper's full scale; AugReg goes
            to 20. At 0 most operations still change the image: Invert has no strength,
            Brightness keeps a tenth.

    Raises:
        ValueError: `layers` or `magnitude` is negative.

    Source: big_vision, pp/archive/autoaugment.py `distort_image_with_randaugment`.
    """
    if layers < 0 or magnitude < 0:
        raise ValueError(f"{layers=} and {magnitude=} must be 0 or more.")
    image = np.ascontiguousarray(image)  # operations are slower on a mirrored view
    operations = list(OPERATIONS.values())
    for index in rng.integers(len(operations), size=layers):
        image = operations[index](image, magnitude / 10, rng)
    return image


def random_erase(
    image: Pixels,
    probability: float,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Pixels:
    """Replaces a window of random area and aspect by noise, with `probability`.

    Every value is uniform in 0..255, the best of the paper's four fillings. If 10 windows
    in a row do not fit, the image is returned unchanged.

    Args:
        area: range of the window's share of the image; as in timm (the paper goes to 0.4).
        ratio: range of height / width, drawn log-uniformly.

    Raises:
        ValueError: `probability` is outside 0..1.

    Source: Zhong 2017 (arXiv 1708.04896), algorithm 1; timm, data/random_erasing.py.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"{probability=} must lie in 0..1.")
    if rng.random() >= probability:
        return image
    height, width, channels = image.shape
    for _ in range(10):
        target = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < h < height and 0 < w < width:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            image = image.copy()
            noise = rng.integers(256, size=(h, w, channels), dtype=np.uint8)
            image[top : top + h, left : left + w] = noise
            break
    return image


# --- operations on single values ------------------------------------------------------


def invert(image: Pixels) -> Pixels:
    """255 - image."""
    return 255 - image


def posterize(image: Pixels, bits: int) -> Pixels:
    """Keeps the upper `bits` bits of each value, but at least 1, as TensorFlow does."""
    shift = min(max(8 - bits, 0), 7)
    return image & np.uint8(256 - (1 << shift))


def solarize(image: Pixels, threshold: int) -> Pixels:
    """Inverts values from `threshold` on."""
    values = np.arange(256)
    return _look_up(np.where(values < threshold, values, 255 - values), image)


def solarize_add(image: Pixels, addition: int) -> Pixels:
    """Adds `addition` to values below 128; the result is at most 255."""
    values = np.arange(256)
    added = np.clip(values + addition, 0, 255)
    return _look_up(np.where(values < 128, added, values), image)


def brightness(image: Pixels, factor: float) -> Pixels:
    """Scales brightness: factor 0 is black, 1 the image, more is brighter."""
    return _look_up(_blend(np.zeros(256, np.uint8), _VALUES, factor), image)


def contrast(image: Pixels, factor: float) -> Pixels:
    """Scales contrast: factor 0 is a flat gray, 1 the image, more is stronger.

    The gray is H * W / 256, at most 255 (196 for 224 x 224 pixels): the original divides
    the sum of a histogram's counts by 256 instead of taking the mean intensity.
    """
    gray = min(image.shape[0] * image.shape[1] // 256, 255)
    return _look_up(_blend(np.full(256, gray, np.uint8), _VALUES, factor), image)


def autocontrast(image: Pixels) -> Pixels:
    """Stretches each channel linearly to 0..255; a flat channel stays."""
    tables = []
    for c in range(image.shape[2]):
        low, high = np.float32(image[:, :, c].min()), np.float32(image[:, :, c].max())
        if high > low:
            scale = np.float32(255) / (high - low)
            stretched = _VALUES.astype(np.float32) * scale - low * scale
            tables.append(np.clip(stretched, 0, 255).astype(np.uint8))
        else:
            tables.append(_VALUES)
    return _look_up_each(tables, _to_pillow(image), image.shape)


def equalize(image: Pixels) -> Pixels:
    """Equalizes the histogram of each channel.

    A channel stays if fewer than 255 of its pixels are below its highest value.
    """
    pixels = _to_pillow(image)  # faster than np.bincount, which needs 64-bit values
    tables = []
    for counts in np.reshape(pixels.histogram(), (-1, 256)):
        below = np.cumsum(counts) - counts  # pixels of a lower value
        step = int(below[np.flatnonzero(counts)[-1]]) // 255
        table = np.minimum((below + step // 2) // step, 255) if step else _VALUES
        tables.append(table.astype(np.uint8))
    return _look_up_each(tables, pixels, image.shape)


def _look_up(table: np.ndarray, image: np.ndarray) -> np.ndarray:
    return table.astype(np.uint8, copy=False).take(image)


def _look_up_each(
    tables: list[np.ndarray], pixels: Image.Image, shape: tuple[int, ...]
) -> np.ndarray:
    """Applies a table to each channel, in one call of Pillow."""
    return np.asarray(pixels.point(np.concatenate(tables).tobytes())).reshape(shape)


def _to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image if image.shape[2] > 1 else image[:, :, 0])


_VALUES = np.arange(256, dtype=np.uint8)


# --- blends with another image --------------------------------------------------------


def color(image: Pixels, factor: float) -> Pixels:
    """Scales saturation: factor 0 is gray, 1 the image; a gray image stays."""
    if image.shape[2] == 1:
        return image
    # Channel by channel: broadcasting over a last axis of 3 takes three times as long.
    unit = [image[:, :, c] * np.float32(1 / 255) for c in range(3)]
    gray = unit[0] * np.float32(0.2989) + unit[1] * np.float32(0.587)
    gray += unit[2] * np.float32(0.114)
    gray *= np.float32(255.5)  # as TensorFlow converts from 0..1 to uint8
    gray = gray.astype(np.uint8)
    out = np.empty_like(image)
    for c in range(3):
        out[:, :, c] = _blend(gray, image[:, :, c], factor)
    return out


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Scales sharpness: factor 0 is smoothed, 1 the image; the outermost pixels stay."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = _smooth(image)
    return _blend(smooth, image, factor)


def _smooth(
    image: Pixels,
) -> UInt8[np.ndarray, "h w C"]:
    """Averages windows of 3 x 3 values, the middle with weight 5, truncated to uint8.

    The result lacks the border. The original sums float32 products with one rounding per
    tap (a fused multiply-add). This equals the integer quotient, unless the sum is a
    multiple of 13: then it may be slightly less. Only those pixels are computed as in the
    original; a table has the results for flat windows (possibly the whole image, once it
    holds `FILL`).
    """
    wide = image.astype(np.uint16)
    total = _over_window(np.add, wide)
    total += 4 * wide[1:-1, 1:-1]
    quotient = total // np.uint16(13)
    smooth = quotient.astype(np.uint8, order="C")  # for the flat view below

    flat = _over_window(np.maximum, image) == _over_window(np.minimum, image)
    if flat.any():
        np.copyto(smooth, _SMOOTH_FLAT.take(image[1:-1, 1:-1]), where=flat)
    places = np.flatnonzero((total == quotient * np.uint16(13)) & ~flat)
    width, channels = image.shape[1:]
    row, rest = np.divmod(places, max((width - 2) * channels, 1))
    corner = row * (width * channels) + rest  # the window's first value in `image`
    values = image.reshape(-1)
    taps = [
        values.take(corner + (y * width + x) * channels)
        for y in range(3)
        for x in range(3)
    ]
    smooth.reshape(-1)[places] = _fused_mean(taps)
    return smooth


def _over_window(function: np.ufunc, image: np.ndarray) -> np.ndarray:
    """Reduces each 3 x 3 window by `function`, to [H - 2, W - 2, C]."""
    rows = function(image[:-2], image[1:-1])
    function(rows, image[2:], out=rows)
    window = function(rows[:, :-2], rows[:, 1:-1])
    return function(window, rows[:, 2:], out=window)


def _fused_mean(taps: list[np.ndarray]) -> np.ndarray:
    total = np.zeros(taps[0].shape, np.float32)
    for number, values in enumerate(taps):
        weight = np.float32(5 if number == 4 else 1) / np.float32(13)
        # Exact in float64 (8 + 24 bits, aligned), so only the assignment below rounds.
        exact = values * np.float64(weight)
        exact += total
        total[:] = exact
    return total.astype(np.uint8)


def _blend(low: np.ndarray, high: np.ndarray, factor: float) -> np.ndarray:
    """Returns low + factor * (high - low) in float32, clipped to 0..255 and truncated."""
    if factor == 1:
        return high
    base = low.astype(np.float32)
    mixed = np.subtract(high, base, dtype=np.float32)
    mixed *= np.float32(factor)
    mixed += base
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


_SMOOTH_FLAT = _fused_mean([_VALUES] * 9)  # {value of a flat window: result}


# --- moves of pixels ------------------------------------------------------------------


def rotate(image: Pixels, degrees: float) -> Pixels:
    """Rotates counterclockwise about the center, by nearest pixel."""
    angle = np.float32(math.radians(degrees))
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    bottom, right = np.float32(image.shape[0] - 1), np.float32(image.shape[1] - 1)
    x = (right - (cos * right - sin * bottom)) / np.float32(2)
    y = (bottom - (sin * right + cos * bottom)) / np.float32(2)
    return _move(image, tuple(map(float, (cos, -sin, x, sin, cos, y))))


def shear_x(image: Pixels, level: float) -> Pixels:
    """Moves row y to the left by level * y pixels."""
    return _move(image, (1, level, 0, 0, 1, 0))


def shear_y(image: Pixels, level: float) -> Pixels:
    """Moves column x up by level * x pixels."""
    return _move(image, (1, 0, 0, level, 1, 0))


def translate_x(image: Pixels, pixels: float) -> Pixels:
    """Moves the image to the left."""
    return _move(image, (1, 0, pixels, 0, 1, 0))


def translate_y(image: Pixels, pixels: float) -> Pixels:
    """Moves the image up."""
    return _move(image, (1, 0, 0, 0, 1, pixels))


def cutout(image: Pixels, row: int, column: int, pad: int) -> Pixels:
    """Fills a square of side 2 * `pad` around (row, column), cut at the border."""
    out = image.copy()
    out[max(row - pad, 0) : row + pad, max(column - pad, 0) : column + pad] = FILL
    return out


def _move(image: np.ndarray, transform: tuple[float, ...]) -> np.ndarray:
    height, width, channels = image.shape
    outside = np.full((1, channels), FILL, np.uint8)
    pixels = np.concatenate([image.reshape(-1, channels), outside])
    return pixels.take(_find_sources(height, width, transform), axis=0)


@functools.lru_cache(maxsize=16)  # a recipe needs 10: five operations, two signs
def _find_sources(height: int, width: int, transform: tuple[float, ...]) -> np.ndarray:
    """Returns [H, W]: the index of each pixel's source; H * W means outside.

    Pixel (x, y) comes from (a x + b y + c, d x + e y + f), computed in float32 and
    rounded half away from zero, as in TensorFlow's ImageProjectiveTransform.
    """
    a, b, c, d, e, f = (np.float32(number) for number in transform)
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    column = _round(a * x + b * y + c)
    row = _round(d * x + e * y + f)
    inside = (0 <= column) & (column < width) & (0 <= row) & (row < height)
    sources = np.where(inside, row * width + column, height * width)
    sources.flags.writeable = False  # shared by the cache
    return sources


def _round(x: np.ndarray) -> np.ndarray:
    whole = np.trunc(x)
    return (whole + np.sign(x) * (np.abs(x - whole) >= 0.5)).astype(np.intp)


# --- the argument of each operation, from its strength --------------------------------


def _draw_sign(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


def _cutout(image: np.ndarray, pad: int, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    return cutout(image, int(rng.integers(height)), int(rng.integers(width)), pad)


Operation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

# {name: operation of (image, magnitude / 10, rng)}, with the original's constants.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, level, rng: autocontrast(image),
    "Equalize": lambda image, level, rng: equalize(image),
    "Invert": lambda image, level, rng: invert(image),
    "Rotate": lambda image, level, rng: rotate(image, _draw_sign(level * 30, rng)),
    "Posterize": lambda image, level, rng: posterize(image, int(level * 4)),
    # A threshold of 256 wraps to 0 in TensorFlow: at magnitude 10 all is inverted.
    "Solarize": lambda image, level, rng: solarize(image, int(level * 256) % 256),
    "SolarizeAdd": lambda image, level, rng: solarize_add(image, int(level * 110)),
    "Color": lambda image, level, rng: color(image, level * 1.8 + 0.1),
    "Contrast": lambda image, level, rng: contrast(image, level * 1.8 + 0.1),
    "Brightness": lambda image, level, rng: brightness(image, level * 1.8 + 0.1),
    "Sharpness": lambda image, level, rng: sharpness(image, level * 1.8 + 0.1),
    "ShearX": lambda image, level, rng: shear_x(image, _draw_sign(level * 0.3, rng)),
    "ShearY": lambda image, level, rng: shear_y(image, _draw_sign(level * 0.3, rng)),
    "TranslateX": lambda image, level, rng: translate_x(
        image, _draw_sign(level * 100, rng)
    ),
    "TranslateY": lambda image, level, rng: translate_y(
        image, _draw_sign(level * 100, rng)
    ),
    "Cutout": lambda image, level, rng: _cutout(image, int(level * 40), rng),
}
