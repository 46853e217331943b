"""DeepMind's multi-object TFRecords, packed once into a file with random access.

A gzipped file can only be read from its start. So what a run needs of it is read once, record by
record, and kept in the cache: image and ids, compressed one by one, and where each begins.
"""

import hashlib
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Integer, UInt8

from attn_jax.data import bounded, tfrecords
from attn_jax.folder import find_cache
from attn_jax.protobuf import Damaged

FORMAT = 1
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


class PackedScenes:
    """Records in the order of the file: `image` uint8 [H, W, 3], `mask`, `name`, `label` 0.

    `mask` uint8 [H, W] is the number of the entity, 0 the background. The number of objects is that
    of the entities but the background that the file calls visible.
    """

    labels = None
    has_counts = True
    left_out = ()

    def __init__(self, folder: pathlib.Path, where: str):
        self.folder, self.where = folder, where
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            self.starts, self.counts = index["starts"], index["counts"]
            self.shape, self.digest = (
                tuple(index["shape"].tolist()),
                str(index["digest"]),
            )
        size = (folder / "records").stat().st_size
        if size != self.starts[-1] or len(self.starts) != len(self.counts) + 1:
            raise ValueError(f"{size:,} bytes instead of {self.starts[-1]:,}")

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self.starts[index : index + 2].tolist()
        with (self.folder / "records").open("rb") as file:
            file.seek(start)
            packed = file.read(end - start)
        height, width, channels = self.shape
        pixels = height * width
        data = bounded.inflate(packed, pixels * (channels + 1), wbits=15)
        if data is None:
            raise ValueError(
                f"{self.folder} is damaged; remove it, and {self.where} is read again."
            )
        raw = np.frombuffer(data, np.uint8)
        image = raw[: pixels * channels].reshape(self.shape)
        return {
            "image": image if channels == 3 else image.repeat(3, axis=2),
            "mask": raw[pixels * channels :].reshape(height, width),
            "name": self.name(index),
            "label": 0,
        }

    def count_objects(self, index: int) -> int:
        return int(self.counts[index])

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def fingerprint(self) -> str:
        return self.digest[:16]


def open_tfrecords(path: pathlib.Path, need: Need) -> PackedScenes:
    """Opens a file of Tetrominoes, Multi-dSprites or CLEVR with masks; packs it if needed.

    Reading and packing holds one record in memory. The cache is `folder.find_cache()`; an entry is
    named by a digest of path, size and time of the file and of `need`.

    Raises:
        ValueError: the file is cut short or damaged, or of another set; the record is named.
    """
    status = path.stat()
    known = (FORMAT, str(path.resolve()), status.st_size, status.st_mtime_ns, need)
    digest = hashlib.sha256(repr(known).encode()).hexdigest()
    folder = find_cache() / f"scenes-{digest[:32]}"
    if folder.is_dir():
        try:
            return PackedScenes(folder, path.name)
        except (OSError, ValueError, KeyError) as error:
            logging.warning("%s is damaged (%s) and is written again.", folder, error)
            shutil.rmtree(folder)
    logging.info("reading %s once, into %s", path, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        pack(path, need, temporary)
        try:
            temporary.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return PackedScenes(folder, path.name)


def pack(path: pathlib.Path, need: Need, folder: pathlib.Path) -> None:
    """Writes the records that a run needs, and their index."""
    starts, counts, held_out, digest = [0], [], 0, hashlib.sha256()
    shape = None
    with (folder / "records").open("wb") as file:
        for image, mask, count in read_scenes(path):
            if shape not in (None, image.shape):
                raise ValueError(
                    f"{bounded.printable(path)}: record {len(counts):,} has an image of "
                    f"{list(image.shape)}, the ones before {list(shape)}. Keep them apart."
                )
            shape = image.shape
            packed = zlib.compress(image.tobytes() + mask.tobytes(), 1)
            file.write(packed)
            digest.update(packed)
            starts.append(starts[-1] + len(packed))
            counts.append(count)
            held_out += len(counts) > need.train and need.fewest <= count <= need.most
            if len(counts) >= need.train and held_out >= need.held_out:
                break
    if not counts:
        raise ValueError(f"{bounded.printable(path)} holds no record.")
    np.savez(
        folder / "index.npz",
        starts=np.array(starts, np.int64),
        counts=np.array(counts, np.int16),
        shape=np.array(shape),
        digest=np.array(digest.hexdigest()),
    )


def read_scenes(
    path: pathlib.Path,
) -> Iterator[tuple[UInt8[np.ndarray, "H W C"], UInt8[np.ndarray, "H W"], int]]:
    """Yields (image, number of the entity of each pixel, number of objects)."""
    for number, data in enumerate(tfrecords.read_records(path)):
        try:
            yield decode(tfrecords.parse_example(data))
        except Damaged as error:
            raise ValueError(
                f"{bounded.printable(path)}: record {number:,} cannot be read: {error}. It must "
                "be a file of Tetrominoes, Multi-dSprites or CLEVR with masks."
            ) from error


def decode(
    example: dict[str, np.ndarray],
) -> tuple[UInt8[np.ndarray, "H W C"], UInt8[np.ndarray, "H W"], int]:
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
    return image.reshape(shape), find_front(covered), int((visible[1:] > 0).sum())


def find_front(covered: Bool[np.ndarray, "E H W"]) -> UInt8[np.ndarray, "H W"]:
    """The last entity of every pixel, 0 where there is none: 0 and 255 or 0 and 1 alike."""
    numbers: Integer[np.ndarray, "E 1 1"] = np.arange(len(covered))[:, None, None]
    return (covered * numbers).max(0).astype(np.uint8)
