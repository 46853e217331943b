"""Labelled images in folders of encoded files, and in zips of such folders.

Every opener answers {split: function that opens it}, which `sources.load` chooses from.
"""

import functools
import hashlib
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

SUFFIXES = frozenset(".jpg .jpeg .png .bmp .webp .gif .tif .tiff .ppm .pgm".split())
FOLDERS = {  # folder name: split
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
LAYOUT = (
    "expected SPLIT/CLASS/IMAGE with SPLIT one of train, validation (val, valid), test"
)


class FolderImages:
    """Records are files ROOT/NAME; `image` is the undecoded file.

    Nothing stays open between reads, here and in `ZipImages`, so that threads, forks
    and pickled copies need no care.
    """

    skipped = 0

    def __init__(
        self,
        root: pathlib.Path,
        names: list[str],
        targets: Integer[np.ndarray, " N"],
        labels: tuple[str, ...],
    ):
        self.root, self.names, self.targets, self.labels = root, names, targets, labels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.root / self.names[index]
        label = int(self.targets[index])
        return {"image": path.read_bytes(), "label": label, "name": str(path)}

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(f"{name} {(self.root / name).stat().st_size}\n".encode())
        return digest.hexdigest()[:16]


def folder_openers(root: pathlib.Path) -> Mapping[str, Callable[[], FolderImages]]:
    """{split: opener} for ROOT/SPLIT/CLASS/IMAGE, classes numbered by sorted name."""
    inside = sorted(path.name for path in root.iterdir())
    splits = _splits([name for name in inside if (root / name).is_dir()], root)
    if not splits:
        shown = ", ".join(inside[:5]) or "nothing"
        raise ValueError(f"{root} holds {shown}; {LAYOUT}, or idx files.")

    def open_split(split: str) -> FolderImages:
        folder = splits[split]
        classes = {
            name: [
                f"{folder}/{name}/{file}" for file in os.listdir(root / folder / name)
            ]
            for name in _class_folders(root / folder)
        }
        known = _class_folders(root / splits["train"]) if "train" in splits else None
        return FolderImages(root, *_numbered(classes, known, root / folder))

    return {split: functools.partial(open_split, split) for split in splits}


class ZipImages:
    """Records are members of a zip file; `image` is the undecoded member.

    `members` [N, 5] holds what reading one member takes: its offset, its size in the
    zip, its size, its compression and its CRC. (`zipfile` would read the whole table of
    contents anew in every thread and worker.)
    """

    skipped = 0

    def __init__(
        self,
        path: pathlib.Path,
        names: list[str],
        targets: Integer[np.ndarray, " N"],
        labels: tuple[str, ...],
        members: Int64[np.ndarray, "N 5"],
    ):
        self.path, self.names, self.targets, self.labels = path, names, targets, labels
        self.members = members

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = f"{self.path}:{self.names[index]}"
        image = self._read(self.members[index].tolist(), name)
        return {"image": image, "label": int(self.targets[index]), "name": name}

    def _read(self, member: list[int], name: str) -> bytes:
        offset, packed_size, size, compression, crc = member
        with self.path.open("rb") as file:
            file.seek(offset)
            header = file.read(30)  # ends in the lengths of the name and the extra
            file.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)
            data = file.read(packed_size)
        if compression == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompress(data, wbits=-15, bufsize=max(size, 1))
            except zlib.error:
                data = b""
        if len(data) != size or zlib.crc32(data) != crc:
            raise ValueError(
                f"{name} is damaged inside the zip (wrong checksum). Make the zip "
                "anew, or set config.task.corrupt='skip' to leave such out."
            )
        return data

    def fingerprint(self) -> str:
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(self.members[:, [2, 4]].astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def zip_openers(path: pathlib.Path) -> Mapping[str, Callable[[], ZipImages]]:
    """{split: opener} for [FOLDER/]SPLIT/CLASS/IMAGE inside a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no whole zip file: {error}.") from error
    members = {k: v for k, v in members.items() if not k.startswith("__MACOSX/")}
    paths = {tuple(name.split("/")): name for name in members}
    tops = {parts[0] for parts in paths if len(parts) > 1}
    if len(tops) == 1 and not tops & FOLDERS.keys():  # one folder around everything
        paths = {parts[1:]: name for parts, name in paths.items()}
    tree: dict[str, dict[str, list[str]]] = {}
    for parts, name in paths.items():
        if len(parts) == 3 and not parts[1].startswith("."):  # a folder ends in ""
            tree.setdefault(parts[0], {}).setdefault(parts[1], []).append(name)
    splits = _splits(tree, path)
    if not splits:
        shown = ", ".join(list(members)[:5]) or "nothing"
        raise ValueError(f"{path} holds {shown}; {LAYOUT}.")

    def open_split(split: str) -> ZipImages:
        known = tree[splits["train"]] if "train" in splits else None
        where = f"{path}:{splits[split]}"
        names, targets, labels = _numbered(tree[splits[split]], known, where)
        table = [_member(members[name], path) for name in names]
        return ZipImages(path, names, targets, labels, np.array(table, np.int64))

    return {split: functools.partial(open_split, split) for split in splits}


def _member(info: zipfile.ZipInfo, path: pathlib.Path) -> tuple[int, ...]:
    readable = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if info.flag_bits & 1 or info.compress_type not in readable:
        raise ValueError(
            f"{path}:{info.filename} is encrypted or packed by method "
            f"{info.compress_type}; members must be stored or deflated. Zip them anew."
        )
    return (
        info.header_offset,
        info.compress_size,
        info.file_size,
        info.compress_type,
        info.CRC,
    )


def _splits(folders: Iterable[str], where: object) -> dict[str, str]:
    """{split: its folder}, of those folders that are named like a split."""
    splits: dict[str, str] = {}
    for folder in folders:
        split = FOLDERS.get(folder)
        if split in splits:
            raise ValueError(
                f"{where} holds both {splits[split]}/ and {folder}/, two names of one "
                "split. Remove or rename one."
            )
        if split:
            splits[split] = folder
    return {split: splits[split] for split in FOLDERS.values() if split in splits}


def _class_folders(folder: pathlib.Path) -> list[str]:
    return [
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    ]


def _numbered(
    classes: Mapping[str, list[str]], known: Iterable[str] | None, where: object
) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """(names, label of each, class names): sorted, so that no file system matters.

    Args:
        classes: {class: files, of which those named like an image count}.
        known: the classes of the training split, which number the labels.
    """
    labels = tuple(sorted(classes if known is None else known))
    if not classes:
        raise ValueError(f"{where} holds no class folder; {LAYOUT}.")
    if unknown := sorted(classes.keys() - set(labels)):
        raise ValueError(
            f"{where} holds classes that the training split lacks: "
            f"{', '.join(unknown[:5])}. Rename or remove them, or add them to train/."
        )
    names, targets = [], []
    for name in sorted(classes):
        found = sorted(file for file in classes[name] if _is_image(file))
        if not found:
            raise ValueError(
                f"{where}/{name} holds no image ({' '.join(sorted(SUFFIXES))}). "
                "Add images or remove the folder."
            )
        names += found
        targets += [labels.index(name)] * len(found)
    return names, np.array(targets, np.int64), labels


def _is_image(name: str) -> bool:
    stem = pathlib.PurePosixPath(name)
    return stem.suffix.lower() in SUFFIXES and not stem.name.startswith(".")
