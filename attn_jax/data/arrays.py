"""Labeled images in memory: the embedded digits, .npz archives, idx files (MNIST).

Each `open_*` returns {split: function that opens it}; `sources.open_split` chooses one.
"""

import functools
import gzip
import hashlib
import math
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from attn_jax.data import bounded
from attn_jax.data.files import LeftOut

NPZ_NAMES = {  # {split: what may follow x_ and y_ in a key}
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
IDX = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")


class Arrays:
    """Records in memory; each `image` is a read-only view."""

    skipped = 0

    def __init__(
        self,
        images: UInt8[np.ndarray, "N H W C"],
        labels: Integer[np.ndarray, " N"],
        names: tuple[str, ...] | None = None,
        left_out: LeftOut = (),
    ):
        self.images, self.targets, self.labels = images.view(), labels, names
        self.left_out = left_out
        self.images.flags.writeable = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.targets[index])}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.targets.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def split_stratified(labels: np.ndarray, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (indices kept, `held` indices held out), both with the class proportions.

    Raises:
        ValueError: a side would have too few examples of the classes.
    """
    from sklearn.model_selection import train_test_split  # slow to import

    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2 or not len(classes) <= held <= len(labels) - len(classes):
        raise ValueError(
            f"holdout={held} of {len(labels)} training examples in {len(classes)} "
            f"classes (the rarest has {counts.min()}): every class needs two examples, "
            "and both sides as many examples as there are classes. "
            "Change config.task.holdout."
        )
    kept, held_out = train_test_split(
        np.arange(len(labels)), test_size=held, random_state=0, stratify=labels
    )
    return kept, held_out


def open_digits() -> Mapping[str, Callable[[], Arrays]]:
    """Returns {split: opener} of scikit-learn's digits."""

    def make_opener(part: int) -> Callable[[], Arrays]:
        def open_split() -> Arrays:
            from sklearn.datasets import load_digits  # slow to import

            pixels, labels = load_digits(return_X_y=True)
            pixels = np.round(pixels * 255 / 16)  # 0..16 in the original
            gray = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)
            chosen = split_stratified(labels, 360)[part]
            return Arrays(gray[chosen], labels[chosen], tuple("0123456789"))

        return open_split

    return {"train": make_opener(0), "test": make_opener(1)}


def open_npz(path: pathlib.Path) -> Mapping[str, Callable[[], Arrays]]:
    """Returns {split: opener} of the keys x_SPLIT, y_SPLIT.

    Raises:
        ValueError: the file is no .npz, or has keys of no split.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = {info.filename: info for info in archive.infolist()}
    except Exception as error:  # a damaged table raises many kinds
        raise ValueError(f"{path} is no readable .npz file: {error}") from error
    for name, info in files.items():
        bounded.check_expansion(info.compress_size, info.file_size, f"{path}:{name}")
    keys = {name.removesuffix(".npy") for name in files}
    splits: dict[str, str] = {}
    for split, names in NPZ_NAMES.items():
        found = [name for name in names if {f"x_{name}", f"y_{name}"} & keys]
        if len(found) > 1:
            raise ValueError(
                f"{path} holds both x_{found[0]} and x_{found[1]}, two names of one "
                "split. Remove one."
            )
        if found:
            splits[split] = found[0]
    if not splits:
        raise ValueError(
            f"{path} holds the keys {sorted(keys)}; it must hold x_train, y_train, "
            "x_test, y_test (and may hold x_validation, y_validation, or x_val, y_val)."
        )
    read = {f"{axis}_{name}" for axis in "xy" for name in splits.values()}
    left_out = tuple((key, "not a key that we read") for key in sorted(keys - read))
    return {
        split: functools.partial(_read_npz, path, files, name, left_out)
        for split, name in splits.items()
    }


def _read_npz(
    path: pathlib.Path,
    files: Mapping[str, zipfile.ZipInfo],
    name: str,
    left_out: LeftOut,
) -> Arrays:
    x, y = f"x_{name}", f"y_{name}"
    for key in (x, y):
        if f"{key}.npy" not in files:
            raise ValueError(f"{path} lacks {key}; a split needs both {x} and {y}.")
    try:
        with zipfile.ZipFile(path) as archive:
            pixels, labels = (
                bounded.read_npy(archive, files[f"{key}.npy"]) for key in (x, y)
            )
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: cannot read {x}, {y}: {reason}") from error
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or not pixels.size:
        raise ValueError(
            f"{path}: {x} is {pixels.dtype} {list(pixels.shape)}; images must be uint8 "
            "[N, H, W] or [N, H, W, C], at least one. Store pixel values 0..255."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras stores CIFAR
        labels = labels[:, 0]
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (len(pixels),) or not whole or labels.min() < 0:
        raise ValueError(
            f"{path}: {y} is {labels.dtype} {list(labels.shape)} for {len(pixels)} "
            "images; labels must be one whole number from 0 up for each image."
        )
    return Arrays(pixels.reshape(*pixels.shape[:3], -1), labels, left_out=left_out)


def is_idx(name: str) -> bool:
    """Whether a file of this name is one of MNIST's four."""
    return IDX.fullmatch(name) is not None


