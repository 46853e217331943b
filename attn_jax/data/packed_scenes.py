"""Scenes written once into the cache, where a run has random access to them.

An entry is a folder: `records`, image and ids of each scene compressed one by one, and
`index.npz`, where each begins and how many objects it has.
"""

import hashlib
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float32, UInt8

from attn_jax.data import bounded, scenes
from attn_jax.folder import find_cache

FORMAT = 1


class Scene(NamedTuple):
    """`mask` has the number of the object of each pixel, 0 the background."""

    image: UInt8[np.ndarray, "H W C"]
    mask: UInt8[np.ndarray, "H W"]
    objects: int
    properties: Float32[np.ndarray, "N 19"] | None = None


class PackedScenes:
    """Records in the order in which they were written.

    Record: `image` uint8 [H, W, 3], also if it was gray; `mask` uint8 [H, W]; `properties` if
    they were written; `name`; `label` 0, as there are no classes.
    """

    labels = None
    has_counts = True
    left_out = ()

    def __init__(self, folder: pathlib.Path, where: str):
        self.folder, self.where = folder, where
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            self.starts, self.counts = index["starts"], index["counts"]
            self.shape = tuple(index["shape"].tolist())
            self.digest = str(index["digest"])
            self.properties = index["properties"] if "properties" in index else None
        size = (folder / "records").stat().st_size
        if size != self.starts[-1] or len(self.starts) != len(self.counts) + 1:
            raise ValueError(f"{size:,} bytes instead of {self.starts[-1]:,}")

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
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
        record = {
            "image": image if channels == 3 else image.repeat(3, axis=2),
            "mask": raw[pixels * channels :].reshape(height, width),
            "name": self.name(index),
            "label": 0,
        }
        if self.properties is not None:
            record["properties"] = self.properties[index]
        return record

    def count_objects(self, index: int) -> int:
        return int(self.counts[index])

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def fingerprint(self) -> str:
        return self.digest[:16]


def keep(known: Any, where: str, make: Callable[[], Iterable[Scene]]) -> PackedScenes:
    """Opens the entry of the cache that is named by a digest of `known`, or writes it.

    A scene at a time is in memory. The cache is `folder.find_cache()`; a damaged entry is
    written again, and what fails on the way leaves nothing behind.

    Args:
        known: all that the scenes depend on; its `repr` is digested.
        where: name of the scenes in messages.
        make: gives the scenes, in order.

    Raises:
        ValueError: there is no scene, or images differ in shape.
    """
    digest = hashlib.sha256(repr((FORMAT, known)).encode()).hexdigest()
    folder = find_cache() / f"scenes-{digest[:32]}"
    if folder.is_dir():
        try:
            return PackedScenes(folder, where)
        except (OSError, ValueError, KeyError) as error:
            logging.warning("%s is damaged (%s) and is written again.", folder, error)
            shutil.rmtree(folder)
    logging.info("writing %s once, into %s", where, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        write(make(), where, temporary)
        try:
            temporary.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return PackedScenes(folder, where)


def keep_generated(source: scenes.Generated) -> PackedScenes:
    """The scenes of a generated source, generated once."""

    def make() -> Iterable[Scene]:
        for index in range(len(source)):
            record = source[index]
            mask = record["mask"]
            yield Scene(
                record["image"], mask, int(mask.max()), record.get("properties")
            )

    described = source.describe()
    return keep(described, described, make)


def write(content: Iterable[Scene], where: str, folder: pathlib.Path) -> None:
    """Writes scenes and their index."""
    starts, counts, properties, digest = [0], [], [], hashlib.sha256()
    shape = None
    with (folder / "records").open("wb") as file:
        for scene in content:
            if shape not in (None, scene.image.shape):
                raise ValueError(
                    f"{where}: image {len(counts):,} is {list(scene.image.shape)}, the ones before "
                    f"are {list(shape)}. Keep them apart."
                )
            shape = scene.image.shape
            packed = zlib.compress(scene.image.tobytes() + scene.mask.tobytes(), 1)
            file.write(packed)
            digest.update(packed)
            starts.append(starts[-1] + len(packed))
            counts.append(scene.objects)
            if scene.properties is not None:
                properties.append(scene.properties)
    if not counts:
        raise ValueError(f"{where} holds no record.")
    arrays: dict[str, Any] = {"properties": np.stack(properties)} if properties else {}
    np.savez(
        folder / "index.npz",
        starts=np.array(starts, np.int64),
        counts=np.array(counts, np.int16),
        shape=np.array(shape),
        digest=np.array(digest.hexdigest()),
        **arrays,
    )
