"""Labeled images in folders: CLASS/IMAGE, or SPLIT/CLASS/IMAGE and deeper below a class.

`open_folder` returns {split: function that opens it}, of which `sources.open_split` calls
one. `zips.py` shares `group_by_class`.
"""

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from attn_jax.data import bounded

SUFFIXES = frozenset(
    ".jpg .jpeg .jfif .png .bmp .webp .gif .tif .tiff .ppm .pgm".split()
)
FOLDERS = {  # folder name: split
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    ".": "train",  # of CLASS/IMAGE, which has no splits
}
LAYOUT = (
    "expected CLASS/IMAGE, or SPLIT/CLASS/IMAGE with SPLIT one of train, validation (val, "
    "valid), test"
)
MAX_DEPTH = 32  # folders below a split

LeftOut = tuple[tuple[str, str], ...]  # (name, reason) of each file that is not read


class Listing(NamedTuple):
    """The images of one split, sorted by class and name, and what is not read."""

    names: list[str]
    targets: Integer[np.ndarray, " N"]
    labels: tuple[str, ...]
    left_out: LeftOut


class FolderImages:
    """Records are files ROOT/NAME; `image` is the undecoded file.

    No file stays open between reads, here and in `ZipImages`, so threads, forks and
    pickled copies are safe.
    """

    skipped = 0

    def __init__(
        self,
        root: pathlib.Path,
        names: list[str],
        targets: Integer[np.ndarray, " N"] | Bool[np.ndarray, "N C"],
        labels: tuple[str, ...],
        left_out: LeftOut = (),
    ):
        self.root, self.names, self.targets, self.labels = root, names, targets, labels
        self.left_out = left_out

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.root / self.names[index]
        label = int(self.targets[index])
        image = bounded.read_image_file(path)
        return {"image": image, "label": label, "name": str(path)}

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in self.names:
            size = (self.root / name).stat().st_size
            digest.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


def open_folder(root: pathlib.Path) -> Mapping[str, Callable[[], FolderImages]]:
    """Returns {split: opener} for ROOT/SPLIT/CLASS/.../IMAGE; classes are sorted by name.

    ROOT/CLASS/IMAGE is the split "train".

    Raises:
        ValueError: the folder has no split and no class, or two names of one split.
    """
    inside = sorted(path.name for path in root.iterdir())
    folders = [name for name in inside if (root / name).is_dir()]
    splits = find_splits(folders, root)
    if not splits and is_unsplit(list_files(root)):
        splits, inside = find_splits(["."], root), []
    if not splits:
        shown = bounded.printable(", ".join(inside[:5])) or "nothing"
        raise ValueError(
            f"{bounded.printable(root)} holds {shown}; {LAYOUT}, or idx files."
        )

    def open_split(split: str) -> FolderImages:
        folder = splits[split]
        known = None
        if "train" in splits:
            known = [
                entry.name
                for entry in os.scandir(root / splits["train"])
                if entry.is_dir() and not entry.name.startswith(".")
            ]
        files = list_files(root / folder)
        listing = group_by_class(files, folder, known, root / folder)
        beside = describe_beside(name for name in inside if name not in FOLDERS)
        return FolderImages(
            root,
            listing.names,
            listing.targets,
            listing.labels,
            listing.left_out + beside,
        )

    return {split: functools.partial(open_split, split) for split in splits}


def is_unsplit(paths: Iterable[str]) -> bool:
    """Whether the paths are CLASS/IMAGE of several classes, none named like a split.

    If an image lies deeper, the folders may be splits of other names.
    """
    images = [path.split("/") for path in paths if is_image(path)]
    classes = {parts[0] for parts in images if len(parts) == 2}
    deepest = max(map(len, images), default=0)
    return deepest == 2 and len(classes) > 1 and not classes & FOLDERS.keys()


