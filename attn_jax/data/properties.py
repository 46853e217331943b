"""The properties of an object as the 19 numbers that set prediction is trained on.

| columns | what |
|---|---|
| 0-2 | (x, y, z) + 3, divided by 6: the scene spans -3 to 3 |
| 3-4 | size, one-hot in the order of `SIZES` |
| 5-6 | material, of `MATERIALS` |
| 7-9 | shape, of `SHAPES` |
| 10-17 | color, of `COLORS` |
| 18 | 1; the rows after the last object are zero |

Source: google-research, slot_attention/data.py; the order of the names is that of
`clevr:3.1.0` of TensorFlow Datasets.
"""

import numpy as np
from jaxtyping import Float32, Integer, Num

SIZES = ("small", "large")
MATERIALS = ("rubber", "metal")
SHAPES = ("cube", "sphere", "cylinder")
COLORS = ("gray", "blue", "brown", "yellow", "red", "green", "purple", "cyan")
NAMES = {"size": SIZES, "material": MATERIALS, "shape": SHAPES, "color": COLORS}
WIDTH = 3 + sum(map(len, NAMES.values())) + 1


def encode(
    positions: Num[np.ndarray, "N 3"],
    *,
    size: Integer[np.ndarray, " N"],
    material: Integer[np.ndarray, " N"],
    shape: Integer[np.ndarray, " N"],
    color: Integer[np.ndarray, " N"],
    rows: int,
) -> Float32[np.ndarray, "M 19"]:
    """Returns a row for each object, and zeros up to `rows`.

    Args:
        positions: centers in units of the scene.
        size, material, shape, color: numbers in the tuples above.

    Raises:
        ValueError: there are more objects than rows.
    """
    count = len(positions)
    if count > rows:
        raise ValueError(
            f"an image has {count} objects, but only {rows} rows are there for them; set "
            "config.task.num_objects to the most objects of an image."
        )
    encoded = np.zeros((rows, WIDTH), np.float32)
    encoded[:count, :3] = (positions + 3.0) / 6.0
    start = 3
    for codes, names in zip(
        (size, material, shape, color), NAMES.values(), strict=True
    ):
        encoded[np.arange(count), start + codes] = 1
        start += len(names)
    encoded[:count, -1] = 1
    return encoded
