"""Reads prepared TensorFlow Datasets without TensorFlow.

Nothing is downloaded or prepared here, since every process of a run opens the source: the
user prepares a set once, by a command. Preparing needs TensorFlow for the many sets that
encode images with it; reading never does.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from attn_jax.data import bounded, decoding, properties

MOST_OBJECTS = 10  # of an image of CLEVR
NAME = re.compile(r"\w{1,100}(/[\w.-]{1,100})?(:[\w.*]{1,40})?")


def open_prepared(address: str) -> Mapping[str, Callable[[], "CatalogueImages"]]:
    """Returns {split: opener} of "NAME[/CONFIG][:VERSION][@DATA_DIR]", a set of images.

    Raises:
        ValueError: as `open_builder`.
    """
    builder = open_builder(address, ("image", "label"), "labeled images")
    return {
        {"val": "validation"}.get(split, split): functools.partial(
            CatalogueImages, builder, split
        )
        for split in builder.info.splits
    }


def open_scenes(address: str) -> Mapping[str, "CatalogueScenes"]:
    """Returns {split: pool} of "clevr[:VERSION][@DATA_DIR]", or a set of the same features.

    Raises:
        ValueError: as `open_builder`.
    """
    builder = open_builder(address, ("image", "objects"), "images with objects (clevr)")
    return {split: CatalogueScenes(builder, split) for split in builder.info.splits}


def count_texts(address: str, key: str) -> list[tuple[str, int]]:
    """Returns (split, number of records) of a set of texts, for all splits.

    Args:
        key: of the text in a record.

    Raises:
        ValueError: as `open_builder`.
    """
    builder = open_builder(address, (key,), "texts, or name the feature (--json_key)")
    splits = builder.info.splits
    return [(split, splits[split].num_examples) for split in sorted(splits)]


def read_texts(
    address: str, key: str, start: int, end: int
) -> Iterator[tuple[int, str]]:
    """Yields (number of the next record, text) of the records `start` to `end`.

    Args:
        address: as for `count_texts`, then "#" and the split.
    """
    name, _, split = address.rpartition("#")
    builder = open_builder(name, (key,), "texts")
    records = builder.as_data_source(split=split)
    for number in range(start, end):
        text = records[number][key]
        yield number + 1, text.decode() if isinstance(text, bytes) else str(text)


def open_builder(address: str, features: Sequence[str], content: str) -> Any:
    """Opens a prepared set.

    DATA_DIR is $TFDS_DATA_DIR by default, or else the default of tensorflow-datasets
    (~/tensorflow_datasets).

    Raises:
        ValueError: the set is not prepared in a format with random access, or its records
            lack one of the features.
    """
    name, _, data_dir = address.partition("@")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"'tfds:{bounded.printable(name)}' names no set of TensorFlow Datasets; write "
            "'tfds:NAME', 'tfds:NAME/CONFIG:VERSION' or 'tfds:NAME@DATA_DIR'."
        )
    data_dir = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR", ""))
    import tensorflow_datasets as tfds  # slow to import

    try:
        builder = tfds.core.read_only_builder.builder_from_files(
            name, data_dir=data_dir or None
        )
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(
            f"tfds:{name} is not prepared in {data_dir or '~/tensorflow_datasets'}. "
            + _describe_preparation(name, data_dir)
        ) from error
    if builder.info.file_format.value not in ("array_record", "parquet"):
        raise ValueError(
            f"tfds:{name} is prepared as {builder.info.file_format.value}, which has "
            f"no random access. Remove {builder.data_dir}. "
            + _describe_preparation(name, data_dir)
        )
    for feature in features:
        if feature not in builder.info.features:
            raise ValueError(
                f"tfds:{name} has no feature {feature!r}; it has: "
                f"{', '.join(builder.info.features)}. Use a set of {content}."
            )
    return builder


def _describe_preparation(name: str, data_dir: str) -> str:
    where = f", data_dir={data_dir!r}" if data_dir else ""
    return (
        "Prepare it once: pip install 'attn_jax[tf]', then python -c "
        '"import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}{where}, file_format='array_record')"
        '.download_and_prepare()". Reading it needs no TensorFlow.'
    )


class CatalogueImages:
    """Records of a prepared set, `image` left encoded; other features pass through."""

    skipped = 0

    def __init__(self, builder: Any, split: str):
        import tensorflow_datasets as tfds

        self.builder, self.split = builder, split
        self.labels = getattr(builder.info.features["label"], "names", None)
        self.labels = tuple(self.labels) if self.labels else None
        decoders = None
        if isinstance(builder.info.features["image"], tfds.features.Image):
            decoders = {"image": tfds.decode.SkipDecoding()}
        self.records = builder.as_data_source(split=split, decoders=decoders)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self.records[index]
        name = f"tfds:{self.builder.info.full_name} {self.split}[{index}]"
        return {**record, "label": int(record["label"]), "name": name}

    def fingerprint(self) -> str:
        text = f"{self.builder.info.full_name} {self.split} {len(self)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __reduce__(self):
        return CatalogueImages, (self.builder, self.split)


class CatalogueScenes:
    """Images of CLEVR with the list of their objects; the set has no masks.

    Record: `image` uint8 [H, W, 3]; `properties` float32 [10, 19], the columns of
    `properties.encode`, all zero in the test split, whose objects are not known; `name`;
    `label` 0. Counting the objects reads every record once.
    """

    labels = None
    has_counts = True
    left_out = ()

    def __init__(self, builder: Any, split: str):
        import tensorflow_datasets as tfds

        self.builder, self.split = builder, split
        decoders = {"image": tfds.decode.SkipDecoding()}
        self.records = builder.as_data_source(split=split, decoders=decoders)
        objects = builder.info.features["objects"]
        self.codes = {  # {property: our number of each of theirs}
            name: np.array([names.index(n) for n in objects[name].names])
            for name, names in properties.NAMES.items()
        }

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, name = self.records[index], self.name(index)
        objects = record["objects"]
        codes = {key: table[objects[key]] for key, table in self.codes.items()}
        return {
            "image": decoding.decode(record["image"], 3, name=name),
            "properties": properties.encode(
                np.reshape(objects["3d_coords"], (-1, 3)), **codes, rows=MOST_OBJECTS
            ),
            "name": name,
            "label": 0,
        }

    def count_objects(self, index: int) -> int:
        return len(self.records[index]["objects"]["size"])

    def name(self, index: int) -> str:
        return f"tfds:{self.builder.info.full_name} {self.split}[{index}]"

    def fingerprint(self) -> str:
        text = f"scenes {self.builder.info.full_name} {self.split} {len(self)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __reduce__(self):
        return CatalogueScenes, (self.builder, self.split)
