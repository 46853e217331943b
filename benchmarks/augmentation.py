"""Images per second that one core prepares for training: ours against timm's in Pillow.

    python benchmarks/augmentation.py

Both convert the JPEG bytes of scikit-learn's two photos (640 x 427) to a uint8 array of
224 x 224 with RandAugment (2, 10), in turn, in one process that is pinned to one core. Ours is
what `Classify` does for a record. The other is timm's default training transform, written here
after its data/transforms_factory.py: RandomResizedCrop (bicubic), flip, and two of 15
operations, each applied with probability 1/2, with bilinear or bicubic moves.
"""

import argparse
import io
import os
import pathlib
import statistics
import sys
import time

import numpy as np
import report
import sklearn.datasets
from PIL import Image, ImageEnhance, ImageOps

sys.path.insert(0, str(report.ROOT))

from attn_jax.data import augment, decoding, images

STAGES = ("decode", "crop to 224", "flip, RandAugment", "all")
SIZE = 224
LEVEL = 1.0  # magnitude 10 of 10
GRAY = (128, 128, 128)


def read_photos() -> list[bytes]:
    """Reads the files as scikit-learn ships them."""
    folder = pathlib.Path(sklearn.datasets.__file__).parent / "images"
    return [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]


# --- ours -----------------------------------------------------------------------------


def ours_decode(data, rng):
    return decoding.decode(data, 3)


def ours_crop(image, rng):
    return images.inception_crop(image, (SIZE, SIZE), rng)


def ours_augment(image, rng):
    return augment.randaugment(images.flip(image, rng), 2, 10, rng)


# --- timm's way -----------------------------------------------------------------------


def pillow_decode(data, rng):
    return Image.open(io.BytesIO(data)).convert("RGB")


def pillow_crop(image, rng):
    """RandomResizedCrop: area .08-1, log-uniform aspect 3/4-4/3, ten attempts."""
    width, height = image.size
    for _ in range(10):
        area = rng.uniform(0.08, 1) * width * height
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if w <= width and h <= height:
            break
    else:
        w = h = min(width, height)
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    box = (left, top, left + w, top + h)
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)


def pillow_augment(image, rng):
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for index in rng.integers(len(OPERATIONS), size=2):
        if rng.random() < 0.5:
            image = OPERATIONS[index](image, rng)
    return np.asarray(image)


def draw_sign(value, rng):
    return value if rng.random() < 0.5 else -value


def draw_filter(rng):
    choices = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    return choices[int(rng.integers(2))]


def transform(image, rng, a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0):
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        draw_filter(rng),
        fillcolor=GRAY,
    )


def solarize_add(image, rng):
    table = [min(v + 110, 255) if v < 128 else v for v in range(256)]
    return image.point(table * 3)


def make_enhancer(enhancer):
    return lambda image, rng: enhancer(image).enhance(0.1 + 1.8 * LEVEL)


OPERATIONS = [
    lambda image, rng: ImageOps.autocontrast(image),
    lambda image, rng: ImageOps.equalize(image),
    lambda image, rng: ImageOps.invert(image),
    lambda image, rng: image.rotate(
        draw_sign(30 * LEVEL, rng), draw_filter(rng), fillcolor=GRAY
    ),
    lambda image, rng: ImageOps.posterize(image, int(4 * LEVEL)),
    lambda image, rng: ImageOps.solarize(image, int(256 * LEVEL)),
    solarize_add,
    make_enhancer(ImageEnhance.Color),
    make_enhancer(ImageEnhance.Contrast),
    make_enhancer(ImageEnhance.Brightness),
    make_enhancer(ImageEnhance.Sharpness),
    lambda image, rng: transform(image, rng, b=draw_sign(0.3 * LEVEL, rng)),
    lambda image, rng: transform(image, rng, d=draw_sign(0.3 * LEVEL, rng)),
    lambda image, rng: transform(image, rng, c=draw_sign(0.45 * LEVEL * SIZE, rng)),
    lambda image, rng: transform(image, rng, f=draw_sign(0.45 * LEVEL * SIZE, rng)),
]


# --- measurement ----------------------------------------------------------------------


PIPELINES = {
    "ours": (ours_decode, ours_crop, ours_augment),
    "timm's way": (pillow_decode, pillow_crop, pillow_augment),
}


def time_stages(stages, files: list[bytes], count: int, seed: int) -> list[float]:
    """Returns the seconds per image of each stage and of all, over `count` images."""
    rng, spent = np.random.default_rng(seed), [0.0] * len(stages)
    for number in range(count):
        value = files[number % len(files)]
        for place, stage in enumerate(stages):
            began = time.perf_counter()
            value = stage(value, rng)
            spent[place] += time.perf_counter() - began
        assert value.shape == (SIZE, SIZE, 3)
    return [total / count for total in (*spent, sum(spent))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="images a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    where = report.provenance()  # before pinning, after which one core is counted
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    files = read_photos()
    for stages in PIPELINES.values():  # warm-up: tables, caches, plugins
        time_stages(stages, files, 50, seed=0)
    rounds = {name: [] for name in PIPELINES}
    for seed in range(options.rounds):
        for name, stages in PIPELINES.items():
            rounds[name].append(time_stages(stages, files, options.count, seed))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in rounds.items()
    }
    ours, other = medians.values()
    ratio = statistics.median(
        theirs[-1] / mine[-1] for mine, theirs in zip(*rounds.values(), strict=True)
    )
    report.write(
        "augmentation",
        [
            f"### Augmentation: {1 / ours[-1]:.0f} images/s on one core, "
            f"{ratio:.2f} times timm's way",
            "",
            f"`python benchmarks/augmentation.py --count={options.count} "
            f"--rounds={options.rounds}` ({where})",
            "",
            "JPEG of 640 x 427, RandAugment (2, 10), 224 x 224. Medians over alternating "
            f"rounds of {options.count:,} images. Ours resizes bilinearly without antialias and "
            "moves by nearest pixel, as big_vision does; timm's way resizes by bicubic "
            "and applies each operation with probability 1/2.",
            "",
            "| ms per image | ours | timm's way in Pillow |",
            "|---|---|---|",
            *(
                f"| {stage} | {1e3 * mine:.2f} | {1e3 * theirs:.2f} |"
                for stage, mine, theirs in zip(STAGES, ours, other, strict=True)
            ),
            f"| images/s | {1 / ours[-1]:.0f} | {1 / other[-1]:.0f} |",
        ],
    )


if __name__ == "__main__":
    main()
