"""Opens images of several objects: generated ones by name, and the user's own."""

import concurrent.futures
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Integer

from attn_jax.data import (
    bounded,
    catalogue,
    clevr_lite,
    coco,
    masked_images,
    multi_object,
    packed_scenes,
    scenes,
    sprites,
)
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
            .npz with `images` and, if there are masks, `instances`; a .json as COCO's
            (`coco.open_json`); a TFRecord file of
            DeepMind's Tetrominoes, Multi-dSprites or CLEVR with masks (`multi_object`), of
            which the first `sizes["train"]` records are for training, as in the paper, the next
            for validation, then for testing; or "tfds:clevr" (no masks; see `catalogue`).
        sizes: {split: most images of it}.
        fewest, most: objects of an image that is read.

    Raises:
        ValueError: the data does not exist, cannot be read, or has too few images.
    """
    pools = open_pools(data, make_need(sizes, fewest, most))
    if not {split, "train"} & pools.keys():
        raise ValueError(f"{data!r} has no train split; it has: {', '.join(pools)}.")
    pool = pools[split if split in pools else "train"]
    kept, left_out = choose_by_objects(pool, fewest, most)
    if isinstance(pool, packed_scenes.PackedScenes):
        chosen = divide_in_order(kept, sizes)[split]
    else:
        # The splits that the data lacks are cut from its training images, in this order.
        cut = [name for name in ("test", "validation", "train") if name not in pools]
        before = 0
        if pool is pools.get("train"):
            earlier = cut[: cut.index(split)] if split in cut else cut
            before = sum(sizes[name] for name in earlier)
        chosen = choose_at_random(kept, before, sizes[split])
    if not len(chosen):
        wanted = ", ".join(f"{key}_images={sizes[key]:,}" for key in sizes)
        raise ValueError(
            f"{data!r}: no image is left for {split}: of {len(pool):,} images {len(kept):,} have "
            f"a fitting number of objects, and {wanted}. Lower the numbers of the other splits, or "
            "raise config.task.num_objects."
        )
    subset = Subset(pool, chosen)
    subset.left_out = (*pool.left_out, *left_out)
    return subset


def open_pools(data: str, need: multi_object.Need) -> Mapping[str, Any]:
    """Opens the images of a set, a file or a folder: {split: pool of images}."""
    if data.startswith("tfds:"):
        return catalogue.open_scenes(data.removeprefix("tfds:"))
    path = expand_local(data)
    if not path.exists():
        raise ValueError(
            f"config.task.data={bounded.printable(data)!r} is unknown; it must be a file or "
            f"folder that exists, 'tfds:clevr', or one of {', '.join(map(repr, NAMES))}."
        )
    if path.is_dir():
        return masked_images.open_folder(path)
    bounded.check_regular(path)
    if path.name.lower().endswith(multi_object.SUFFIXES):
        return {"train": multi_object.open_tfrecords(path, need)}
    if path.suffix.lower() == ".npz":
        return masked_images.open_npz(path)
    if path.suffix.lower() == ".json":
        return coco.open_json(path)
    raise ValueError(
        f"{bounded.printable(path)} is no set of images; expected a folder, an .npz, a .json as "
        f"COCO's, or a TFRecord file ({multi_object.SUFFIXES[0]})."
    )


def make_need(
    sizes: Mapping[str, int], fewest: int | None, most: int
) -> multi_object.Need:
    held_out = sizes["validation"] + sizes["test"]
    return multi_object.Need(sizes["train"], held_out, fewest or 0, most)


def divide_in_order(
    kept: Integer[np.ndarray, " N"], sizes: Mapping[str, int]
) -> dict[str, Integer[np.ndarray, " M"]]:
    """{split: numbers}: those below `sizes["train"]`, then validation, then test."""
    later = kept[kept >= sizes["train"]]
    return {
        "train": kept[kept < sizes["train"]],
        "validation": later[: sizes["validation"]],
        "test": later[sizes["validation"] :][: sizes["test"]],
    }


def choose_at_random(
    kept: Integer[np.ndarray, " N"], before: int, size: int
) -> Integer[np.ndarray, " M"]:
    """`size` numbers after the first `before` of a fixed random order; sorted."""
    order = kept[np.random.default_rng(0).permutation(len(kept))]
    return np.sort(order[before : before + size])


def choose_by_objects(
    pool: Any, fewest: int | None, most: int
) -> tuple[Integer[np.ndarray, " N"], list[tuple[str, str]]]:
    """(numbers of the images with `fewest` to `most` objects, names of the others).

    Every mask is read once; without masks, all images are kept. Of `tfds:clevr` the lists of
    objects are counted.
    """
    everything = np.arange(len(pool))
    if not pool.has_counts:
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
