"""DeepMind's multi-object TFRecords: Tetrominoes, Multi-dSprites and CLEVR with masks.

They are gzipped, and a gzipped file can only be read from its start. So what a run needs is read once,
record by record, and kept in the cache.

Source of the layout: google-deepmind/multi_object_datasets.
"""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from attn_jax.data import bounded, packed_scenes, tfrecords
from attn_jax.data.packed_scenes import Scene
from attn_jax.protobuf import Damaged

SUFFIXES = (".tfrecords", ".tfrecord", ".tfrecords.gz", ".tfrecord.gz")
SHAPES = {  # bytes of an image: its shape
    35 * 35 * 3: (35, 35, 3),  # Tetrominoes
    64 * 64 * 3: (64, 64, 3),  # Multi-dSprites
    64 * 64: (64, 64, 1),  # Multi-dSprites, binarized
    240 * 320 * 3: (240, 320, 3),  # CLEVR with masks
}


class Need(NamedTuple):
    """How much of a file a run reads.

    The first `train` records, and as many later ones as it takes until `held_out` have `fewest` to
    `most` objects.
    """

    train: int
    held_out: int
    fewest: int
    most: int


def open_tfrecords(path: pathlib.Path, need: Need) -> packed_scenes.PackedScenes:
    """Opens a file; an image has as many objects as entities but the background are visible.

    An entry of the cache is of path, size and time of the file, and of `need`.

    Raises:
        ValueError: the file is cut short or damaged, or of another set; the record is named.
    """
    status = path.stat()
    known = (str(path.resolve()), status.st_size, status.st_mtime_ns, tuple(need))
    return packed_scenes.keep(known, path.name, lambda: read_needed(path, need))


def read_needed(path: pathlib.Path, need: Need) -> Iterator[Scene]:
    """Yields the scenes of a file that a run needs."""
    held_out = 0
    for number, scene in enumerate(read_scenes(path)):
        if number >= need.train:
            if held_out >= need.held_out:
                return
            held_out += need.fewest <= scene.objects <= need.most
        yield scene


def read_scenes(path: pathlib.Path) -> Iterator[Scene]:
    """Yields all scenes of a file."""
    for number, data in enumerate(tfrecords.read_records(path)):
        try:
            yield decode(tfrecords.parse_example(data))
        except Damaged as error:
            raise ValueError(
                f"{bounded.printable(path)}: record {number:,} cannot be read: {error}. It must "
                "be a file of Tetrominoes, Multi-dSprites or CLEVR with masks."
            ) from error


def decode(example: dict[str, np.ndarray]) -> Scene:
    """Shapes the arrays of an Example.

    Raises:
        Damaged: a feature is missing, or has another length.
    """
    if missing := {"image", "mask", "visibility"} - example.keys():
        raise Damaged(
            f"it lacks {', '.join(sorted(missing))}; it has {sorted(example)}"
        )
    image, mask, visible = (example[k] for k in ("image", "mask", "visibility"))
    shape = SHAPES.get(image.size)
    if shape is None or image.dtype != np.uint8:
        raise Damaged(f"its image has {image.size:,} values of {image.dtype}")
    height, width, _ = shape
    entities = len(visible)
    if mask.size != entities * height * width or mask.dtype != np.uint8 or not entities:
        raise Damaged(
            f"its mask has {mask.size:,} values of {mask.dtype} for {entities} entities of "
            f"{height} x {width} pixels"
        )
    covered: Bool[np.ndarray, "E H W"]
    if "orientation" in example:  # Multi-dSprites stores the entities last
        covered = (mask != 0).reshape(height, width, entities).transpose(2, 0, 1)
    else:
        covered = (mask != 0).reshape(entities, height, width)
    objects = int((visible[1:] > 0).sum())
    return Scene(image.reshape(shape), find_front(covered), objects)


def find_front(covered: Bool[np.ndarray, "E H W"]) -> UInt8[np.ndarray, "H W"]:
    """The last entity of every pixel, 0 where there is none: 0 and 255 or 0 and 1 alike."""
    numbers: Integer[np.ndarray, "E 1 1"] = np.arange(len(covered))[:, None, None]
    return (covered * numbers).max(0).astype(np.uint8)
