"""Generated images of solids on a plane, with the mask and the properties of each.

Scenes are laid out as in CLEVR (Johnson et al. 2017), but rendered by rays of our own. Results on
these images are not results on CLEVR.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Integer

from attn_jax.data import properties, raycasting, scenes

# (top, bottom, left, right) of the frame of 240 x 320 pixels.
CROP = (29, 221, 64, 256)  # that of object discovery, in which some objects are cut off
WHOLE = (0, 240, 0, 320)
RADII = (0.35, 0.7)  # of small and large objects
COLORS = np.array(  # in the order of properties.COLORS
    [
        (87, 87, 87),
        (42, 75, 215),
        (129, 74, 25),
        (255, 238, 51),
        (173, 35, 35),
        (29, 105, 20),
        (129, 38, 192),
        (41, 208, 208),
    ],
    np.float32,
)
SPAN = 3.0  # centers are within it, along x and y
CLEARANCE = 0.25  # between two objects
MARGIN = 0.4  # by which one is left or right, in front of or behind another
CAMERA = (7.4811, -6.5076, 5.3437)
LAMPS = ((6.447, -2.905, 4.258), (-4.671, -4.014, 3.011), (-1.169, 2.646, 5.816))
JITTER = (0.5, 1.0)  # of camera and lamps, along every axis
VISIBLE = 50  # pixels of 120 x 160: CLEVR's 200 of 240 x 320
PLACES = 50  # tries to place an object before the scene starts again
TRIES = 10_000
MOST = 10


class Objects(NamedTuple):
    """Numbers in the tuples of `properties`, and places; a row for each object."""

    sizes: Integer[np.ndarray, " N"]
    materials: Integer[np.ndarray, " N"]
    shapes: Integer[np.ndarray, " N"]
    colors: Integer[np.ndarray, " N"]
    positions: Float32[np.ndarray, "N 3"]


class ClevrLite(scenes.Generated):
    """Images of cubes, spheres and cylinders, as CLEVR's scripts place them.

    Number, shape, size, color, material, place and turn of the objects are uniform; a scene
    starts again if two stand closer than 0.25, if one is less than 0.4 left, right, before or
    behind another as the camera sees it, or if less than 200 of 240 x 320 pixels of one
    are visible. Camera and lamps move a little. What is seen does not depend on
    `canvas`: another one has other pixels of the same scene.

    Args:
        canvas: side of the image in pixels.
        fewest, most: objects in a scene; 3 and 10 in CLEVR.
        whole: show the whole frame of 240 x 320, squeezed to a square, as set prediction
            has it; else the crop of object discovery, rows 29-220 and columns 64-255, in
            which objects at the border are cut off or not there.

    Record: `image` uint8 [H, W, 3]; `mask` uint8 [H, W], 0 the ground and 1, 2, ... the
    objects; `properties` float32 [most, 19], row i of object i + 1, in the columns of
    `attn_jax.data.properties`, with zeros below the last; `label` 0, as there are no classes.

    Raises:
        ValueError: the split is unknown or empty, or the numbers are wrong.

    Source: numbers of facebookresearch/clevr-dataset-gen; shading and the flat ground are
    ours.
    """

    def __init__(
        self,
        split: str,
        size: int,
        *,
        canvas: int = 128,
        fewest: int = 3,
        most: int = MOST,
        whole: bool = False,
        seed: int = 0,
    ):
        super().__init__(split, size, seed)
        scenes.check_objects(fewest, most, limit=MOST)
        if canvas < 8:
            raise ValueError(f"{canvas=} pixels; objects can be told apart from 8 on.")
        self.canvas, self.fewest, self.most, self.whole = canvas, fewest, most, whole

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        count = int(rng.integers(self.fewest, self.most + 1))
        objects, scene = draw_scene(rng, count)
        window = WHOLE if self.whole else CROP
        hits = raycasting.cast(scene, (self.canvas, self.canvas), window)
        light = raycasting.shade(scene, hits)
        return {
            "image": np.rint(255 * light).astype(np.uint8),
            "mask": (hits.numbers + 1).astype(np.uint8),
            "properties": properties.encode(
                objects.positions,
                size=objects.sizes,
                material=objects.materials,
                shape=objects.shapes,
                color=objects.colors,
                rows=self.most,
            ),
            "label": 0,
        }

    def describe(self) -> str:
        settings = (
            self.split,
            self.size,
            self.canvas,
            self.fewest,
            self.most,
            self.whole,
            self.seed,
        )
        return f"clevr_lite 1: {settings}"


def draw_scene(
    rng: np.random.Generator, count: int
) -> tuple[Objects, raycasting.Scene]:
    """Draws scenes until one has all objects apart and visible.

    Raises:
        ValueError: none of `TRIES` has.
    """
    for _ in range(TRIES):
        camera = jitter(rng, np.array(CAMERA), JITTER[0])
        lamps = jitter(rng, np.array(LAMPS).T, JITTER[1])
        objects = place_objects(rng, count, camera)
        if objects is None:
            continue
        scene = raycasting.Scene(
            shapes=objects.shapes,
            centers=objects.positions.T,
            radii=objects.positions[:, 2],  # all stand on the plane
            angles=rng.uniform(0, 2 * np.pi, count).astype(np.float32),
            colors=COLORS[objects.colors].T / 255,
            metal=objects.materials == properties.MATERIALS.index("metal"),
            camera=camera,
            lamps=lamps,
        )
        seen = raycasting.cast(scene, (120, 160), WHOLE).numbers
        if np.bincount(seen.ravel() + 1, minlength=count + 1)[1:].min() >= VISIBLE:
            return objects, scene
    raise ValueError(
        f"no scene with {count} objects apart and visible in {TRIES} tries. Use fewer."
    )


def jitter(rng: np.random.Generator, places: np.ndarray, most: float) -> np.ndarray:
    return (places + rng.uniform(-most, most, places.shape)).astype(np.float32)


def place_objects(
    rng: np.random.Generator, count: int, camera: np.ndarray
) -> Objects | None:
    """Draws the objects one by one; None if one finds no place."""
    right, down, forward = raycasting.make_axes(camera)
    directions = np.stack([right[:2], forward[:2]])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    sizes = rng.integers(len(properties.SIZES), size=count)
    shapes = rng.integers(len(properties.SHAPES), size=count)
    radii = np.array(RADII)[sizes]
    stands = np.where(shapes == raycasting.CUBE, radii / np.sqrt(2), radii)
    places = np.zeros((count, 2))
    for i in range(count):
        tried = rng.uniform(-SPAN, SPAN, (PLACES, 2))
        apart = tried[:, None] - places[:i]
        gaps = np.sqrt((apart**2).sum(-1)) - stands[:i] - radii[i]
        margins = np.abs(apart @ directions.T)
        free = (gaps >= CLEARANCE).all(1) & (margins >= MARGIN).all((1, 2))
        if not free.any():
            return None
        places[i] = tried[free.argmax()]
    return Objects(
        sizes=sizes,
        materials=rng.integers(len(properties.MATERIALS), size=count),
        shapes=shapes,
        colors=rng.integers(len(properties.COLORS), size=count),
        positions=np.column_stack([places, stands]).astype(np.float32),
    )
