"""Generated images of several sprites, which cover each other, with the mask of each."""

import colorsys
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from attn_jax.data import scenes

SHAPES = ("square", "ellipse", "heart")
FRAME = 64  # pixels of the original; radii and positions are in them
SCALES = np.linspace(0.5, 1, 6)
ANGLES = np.linspace(0, 2 * np.pi, 40)
CENTERS = np.linspace(16, 48, 32)  # of a sprite; so that it lies in the frame whole
SQUARE = 11.0  # half a side at scale 1
ELLIPSE = (14.0, 8.0)  # half-axes
HEART = 11.0  # where its curve has 1


class Variant(NamedTuple):
    fewest: int  # sprites in an image
    most: int


VARIANTS = {
    "binarized": Variant(2, 3),
    "colored_on_grayscale": Variant(2, 5),
    "colored_on_colored": Variant(1, 4),
}


class MultiSprites(scenes.Generated):
    """Images of squares, ellipses and hearts, the later ones in front of the earlier.

    The number of sprites is uniform, and so are a sprite's shape, scale (6 values), angle
    (40) and position (32 x 32). Colors may be near to that of the background, as in the
    original. Edges are hard.

    Args:
        variant: "binarized" (white on black), "colored_on_grayscale" (hue, saturation and
            value uniform, on a uniform gray) or "colored_on_colored" (red, green and blue
            of sprites and background uniform).
        canvas: side of the image in pixels; 64 in the original.
        fewest, most: sprites of an image; None: those of the original, 2-3, 2-5 and 1-4.

    Record: `image` uint8 [H, W, 3], also if it is binarized; `mask` uint8 [H, W], 0 the
    background and 1, 2, ... the sprites where they are visible (one that is covered
    whole has no pixel); `label` 0, as there are no classes.

    Raises:
        ValueError: the split is unknown or empty, or the variant or the numbers are wrong.

    Source: replaces Multi-dSprites of Kabra et al. 2019 (multi_object_datasets) for dSprites
    of Matthey et al. 2017. The outlines of the sprites are ours.
    """

    def __init__(
        self,
        split: str,
        size: int,
        *,
        variant: str = "colored_on_grayscale",
        canvas: int = FRAME,
        fewest: int | None = None,
        most: int | None = None,
        seed: int = 0,
    ):
        super().__init__(split, size, seed)
        if variant not in VARIANTS:
            raise ValueError(
                f"{variant=} must be one of {', '.join(map(repr, VARIANTS))}."
            )
        usual = VARIANTS[variant]
        self.fewest = usual.fewest if fewest is None else fewest
        self.most = usual.most if most is None else most
        scenes.check_objects(self.fewest, self.most, limit=255)
        if canvas < 8:
            raise ValueError(f"{canvas=} pixels; sprites can be told apart from 8 on.")
        self.variant, self.canvas = variant, canvas
        place = (np.arange(canvas, dtype=np.float32) + 0.5) * (FRAME / canvas)
        self.down, self.across = place[:, None], place[None, :]

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        count = int(rng.integers(self.fewest, self.most + 1))
        image = np.empty((self.canvas, self.canvas, 3), np.uint8)
        image[:] = self.draw_background(rng)
        mask = np.zeros((self.canvas, self.canvas), np.uint8)
        for i in range(count):
            area = self.draw_outline(rng)
            image[area] = self.draw_color(rng)
            mask[area] = i + 1
        return {"image": image, "mask": mask, "label": 0}

    def draw_outline(self, rng: np.random.Generator) -> Bool[np.ndarray, "H W"]:
        """Draws shape, scale, angle and position; returns where the sprite is."""
        shape = SHAPES[rng.integers(len(SHAPES))]
        scale, angle = rng.choice(SCALES), rng.choice(ANGLES)
        row, column = rng.choice(CENTERS, 2)
        down, right = self.down - np.float32(row), self.across - np.float32(column)
        sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
        x = (cosine * right + sine * down) / np.float32(scale)
        y = (cosine * down - sine * right) / np.float32(scale)
        if shape == "square":
            return np.maximum(np.abs(x), np.abs(y)) <= SQUARE
        if shape == "ellipse":
            return np.square(x / ELLIPSE[0]) + np.square(y / ELLIPSE[1]) <= 1
        x, y = x / HEART, -y / HEART
        return (x * x + y * y - 1) ** 3 <= x * x * y**3

    def draw_background(self, rng: np.random.Generator) -> Any:
        if self.variant == "binarized":
            return 0
        return rng.integers(256, size=3 if self.variant == "colored_on_colored" else 1)

    def draw_color(self, rng: np.random.Generator) -> Any:
        if self.variant == "binarized":
            return 255
        if self.variant == "colored_on_colored":
            return rng.integers(256, size=3)
        return np.rint(255 * np.array(colorsys.hsv_to_rgb(*rng.random(3))))

    def describe(self) -> str:
        settings = (
            self.split,
            self.size,
            self.variant,
            self.canvas,
            self.fewest,
            self.most,
            self.seed,
        )
        return f"sprites 1: {settings}"
