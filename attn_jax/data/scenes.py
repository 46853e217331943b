"""Generated images of several objects, with the mask of each."""

import hashlib
from typing import Any

import numpy as np
from jaxtyping import Bool

# The 19 tetrominoes, rotations and reflections counted; rows of tiles, separated by spaces.
SHAPES = (
    "xxxx",
    "x x x x",
    "xx xx",
    "xxx .x.",
    ".x xx .x",
    ".x. xxx",
    "x. xx x.",
    "x. x. xx",
    "..x xxx",
    "xx .x .x",
    "xxx x..",
    ".x .x xx",
    "x.. xxx",
    "xx x. x.",
    "xxx ..x",
    ".xx xx.",
    "x. xx .x",
    "xx. .xx",
    ".x xx x.",
)
COLORS = (  # red, green, blue, yellow, magenta, cyan
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 0),
    (1, 0, 1),
    (0, 1, 1),
)
# Brightness of a tile of the original, 0..255: lit from above.
TILE = np.array(
    [
        [191, 255, 255, 255, 223],
        [127, 159, 159, 159, 191],
        [127, 159, 159, 159, 191],
        [127, 159, 159, 159, 191],
        [95, 64, 64, 64, 127],
    ],
    np.uint8,
)
SPLITS = ("train", "validation", "test")
MOST_COVERED = 0.35  # share of the canvas; above it, most random placements overlap
TRIES = 10_000


class Generated:
    """Scenes that are drawn when they are read: functions of (seed, split, index, settings).

    The splits draw from different streams. A subclass defines `draw(rng)`, which returns a
    record, and `describe()`, a text of all that changes a record, and of its version.

    Raises:
        ValueError: the split is unknown or empty.
    """

    labels = None

    def __init__(self, split: str, size: int, seed: int):
        if split not in SPLITS:
            raise ValueError(f"{split=} must be one of {', '.join(map(repr, SPLITS))}.")
        if size < 1:
            raise ValueError(f"{size=} images; a split must have at least one.")
        self.split, self.size, self.seed = split, size, seed

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        raise NotImplementedError

    def describe(self) -> str:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        entropy = [self.seed, SPLITS.index(self.split), int(index)]
        return self.draw(np.random.default_rng(entropy))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.describe().encode()).hexdigest()[:16]


class Tetrominoes(Generated):
    """Images of tetrominoes on black, without overlap; a record is generated when read.

    Shape, position (in whole pixels) and color of every piece are uniform; pieces may touch
    and share a color. Small canvases have few scenes, so two splits may contain the same
    one by chance.

    Args:
        canvas: side of the image in pixels; 35 in the original.
        tile: side of a tile in pixels; 5 in the original. Other sizes sample its shading,
            and keep its outermost rows and columns.
        pieces: tetrominoes per image.

    Record: `image` uint8 [H, W, 3]; `mask` uint8 [H, W], 0 the background and 1, 2, ...
    the pieces; `label` 0, as there are no classes.

    Raises:
        ValueError: the split is unknown or empty, or the pieces do not fit.

    Source: replaces Tetrominoes of Kabra et al. 2019 (multi_object_datasets); colors and
    shading are those of its preview image. The original has 17 of the 19 shapes and does
    not say which; this class has all of them.
    """

    def __init__(
        self,
        split: str,
        size: int,
        *,
        canvas: int = 35,
        tile: int = 5,
        pieces: int = 3,
        seed: int = 0,
    ):
        super().__init__(split, size, seed)
        if tile < 2 or pieces < 1 or canvas < 4 * tile:
            raise ValueError(
                f"{canvas=}, {tile=}, {pieces=}: a tile must have at least 2 pixels, and "
                "the canvas four tiles a side, so that every piece fits."
            )
        share = 4 * pieces * tile**2 / canvas**2
        if share > MOST_COVERED:
            raise ValueError(
                f"{pieces} pieces of {tile} pixels a tile cover {share:.0%} of "
                f"{canvas}x{canvas} pixels; at most {MOST_COVERED:.0%} can be placed "
                "at random. Use fewer pieces, smaller tiles or a larger canvas."
            )
        self.canvas, self.tile, self.pieces = canvas, tile, pieces
        rows = np.rint(np.linspace(0, len(TILE) - 1, tile)).astype(int)
        self.shading = np.tile(TILE[np.ix_(rows, rows)], (4, 4))
        self.shapes = [make_mask(shape, tile) for shape in SHAPES]

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        shapes = [self.shapes[i] for i in rng.integers(len(SHAPES), size=self.pieces)]
        colors = rng.integers(len(COLORS), size=self.pieces)
        image = np.zeros((self.canvas, self.canvas, 3), np.uint8)
        mask = np.zeros((self.canvas, self.canvas), np.uint8)
        for i, (shape, corner) in enumerate(
            zip(shapes, self.draw_corners(rng, shapes), strict=True)
        ):
            area = find_area(shape, corner)
            mask[area][shape] = i + 1
            shading = self.shading[: shape.shape[0], : shape.shape[1]]
            image[area][shape] = shading[shape][:, None] * COLORS[colors[i]]
        return {"image": image, "mask": mask, "label": 0}

    def draw_corners(
        self, rng: np.random.Generator, shapes: list[np.ndarray]
    ) -> list[tuple[int, int]]:
        """Draws upper left corners, uniform over all placements without overlap."""
        room = self.canvas + 1 - np.array([shape.shape for shape in shapes])
        for _ in range(TRIES):
            corners = [(int(row), int(column)) for row, column in rng.integers(room)]
            free = np.ones((self.canvas, self.canvas), bool)
            for shape, corner in zip(shapes, corners, strict=True):
                area = free[find_area(shape, corner)]
                if not area[shape].all():
                    break
                area[shape] = False
            else:
                return corners
        raise ValueError(
            f"{self.pieces} pieces could not be placed on {self.canvas}x{self.canvas} "
            f"pixels in {TRIES} tries. Use fewer pieces, smaller tiles or a larger "
            "canvas."
        )

    def describe(self) -> str:
        settings = (
            self.split,
            self.size,
            self.canvas,
            self.tile,
            self.pieces,
            self.seed,
        )
        return f"tetrominoes 1: {settings}"


def check_objects(fewest: int, most: int, limit: int) -> None:
    """Raises ValueError unless 1 <= fewest <= most <= limit."""
    if not 1 <= fewest <= most <= limit:
        raise ValueError(
            f"{fewest=}, {most=} objects in an image; they must be from 1 to {limit}, and "
            "fewest at most most."
        )


def make_mask(shape: str, tile: int) -> Bool[np.ndarray, "h w"]:
    tiles = np.array([[mark == "x" for mark in row] for row in shape.split()])
    return tiles.repeat(tile, axis=0).repeat(tile, axis=1)


def find_area(shape: np.ndarray, corner: tuple[int, int]) -> tuple[slice, slice]:
    (row, column), (height, width) = corner, shape.shape
    return slice(row, row + height), slice(column, column + width)
