"""RandAugment as big_vision applies it, and random erasing, in NumPy and Pillow.

The 16 operations give the same bytes as TensorFlow, oddities included, because recipes
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
    """`layers` operations in turn, each drawn uniformly from `OPERATIONS` and applied.

    Args:
        layers: number of operations; 0 returns the image.
        magnitude: strength of all of them, 10 being the paper's full scale; AugReg goes
            to 20. At 0 most operations still do something: Invert knows no strength,
            Brightness keeps a tenth.

    Raises:
        ValueError: a negative number.

    Source: big_vision, pp/archive/autoaugment.py `distort_image_with_randaugment`.
    """
    if layers < 0 or magnitude < 0:
        raise ValueError(f"{layers=} and {magnitude=} must be 0 or more.")
    image = np.ascontiguousarray(image)  # a mirrored view would slow each operation
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
    """With `probability`, a window of random area and aspect becomes noise.

    Every value is uniform in 0..255, the best of the paper's four fillings. If 10 windows
    in a row do not fit, the image stays as it is.

    Args:
        area: range of the window's share of the image; timm's (the paper: up to 0.4).
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


# --- one value to one value -----------------------------------------------------------


def invert(image: Pixels) -> Pixels:
    """255 - image."""
    return 255 - image


def posterize(image: Pixels, bits: int) -> Pixels:
    """The upper `bits` bits of each value; never less than 1 bit, as in TensorFlow."""
    shift = min(max(8 - bits, 0), 7)
    return image & np.uint8(256 - (1 << shift))


def solarize(image: Pixels, threshold: int) -> Pixels:
    """Values from `threshold` on are inverted."""
    values = np.arange(256)
    return _look_up(np.where(values < threshold, values, 255 - values), image)


def solarize_add(image: Pixels, addition: int) -> Pixels:
    """`addition` is added to values below 128, up to 255."""
    values = np.arange(256)
    added = np.clip(values + addition, 0, 255)
    return _look_up(np.where(values < 128, added, values), image)


def brightness(image: Pixels, factor: float) -> Pixels:
    """0 is black, 1 the image, more is brighter."""
    return _look_up(_blend(np.zeros(256, np.uint8), _VALUES, factor), image)


def contrast(image: Pixels, factor: float) -> Pixels:
    """0 is a flat gray, 1 the image, more is starker.

    The gray is H * W / 256, at most 255 (196 for 224 x 224 pixels): the original divides
    the sum of a histogram's counts by 256, where the mean intensity was meant.
    """
    gray = min(image.shape[0] * image.shape[1] // 256, 255)
    return _look_up(_blend(np.full(256, gray, np.uint8), _VALUES, factor), image)


def autocontrast(image: Pixels) -> Pixels:
    """Each channel stretched linearly to 0..255; a flat one stays."""
    tables = []
    for c in range(image.shape[2]):
        low, high = np.float32(image[:, :, c].min()), np.float32(image[:, :, c].max())
        if high > low:
            scale = np.float32(255) / (high - low)
            stretched = _VALUES.astype(np.float32) * scale - low * scale
            tables.append(np.clip(stretched, 0, 255).astype(np.uint8))
        else:
            tables.append(_VALUES)
    return _look_up_each(tables, _pillow(image), image.shape)


def equalize(image: Pixels) -> Pixels:
    """Each channel's values respaced so that its histogram becomes flat.

    A channel stays if fewer than 255 of its pixels are below its highest value.
    """
    pixels = _pillow(image)  # counts faster than np.bincount, which needs 64-bit values
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
    """One table per channel, in one call of Pillow."""
    return np.asarray(pixels.point(np.concatenate(tables).tobytes())).reshape(shape)


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image if image.shape[2] > 1 else image[:, :, 0])


_VALUES = np.arange(256, dtype=np.uint8)


# --- a blend with another image -------------------------------------------------------


def color(image: Pixels, factor: float) -> Pixels:
    """0 is gray, 1 the image, more is more colorful; a gray image stays."""
    if image.shape[2] == 1:
        return image
    # Channel by channel: a broadcast over a last axis of 3 takes three times as long.
    unit = [image[:, :, c] * np.float32(1 / 255) for c in range(3)]
    gray = unit[0] * np.float32(0.2989) + unit[1] * np.float32(0.587)
    gray += unit[2] * np.float32(0.114)
    gray *= np.float32(255.5)  # TensorFlow's way back from 0..1 to uint8
    gray = gray.astype(np.uint8)
    out = np.empty_like(image)
    for c in range(3):
        out[:, :, c] = _blend(gray, image[:, :, c], factor)
    return out


