"""ReaL labels: all classes that fit each of ImageNet's validation images."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from attn_jax.data import bounded
from attn_jax.folder import expand_local


@functools.lru_cache
def read(path: str, num_classes: int) -> list[list[int]]:
    """Reads the labels that fit each of ImageNet's validation images, by file name.

    Raises:
        ValueError: the file does not exist, or is no JSON list of lists of labels.

    Source: Beyer et al. 2020, "Are we done with ImageNet?"; the file is real.json of
    google-research/reassessed-imagenet.
    """
    rule = (
        "it must hold a JSON list with a list of labels, which may be empty, for each "
        "validation image. Use real.json of google-research/reassessed-imagenet."
    )
    file = expand_local(path)
    if not file.is_file():
        raise ValueError(f"real_labels={path!r} is no file; {rule}")
    try:
        bounded.check_image_bytes(bounded.check_regular(file), file)
        table = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"real_labels={path!r} is no JSON ({error}); {rule}") from None
    rows = table if isinstance(table, list) else [table]
    for number, row in enumerate(rows, start=1):
        whole = isinstance(row, list) and all(type(label) is int for label in row)
        if not whole or not all(0 <= label < num_classes for label in row):
            raise ValueError(
                f"real_labels={path!r}: entry {number} is {str(row)[:80]}, no list of "
                f"labels from 0 to num_classes - 1 = {num_classes - 1}; {rule}"
            )
    return rows


def find_row(record: Mapping[str, Any], rows: int) -> int:
    """Finds the row of an image in real.json, which has `rows`, by its file name.

    Raises:
        ValueError: the image is none of the validation images.
    """
    name = record.get("file_name", record.get("name", ""))
    name = name.decode() if isinstance(name, bytes) else str(name)
    found = re.search(r"ILSVRC2012_val_(\d{8})\b", name)
    if not found or not 1 <= int(found[1]) <= rows:
        raise ValueError(
            f"real_labels: the image {name!r} is not among ILSVRC2012_val_00000001 to "
            f"ILSVRC2012_val_{rows:08d}. Set real_labels in config.evals.NAME.task only, "
            "for an evaluation on these files (their names must be kept)."
        )
    return int(found[1]) - 1
