"""Instance masks of COCO-style JSON: polygons, and runs of pixels, compressed or not.

Source: cocodataset.org, data format; cocoapi, common/maskApi.c for the compressed runs.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from attn_jax.data import bounded, decoding, files, masks

MAX_BYTES = 2**31


class CocoScenes:
    """Records as those of `masked_images.FolderScenes`; a later object is in front.

    `classes` [objects + 1] maps each id of the mask to a class: 0 is the background, and the
    classes of an image count from 1. It is absent unless every object has a `category_id`.
    Crowds (`iscrowd`) are no single object; they are left out, as background, and counted.
    """

    labels = None
    has_counts = True

    def __init__(
        self,
        images: Sequence[tuple[pathlib.Path, int, int]],
        objects: Sequence[Sequence[Mapping[str, Any]]],
        left_out: files.LeftOut,
        digest: str,
    ):
        self.images, self.objects, self.left_out = images, objects, left_out
        self.digest = digest
        self.has_classes = all(
            "category_id" in e for entries in objects for e in entries
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, height, width = self.images[index]
        data = bounded.read_image_file(path)
        image = decoding.decode(data, 3, name=str(path), exif_rotation=False)
        mask = np.zeros((height, width), np.uint16)
        for number, entry in enumerate(self.objects[index], 1):
            mask[draw(entry, height, width)] = number
        masks.check_size(image, mask, path, "in the JSON")
        record = {"image": image, "mask": mask, "name": str(path), "label": 0}
        if self.has_classes:
            categories = [entry["category_id"] for entry in self.objects[index]]
            _, numbers = np.unique(categories, return_inverse=True)
            record["classes"] = np.array([0, *(numbers + 1)], np.int32)
        return record

    def count_objects(self, index: int) -> int:
        return len(self.objects[index])

    def name(self, index: int) -> str:
        return self.images[index][0].name

    def fingerprint(self) -> str:
        return self.digest[:16]


def open_json(path: pathlib.Path) -> dict[str, CocoScenes]:
    """Opens the images of a JSON file that have annotations, as {"train": images}.

    The files lie beside the JSON, in `images/` there, or, as COCO has it, for
    annotations/instances_NAME.json in NAME/ beside annotations/.

    Raises:
        ValueError: the file is no JSON of this form; no image file is found.
    """
    if bounded.check_regular(path) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes.")
    data = path.read_bytes()
    try:
        content = json.loads(data)
        entries = {
            entry["id"]: (
                str(entry["file_name"]),
                int(entry["height"]),
                int(entry["width"]),
            )
            for entry in content["images"]
        }
        objects: dict[Any, list[Mapping[str, Any]]] = {key: [] for key in entries}
        crowds = []
        for number, entry in enumerate(content["annotations"]):
            if entry.get("iscrowd"):
                crowds.append((f"annotation {entry.get('id', number)}", "of a crowd"))
            else:
                entry["segmentation"]
                objects[entry["image_id"]].append(entry)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{bounded.printable(path)} is no COCO-style JSON ({error!r:.80}): it needs `images` with "
            "id, file_name, height, width, and `annotations` with image_id, segmentation."
        ) from error
    beside = path.parent.parent / path.stem.removeprefix("instances_")
    roots = (path.parent, path.parent / "images", beside)
    images, kept, left_out = [], [], []
    for key, (name, height, width) in entries.items():
        places = [root / name for root in roots if (root / name).is_file()]
        if not places or not objects[key]:
            reason = "without a mask" if places else "whose image file is missing"
            left_out.append((name, reason))
            continue
        images.append((places[0], height, width))
        kept.append(objects[key])
    if not images:
        raise ValueError(
            f"{bounded.printable(path)} lists {len(entries):,} images, but none has both annotations "
            f"and a file in {', '.join(bounded.printable(root) for root in roots)}."
        )
    digest = hashlib.sha256(data).hexdigest()
    return {"train": CocoScenes(images, kept, (*left_out, *crowds), digest)}


def draw(entry: Mapping[str, Any], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Where an object is: the pixels whose centers are in a polygon, or the runs.

    Raises:
        ValueError: the segmentation is of no known form, or of another size.
    """
    shape = entry["segmentation"]
    try:
        if isinstance(shape, list):
            return draw_polygons(shape, height, width)
        counts = shape["counts"]
        lengths = decode_counts(counts) if isinstance(counts, str) else counts
        runs = np.repeat(np.arange(len(lengths)) % 2, lengths).astype(bool)
        if list(shape["size"]) != [height, width] or runs.size != height * width:
            raise ValueError(
                f"its runs have {runs.size:,} pixels and the size {shape['size']}, the image has "
                f"{[height, width]}"
            )
        return runs.reshape(width, height).T  # column by column
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"annotation {entry.get('id')} of image {entry.get('image_id')} has a segmentation "
            f"that cannot be drawn: {error}. Correct or remove it."
        ) from error


def draw_polygons(
    polygons: Sequence[Sequence[float]], height: int, width: int
) -> Bool[np.ndarray, "H W"]:
    from matplotlib.path import Path  # slow to import

    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        points = np.array(polygon, float).reshape(-1, 2)
        left, top = np.floor(points.min(0)).astype(int).clip(0)
        right, bottom = np.ceil(points.max(0)).astype(int)
        rows, columns = np.mgrid[top : min(bottom, height), left : min(right, width)]
        if rows.size:
            centers = np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5
            inside = Path(points).contains_points(centers)
            mask[rows.ravel()[inside], columns.ravel()[inside]] = True
    return mask


def decode_counts(text: str) -> list[int]:
    """Decodes compressed runs: digits of 5 bits, and from the fourth on differences to the run
    before the last."""
    counts: list[int] = []
    at = 0
    while at < len(text):
        value = shift = 0
        more = True
        while more:
            digit = ord(text[at]) - 48
            value |= (digit & 31) << shift
            more, shift, at = bool(digit & 32), shift + 5, at + 1
        if digit & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts
