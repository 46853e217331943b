"""Images with instance masks: in folders, and in .npz archives. Nothing is labeled.

Each `open_*` returns {split: pool of images}; `scene_sources` chooses the images of a split.
"""

import hashlib
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from attn_jax.data import bounded, decoding, files, masks

LAYOUT = (
    "images/NAME.png with masks/NAME.png (ids) or masks/NAME/*.png (one an object); "
    "NAME/images/*.png with NAME/masks/*.png; or images alone"
)


class Pair(NamedTuple):
    """An image and its mask: one file of ids, or one file an object; () without masks."""

    image: pathlib.Path
    masks: tuple[pathlib.Path, ...]
    is_stack: bool


class FolderScenes:
    """Records are image files; `mask` uint16 [H, W] is read if they have masks.

    Record: `image` uint8 [H, W, 3], decoded, as its size must be that of the mask; `mask`, 0 the
    background and 1, 2, ... the objects; `name`; `label` 0.
    """

    labels = None

    def __init__(self, pairs: Sequence[Pair], left_out: files.LeftOut = ()):
        self.pairs, self.left_out = pairs, left_out
        self.has_masks = self.has_counts = bool(pairs[0].masks)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        name = str(pair.image)
        data = bounded.read_image_file(pair.image)
        image = decoding.decode(data, 3, name=name, exif_rotation=not self.has_masks)
        record = {"image": image, "name": name, "label": 0}
        if not self.has_masks:
            return record
        mask = self.read_mask(index)
        masks.check_size(image, mask, name, pair.masks[0])
        return {**record, "mask": mask}

    def read_mask(self, index: int) -> np.ndarray:
        pair = self.pairs[index]
        return (
            masks.read_stack(pair.masks)
            if pair.is_stack
            else masks.read_ids(*pair.masks)
        )

    def count_objects(self, index: int) -> int:
        pair = self.pairs[index]
        return len(pair.masks) if pair.is_stack else int(self.read_mask(index).max())

    def name(self, index: int) -> str:
        return self.pairs[index].image.name

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for pair in self.pairs:
            for path in (pair.image, *pair.masks):
                text = f"{path.name} {path.stat().st_size}\n"
                digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


class ArrayScenes:
    """Records in memory, as those of `FolderScenes`; a `mask` is renumbered when read."""

    labels = None

    def __init__(
        self,
        images: UInt8[np.ndarray, "N H W C"],
        instances: Integer[np.ndarray, "N H W"] | None,
        where: str,
        left_out: files.LeftOut = (),
    ):
        self.images, self.instances, self.where = images, instances, where
        self.left_out = left_out
        self.has_masks = self.has_counts = instances is not None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.name(index)
        image = decoding.decode(self.images[index], 3, name=name)
        record = {"image": image, "name": name, "label": 0}
        if self.instances is not None:
            record["mask"] = masks.number(self.instances[index], name)
        return record

    def count_objects(self, index: int) -> int:
        return int(self[index]["mask"].max())

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for array in (self.images, self.instances):
            if array is not None:
                digest.update(f"{array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def open_folder(root: pathlib.Path) -> dict[str, FolderScenes]:
    """Opens the folders that are named like a split, or the folder itself as "train".

    Raises:
        ValueError: there is no image, or no image has a mask although there are masks.
    """
    inside = sorted(path.name for path in root.iterdir() if path.is_dir())
    splits = files.find_splits(inside, root) or {"train": ""}
    return {split: read_folder(root / folder) for split, folder in splits.items()}


def read_folder(folder: pathlib.Path) -> FolderScenes:
    """Finds images and masks; an image without its mask is left out and named."""
    names = files.list_files(folder)
    found = [name for name in names if files.is_image(name)]
    tops = [(name, name.split("/")) for name in sorted(found)]
    of_folder = [name for name, parts in tops if parts[0] == "images"]
    nested = [name for name, parts in tops if len(parts) == 3 and parts[1] == "images"]
    has_masks = any("masks" in parts[:2] for _, parts in tops)
    images = of_folder or nested or [name for name, _ in tops]
    if not images:
        raise ValueError(
            f"{bounded.printable(folder)} holds no image; expected {LAYOUT}."
        )
    by_place: dict[
        str, list[str]
    ] = {}  # masks by their path without suffix, and folder
    for name, parts in tops:
        if "masks" in parts[:2]:
            by_place.setdefault(name.rpartition(".")[0], []).append(name)
            by_place.setdefault(f"{name.rpartition('/')[0]}/", []).append(name)
    pairs, left_out = [], []
    for name in images:
        if not has_masks:
            pairs.append(Pair(folder / name, (), False))
            continue
        stem = name.rpartition(".")[0]
        if of_folder:
            stem = "masks" + stem.removeprefix("images")
            ids, stack = by_place.get(stem, []), by_place.get(f"{stem}/", [])
        else:
            ids, stack = [], by_place.get(f"{name.split('/')[0]}/masks/", [])
        if not ids and not stack:
            left_out.append((name, "without a mask"))
            continue
        if len(ids) > 1 or (ids and stack):
            raise ValueError(
                f"{bounded.printable(folder / name)} has several masks: "
                f"{bounded.join_names(ids + stack)}. Keep one file of ids, or a folder."
            )
        chosen = tuple(folder / mask for mask in ids or stack)
        pairs.append(Pair(folder / name, chosen, not ids))
    if not pairs:
        raise ValueError(
            f"none of {len(images):,} images in {bounded.printable(folder)} has a mask, but there "
            f"are masks; expected {LAYOUT}."
        )
    used = {path for pair in pairs for path in pair.masks}
    spare = [n for n, parts in tops if "masks" in parts[:2] and folder / n not in used]
    left_out += [(name, "a mask without an image") for name in spare]
    return FolderScenes(pairs, tuple(left_out))


def open_npz(path: pathlib.Path) -> dict[str, ArrayScenes]:
    """Opens `images` uint8 [N, H, W(, C)] and, if there, `instances` [N, H, W] of ids.

    Raises:
        ValueError: the file or an array cannot be read, or has another form.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {info.filename: info for info in archive.infolist()}
            for name, info in found.items():
                bounded.check_expansion(
                    info.compress_size, info.file_size, f"{path}:{name}"
                )
            arrays = {
                key: bounded.read_npy(archive, found[f"{key}.npy"])
                for key in ("images", "instances")
                if f"{key}.npy" in found
            }
    except Exception as error:  # a damaged table raises many kinds
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no readable .npz file: {reason}") from error
    if "images" not in arrays:
        raise ValueError(
            f"{path} holds the keys {sorted(found)}; it must hold `images`, and may hold "
            "`instances`."
        )
    images, instances = arrays["images"], arrays.get("instances")
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{path}: images is {images.dtype} {list(images.shape)}; it must be uint8 "
            "[N, H, W], [N, H, W, 1] or [N, H, W, 3]."
        )
    if not len(images):
        raise ValueError(f"{path} holds no image.")
    if instances is not None:
        whole = np.issubdtype(instances.dtype, np.integer)
        if not whole or instances.shape != images.shape[:3]:
            raise ValueError(
                f"{path}: instances is {instances.dtype} {list(instances.shape)}, images has "
                f"{list(images.shape)}; there must be a whole number for every pixel."
            )
    spare = sorted(found.keys() - {"images.npy", "instances.npy"})
    left_out = tuple((name, "not a key that we read") for name in spare)
    return {"train": ArrayScenes(images, instances, path.name, left_out)}
