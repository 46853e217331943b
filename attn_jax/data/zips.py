"""Labeled images in a zip file, in folders as in `files.py`, read without unpacking it."""

import functools
import hashlib
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

from attn_jax.data import bounded, files


class ZipImages:
    """Records are members of a zip file; `image` is the undecoded member.

    `members` [N, 5] holds, for each: offset, compressed size, size, compression method
    and CRC. With these, no thread or worker has to read the whole table of contents
    again, as `zipfile` would.
    """

    skipped = 0

    def __init__(
        self,
        path: pathlib.Path,
        names: list[str],
        targets: Integer[np.ndarray, " N"],
        labels: tuple[str, ...],
        members: Int64[np.ndarray, "N 5"],
        left_out: files.LeftOut = (),
    ):
        self.path, self.names, self.targets, self.labels = path, names, targets, labels
        self.members, self.left_out = members, left_out

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
            header = file.read(
                30
            )  # its last four bytes: lengths of name and extra field
            file.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)
            data = file.read(packed_size)
        if compression == zipfile.ZIP_DEFLATED:
            data = bounded.inflate(data, size) or b""
        if len(data) != size or zlib.crc32(data) != crc:
            raise ValueError(
                f"{bounded.printable(name)} is damaged inside the zip (wrong checksum). Make "
                "the zip again, or set config.task.corrupt='skip' to leave out such images."
            )
        return data

    def fingerprint(self) -> str:
        digest = hashlib.sha256(
            "\n".join(self.names).encode("utf-8", "surrogateescape")
        )
        digest.update(self.members[:, [2, 4]].astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def open_zip(path: pathlib.Path) -> Mapping[str, Callable[[], ZipImages]]:
    """Returns {split: opener} for [FOLDER/]SPLIT/CLASS/.../IMAGE inside a zip.

    [FOLDER/]CLASS/IMAGE is the split "train".

    Raises:
        ValueError: the file is no whole zip, or has no split and no class.
    """
    members = read_contents(path)
    paths = {name: name for name in members if not name.startswith("__MACOSX/")}
    tops = {name.split("/")[0] for name in paths if "/" in name}
    is_flat = files.is_unsplit(paths)
    if len(tops) == 1 and not tops & files.FOLDERS.keys() and not is_flat:
        [top] = tops  # one folder around all
        paths = {name.removeprefix(f"{top}/"): whole for name, whole in paths.items()}
        is_flat = files.is_unsplit(paths)
    if is_flat:
        paths = {f"./{name}": whole for name, whole in paths.items() if name}
    tree: dict[str, list[str]] = {}  # {folder: paths below it}
    beside: set[str] = {"__MACOSX"} if len(paths) < len(members) else set()
    for name in filter(None, paths):
        folder, slash, rest = name.partition("/")
        if folder not in files.FOLDERS:
            beside.add(folder)
        elif slash and rest:
            tree.setdefault(folder, []).append(rest)
    classes = {
        folder: {path.split("/")[0] for path in inside if "/" in path}
        for folder, inside in tree.items()
    }
    splits = files.find_splits([f for f in tree if classes[f]], path)
    if not splits:
        shown = bounded.printable(", ".join(list(members)[:5])) or "nothing"
        raise ValueError(f"{path} holds {shown}; {files.LAYOUT}.")

    def open_split(split: str) -> ZipImages:
        folder, known = splits[split], None
        if "train" in splits:
            known = [c for c in classes[splits["train"]] if not c.startswith(".")]
        listing = files.group_by_class(tree[folder], folder, known, f"{path}:{folder}")
        names = [paths[name] for name in listing.names]
        size = path.stat().st_size
        table = [_check_member(members[name], path, size) for name in names]
        return ZipImages(
            path,
            names,
            listing.targets,
            listing.labels,
            np.array(table, np.int64),
            listing.left_out + files.describe_beside(beside),
        )

    return {split: functools.partial(open_split, split) for split in splits}


def read_contents(path: pathlib.Path) -> dict[str, zipfile.ZipInfo]:
    """Returns {name: entry} of a zip's table of contents.

    Raises:
        ValueError: the file is no zip, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename: info for info in archive.infolist()}
    except Exception as error:  # zipfile raises many kinds for a damaged table
        raise ValueError(f"{path} is no whole zip file: {error}.") from error


def _check_member(
    info: zipfile.ZipInfo, path: pathlib.Path, zip_size: int
) -> tuple[int, ...]:
    name = bounded.printable(f"{path}:{info.filename}")
    readable = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if info.flag_bits & 1 or info.compress_type not in readable:
        raise ValueError(
            f"{name} is encrypted or compressed by method "
            f"{info.compress_type}; members must be stored or deflated. Make the zip again."
        )
    bounded.check_image_bytes(info.file_size, name)
    if info.header_offset + info.compress_size > zip_size or info.header_offset < 0:
        raise ValueError(
            f"{name}: the zip's table of contents points past its end. Make the zip "
            "again."
        )
    return (
        info.header_offset,
        info.compress_size,
        info.file_size,
        info.compress_type,
        info.CRC,
    )