def open_idx(folder: pathlib.Path) -> Mapping[str, Callable[[], Arrays]]:
    """Returns {split: opener} of the idx files in `folder`; empty if it holds none."""

    def open_split(paths: tuple[pathlib.Path, pathlib.Path]) -> Arrays:
        return Arrays(*_read_idx(*paths), left_out=beside)

    found = _find_idx_files(folder)
    beside = tuple(
        (name, "beside the idx files")
        for name in sorted(path.name for path in folder.iterdir())
        if not is_idx(name)
    )
    return {split: functools.partial(open_split, found[split]) for split in found}


def _find_idx_files(
    folder: pathlib.Path,
) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """Returns {split: (image file, label file)} of the idx files in `folder`.

    Raises:
        ValueError: a split has images without labels, or labels without images.
    """
    found: dict[str, dict[str, pathlib.Path]] = {}
    for path in sorted(folder.iterdir()):  # a plain file precedes its .gz
        if match := IDX.fullmatch(path.name):
            split = "train" if match[1] == "train" else "test"
            found.setdefault(split, {}).setdefault(match[2], path)
    for split, paths in found.items():
        for kind in {"images", "labels"} - paths.keys():
            raise ValueError(
                f"{folder}: the {split} split has no idx file of {kind} beside "
                f"{next(iter(paths.values())).name}. Add the missing file."
            )
    return {split: (paths["images"], paths["labels"]) for split, paths in found.items()}


def _read_idx(
    image_file: pathlib.Path, label_file: pathlib.Path
) -> tuple[UInt8[np.ndarray, "N H W 1"], Int64[np.ndarray, " N"]]:
    """Reads images and labels from a pair of idx files, gzipped or not.

    Raises:
        ValueError: a file has another magic number, or another length than its header
            says; there are not as many images as labels.
    """
    pixels, labels = (
        _read_idx_array(image_file, dims=3),
        _read_idx_array(label_file, dims=1),
    )
    if len(pixels) != len(labels) or not len(pixels):
        raise ValueError(
            f"{image_file} holds {len(pixels)} images, {label_file.name} {len(labels)} "
            "labels; there must be one label for each image, and at least one. Fetch the "
            "pair again."
        )
    return pixels[..., None], labels.astype(np.int64)


def _read_idx_array(path: pathlib.Path, dims: int) -> np.ndarray:
    head = 4 + 4 * dims
    packed = bounded.check_regular(path)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            start = file.read(head)
            magic = 0x0800 + dims  # 0x08: unsigned bytes
            if len(start) < head or int.from_bytes(start[:4], "big") != magic:
                raise ValueError(
                    f"{path} starts with 0x{start[:4].hex()}; an idx file of uint8 with "
                    f"{dims} dimensions starts with 0x{magic:08x}. Fetch it again."
                )
            shape = struct.unpack(f">{dims}I", start[4:])
            size = math.prod(shape)
            bounded.check_expansion(packed, size, path)
            data = file.read(size + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} is no whole gzip file: {error}. Fetch it again."
            ) from error
    if len(data) != size:
        held = "more" if len(data) > size else f"{len(data):,}"
        raise ValueError(
            f"{path} holds {held} bytes of data, its header {list(shape)} "
            f"promises {size:,}. Fetch it again."
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