def list_images(folder: pathlib.Path) -> list[str]:
    """Lists the paths of the images that lie directly in a folder, sorted by name.

    Raises:
        ValueError: it holds none; subfolders are not searched.
    """
    inside = sorted(
        str(file)
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not inside:
        raise ValueError(
            f"{bounded.printable(folder)} is a folder without an image "
            f"({' '.join(sorted(SUFFIXES))}); subfolders are not searched. Give a folder that "
            "holds some, or files."
        )
    return inside


def list_files(root: pathlib.Path) -> list[str]:
    """Lists the paths below `root`, relative to it; folders end in "/".

    Links are followed. Hidden folders are listed, but not their content.

    Raises:
        ValueError: a folder is reached twice (by a link back, or into another class), or
            lies too deep; an image is no regular file.
    """
    found: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        status = os.stat(root / folder)
        where = seen.setdefault((status.st_dev, status.st_ino), folder)
        if where != folder:
            raise ValueError(
                f"{bounded.printable(root / folder)} is the same folder as {bounded.printable(root / where)}: its images would "
                "be read twice, or endlessly. Remove the link."
            )
        if folder.count("/") > MAX_DEPTH:
            raise ValueError(
                f"{bounded.printable(root / folder)} lies more than {MAX_DEPTH} folders below {root}. Move "
                "it up."
            )
        for entry in os.scandir(root / folder):
            name = folder + entry.name
            if _is_folder(entry):
                found.append(f"{name}/")
                if not entry.name.startswith("."):
                    pending.append(f"{name}/")
                continue
            if is_image(name) and not _is_regular(entry):
                raise ValueError(
                    f"{bounded.printable(root / name)} is a broken link, or no regular file (a pipe, socket "
                    "or device). Replace or remove it."
                )
            found.append(name)
    return found


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_regular(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def find_splits(folders: Iterable[str], where: object) -> dict[str, str]:
    """Returns {split: folder} of the folders that are named like a split.

    Raises:
        ValueError: two folders are of the same split.
    """
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


def group_by_class(
    files: Iterable[str], folder: str, known: Iterable[str] | None, where: object
) -> Listing:
    """Groups the images of a split by class; sorted, as file systems list in any order.

    Args:
        files: paths relative to the split's folder, as from `list_files`.
        folder: of the split, with which the names of the result begin.
        known: the classes of the training split, which number the labels; None: those of
            this split.

    Raises:
        ValueError: there is no class, a class has no image, or `known` lacks a class.
    """
    classes: dict[str, list[str]] = {}
    left_out: list[tuple[str, str]] = []
    for file in sorted(files):
        name, (top, *below) = f"{folder}/{file}", file.split("/")
        if any(part.startswith(".") for part in (top, *below)):
            left_out.append((name, "hidden"))
        elif not below:
            left_out.append((name, "beside the class folders"))
        else:
            images = classes.setdefault(top, [])
            if is_image(file):
                images.append(name)
            elif not file.endswith("/"):
                left_out.append((name, "of another suffix"))
    labels = tuple(sorted(classes if known is None else known))
    if not classes:
        raise ValueError(f"{where} holds no class folder; {LAYOUT}.")
    if unknown := sorted(classes.keys() - set(labels)):
        raise ValueError(
            f"{where} holds classes that the training split lacks: "
            f"{bounded.printable(', '.join(unknown[:5]))}. Rename or remove them, or add them to train/."
        )
    names: list[str] = []
    targets: list[int] = []
    for top in sorted(classes):
        if not classes[top]:
            raise ValueError(
                f"{bounded.printable(f'{where}/{top}')} holds no image ({' '.join(sorted(SUFFIXES))}). "
                "Add images or remove the folder."
            )
        names += classes[top]
        targets += [labels.index(top)] * len(classes[top])
    return Listing(names, np.array(targets, np.int64), labels, tuple(left_out))


def describe_beside(names: Iterable[str]) -> LeftOut:
    """Makes entries of `left_out` for names beside the folders of the splits."""
    return tuple((name, "beside the split folders") for name in sorted(names))


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    stem = pathlib.PurePosixPath(name)
    return stem.suffix.lower() in SUFFIXES and not stem.name.startswith(".")
