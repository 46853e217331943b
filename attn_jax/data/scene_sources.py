"""Opens images of several objects: generated ones by name, and the user's own."""

import concurrent.futures
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Integer

from attn_jax.data import bounded, clevr_lite, masked_images, scenes, sprites
from attn_jax.data.views import Subset
from attn_jax.folder import expand_local

NAMES = (
    "tetrominoes",
    *(f"multi_dsprites/{variant}" for variant in sprites.VARIANTS),
    "clevr_lite",
    "clevr_lite/whole",
)


def open_generated(
    data: str,
    split: str,
    size: int,
    *,
    canvas: int,
    tile: int = 5,
    fewest: int | None = None,
    most: int,
    seed: int = 0,
) -> scenes.Generated:
    """Opens a split of generated images.

    Args:
        data: one of `NAMES`.
        size: number of images.
        canvas: side of the images in pixels.
        tile: side of a tile in pixels; of tetrominoes.
        fewest, most: objects in an image. None: 3 in clevr_lite, 2, 2 and 1 in the variants
            of multi_dsprites, and `most` in tetrominoes, whose number is fixed.

    Raises:
        ValueError: the data is unknown; what its class cannot draw.
    """
    name, _, variant = data.partition("/")
    if data not in NAMES:
        raise ValueError(
            f"config.task.data={data!r} is unknown; it must be one of "
            f"{', '.join(map(repr, NAMES))}."
        )
    if name == "tetrominoes":
        if fewest not in (None, most):
            raise ValueError(
                f"{fewest=} differs from {most=}, but all images of tetrominoes have "
                "equally many; set config.task.fewest_objects to None."
            )
        return scenes.Tetrominoes(
            split, size, canvas=canvas, tile=tile, pieces=most, seed=seed
        )
    if name == "multi_dsprites":
        return sprites.MultiSprites(
            split,
            size,
            variant=variant,
            canvas=canvas,
            fewest=fewest,
            most=most,
            seed=seed,
        )
    return clevr_lite.ClevrLite(
        split,
        size,
        canvas=canvas,
        fewest=3 if fewest is None else fewest,
        most=most,
        whole=variant == "whole",
        seed=seed,
    )


def open_files(
    data: str, split: str, sizes: Mapping[str, int], *, fewest: int | None, most: int
) -> Subset:
    """Opens a split of images that lie in files.

    Images with too many or too few objects are left out and named. If the data has no
    validation or test split, both are cut from its images in a fixed random order.

    Args:
        data: a folder (`masked_images.LAYOUT`, also below train/, validation/ and test/), or an
            .npz with `images` and, if there are masks, `instances`.
        sizes: {split: most images of it}.
        fewest, most: objects of an image that is read.

    Raises:
        ValueError: the data does not exist, cannot be read, or has too few images.
    """
    path = expand_local(data)
    if not path.exists():
        raise ValueError(
            f"config.task.data={bounded.printable(data)!r} is unknown; it must be a file or "
            f"folder that exists, or one of {', '.join(map(repr, NAMES))}."
        )
    pools = open_pools(path)
    pool = pools.get(split, pools["train"] if "train" in pools else None)
    if pool is None:
        raise ValueError(f"{data!r} has no train split; it has: {', '.join(pools)}.")
    kept, left_out = choose_by_objects(pool, fewest, most)
    order = kept[np.random.default_rng(0).permutation(len(kept))]
    cut = [] if split in pools and split != "train" else ["test", "validation"]
    start = 0
    for name in cut:
        if name == split:
            break
        start += sizes[name] if name not in pools else 0
    chosen = np.sort(order[start : start + sizes[split]])
    if not len(chosen):
        wanted = ", ".join(f"{key}_images={sizes[key]:,}" for key in sizes)
        raise ValueError(
            f"{data!r}: no image is left for {split}: of {len(pool):,} images {len(kept):,} have "
            f"a fitting number of objects, and {wanted}. Lower config.task.validation_images "
            "and test_images, or raise num_objects."
        )
    subset = Subset(pool, chosen)
    subset.left_out = (*pool.left_out, *left_out)
    return subset


def open_pools(path: pathlib.Path) -> Mapping[str, Any]:
    """Opens what is in a file or folder: {split: pool of images}."""
    if path.is_dir():
        return masked_images.open_folder(path)
    bounded.check_regular(path)
    if path.suffix.lower() == ".npz":
        return masked_images.open_npz(path)
    raise ValueError(
        f"{bounded.printable(path)} is no set of images; expected a folder or an .npz."
    )


def choose_by_objects(
    pool: Any, fewest: int | None, most: int
) -> tuple[Integer[np.ndarray, " N"], list[tuple[str, str]]]:
    """(numbers of the images with `fewest` to `most` objects, names of the others).

    Every mask is read once; without masks, all images are kept.
    """
    everything = np.arange(len(pool))
    if not pool.has_masks:
        return everything, []
    with concurrent.futures.ThreadPoolExecutor() as threads:
        counts = np.array(list(threads.map(pool.count_objects, range(len(pool)))))
    few, many = counts < (fewest or 0), counts > most
    left_out = [
        (pool.name(i), reason)
        for wrong, reason in (
            (many, f"with more than {most} objects"),
            (few, f"with less than {fewest}"),
        )
        for i in np.flatnonzero(wrong).tolist()
    ]
    return everything[~few & ~many], left_out