def sharpness(image: Pixels, factor: float) -> Pixels:
    """0 is smoothed, 1 the image, more is sharper; the outermost pixels stay."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = _smooth(image)
    return _blend(smooth, image, factor)


def _smooth(
    image: Pixels,
) -> UInt8[np.ndarray, "h w C"]:
    """trunc(sum of 3 x 3 values with weight 1, the middle 5, over 13), borders cut off.

    The original sums float32 products with one rounding per tap (a fused multiply-add).
    This equals the integer quotient unless the sum is a multiple of 13, where it may come
    out just below. Only those pixels are computed as in the original; for flat windows
    (possibly the whole image, once it holds `FILL`) a table has the results.
    """
    wide = image.astype(np.uint16)
    total = _over_window(np.add, wide)
    total += 4 * wide[1:-1, 1:-1]
    quotient = total // np.uint16(13)
    smooth = quotient.astype(np.uint8, order="C")  # written to through a flat view

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
    """`function` over each 3 x 3 window, [H - 2, W - 2, C]."""
    rows = function(image[:-2], image[1:-1])
    function(rows, image[2:], out=rows)
    window = function(rows[:, :-2], rows[:, 1:-1])
    return function(window, rows[:, 2:], out=window)


def _fused_mean(taps: list[np.ndarray]) -> np.ndarray:
    total = np.zeros(taps[0].shape, np.float32)
    for number, values in enumerate(taps):
        weight = np.float32(5 if number == 4 else 1) / np.float32(13)
        # Exact in float64 (8 + 24 bits, aligned), so rounded once, as a fused one is.
        exact = values * np.float64(weight)
        exact += total
        total[:] = exact
    return total.astype(np.uint8)


def _blend(low: np.ndarray, high: np.ndarray, factor: float) -> np.ndarray:
    """low + factor * (high - low) in float32, clipped to 0..255 and truncated."""
    if factor == 1:
        return high
    base = low.astype(np.float32)
    mixed = np.subtract(high, base, dtype=np.float32)
    mixed *= np.float32(factor)
    mixed += base
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


_SMOOTH_FLAT = _fused_mean([_VALUES] * 9)  # what a flat window's value becomes


# --- pixels moved ---------------------------------------------------------------------


def rotate(image: Pixels, degrees: float) -> Pixels:
    """Counter-clockwise about the center, nearest pixel."""
    angle = np.float32(math.radians(degrees))
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    bottom, right = np.float32(image.shape[0] - 1), np.float32(image.shape[1] - 1)
    x = (right - (cos * right - sin * bottom)) / np.float32(2)
    y = (bottom - (sin * right + cos * bottom)) / np.float32(2)
    return _move(image, tuple(map(float, (cos, -sin, x, sin, cos, y))))


def shear_x(image: Pixels, level: float) -> Pixels:
    """Row y moves left by level * y pixels."""
    return _move(image, (1, level, 0, 0, 1, 0))


def shear_y(image: Pixels, level: float) -> Pixels:
    """Column x moves up by level * x pixels."""
    return _move(image, (1, 0, 0, level, 1, 0))


def translate_x(image: Pixels, pixels: float) -> Pixels:
    """Moves the image to the left."""
    return _move(image, (1, 0, pixels, 0, 1, 0))


def translate_y(image: Pixels, pixels: float) -> Pixels:
    """Moves the image up."""
    return _move(image, (1, 0, 0, 0, 1, pixels))


def cutout(image: Pixels, row: int, column: int, pad: int) -> Pixels:
    """A square of side 2 * `pad` around (row, column), cut at the border, is filled."""
    out = image.copy()
    out[max(row - pad, 0) : row + pad, max(column - pad, 0) : column + pad] = FILL
    return out


def _move(image: np.ndarray, transform: tuple[float, ...]) -> np.ndarray:
    height, width, channels = image.shape
    outside = np.full((1, channels), FILL, np.uint8)
    pixels = np.concatenate([image.reshape(-1, channels), outside])
    return pixels.take(_places(height, width, transform), axis=0)


@functools.lru_cache(maxsize=16)  # one recipe needs 10: five operations, two signs
def _places(height: int, width: int, transform: tuple[float, ...]) -> np.ndarray:
    """[H, W]: the source of each pixel among the H * W; H * W itself is outside.

    Pixel (x, y) comes from (a x + b y + c, d x + e y + f), computed in float32 and
    rounded half away from zero, as in TensorFlow's ImageProjectiveTransform.
    """
    a, b, c, d, e, f = (np.float32(number) for number in transform)
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    column = _rounded(a * x + b * y + c)
    row = _rounded(d * x + e * y + f)
    inside = (0 <= column) & (column < width) & (0 <= row) & (row < height)
    places = np.where(inside, row * width + column, height * width)
    places.flags.writeable = False  # shared by the cache
    return places


def _rounded(x: np.ndarray) -> np.ndarray:
    whole = np.trunc(x)
    return (whole + np.sign(x) * (np.abs(x - whole) >= 0.5)).astype(np.intp)


# --- strength to argument -------------------------------------------------------------


def _signed(value: float, rng: np.random.Generator) -> float:
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
    "Rotate": lambda image, level, rng: rotate(image, _signed(level * 30, rng)),
    "Posterize": lambda image, level, rng: posterize(image, int(level * 4)),
    # A threshold of 256 wraps to 0 in TensorFlow: at magnitude 10 all is inverted.
    "Solarize": lambda image, level, rng: solarize(image, int(level * 256) % 256),
    "SolarizeAdd": lambda image, level, rng: solarize_add(image, int(level * 110)),
    "Color": lambda image, level, rng: color(image, level * 1.8 + 0.1),
    "Contrast": lambda image, level, rng: contrast(image, level * 1.8 + 0.1),
    "Brightness": lambda image, level, rng: brightness(image, level * 1.8 + 0.1),
    "Sharpness": lambda image, level, rng: sharpness(image, level * 1.8 + 0.1),
    "ShearX": lambda image, level, rng: shear_x(image, _signed(level * 0.3, rng)),
    "ShearY": lambda image, level, rng: shear_y(image, _signed(level * 0.3, rng)),
    "TranslateX": lambda image, level, rng: translate_x(
        image, _signed(level * 100, rng)
    ),
    "TranslateY": lambda image, level, rng: translate_y(
        image, _signed(level * 100, rng)
    ),
    "Cutout": lambda image, level, rng: _cutout(image, int(level * 40), rng),
}
