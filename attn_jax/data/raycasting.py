"""Casts rays at spheres, cubes and cylinders on a plane, and lights what they hit. NumPy only.

World axes: x, y on the plane, z up. A pixel is the light along one ray through its center;
there is no antialiasing, so that masks are exact.
Axes: N objects, P points or rays; vectors are [3, ...].
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Integer, Num

from attn_jax.data.properties import SHAPES

FRAME = (240, 320)  # rows and columns of CLEVR's images, in which windows are given
FOCAL = 350.0  # pixels: a lens of 35 mm before a sensor of 32 mm
CUBE, SPHERE, CYLINDER = range(len(SHAPES))
CORNERS = (3**0.5, 1.0, 2**0.5)  # radius of a sphere around each, by its own
AMBIENT = 0.25
GROUND = 0.5  # share of the light that the plane reflects
LAMP_SHARES = (0.75, 0.3, 0.25)  # of key, fill and back lamp in the light
REACH = 9.0  # distance from a lamp at which its share is reached
GLOSS = 5  # the highlight falls as the cosine to the power of 2**5
NONE = -1  # the number of the plane


class Scene(NamedTuple):
    """Objects and where camera and lamps are; the camera looks at the origin.

    `radii` is half the height of every object, and half the side of a cube; `metal` is where
    the material shines.
    """

    shapes: Integer[np.ndarray, " N"]
    centers: Float32[np.ndarray, "3 N"]
    radii: Float32[np.ndarray, " N"]
    angles: Float32[np.ndarray, " N"]
    colors: Float32[np.ndarray, "3 N"]
    metal: Bool[np.ndarray, " N"]
    camera: Float32[np.ndarray, " 3"]
    lamps: Float32[np.ndarray, "3 L"]


class Hits(NamedTuple):
    """What each ray hits first: the number of the object or NONE, and the point."""

    numbers: Integer[np.ndarray, "H W"]
    points: Float32[np.ndarray, "3 H W"]


def make_axes(camera: Num[np.ndarray, " 3"]) -> Float32[np.ndarray, "3 3"]:
    """Returns unit vectors (right, down, forward) of a camera that looks at the origin."""
    forward = -camera / np.linalg.norm(camera)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward]).astype(np.float32)


def cast(
    scene: Scene, size: tuple[int, int], window: tuple[int, int, int, int]
) -> Hits:
    """Casts a ray through the center of every pixel.

    Args:
        size: rows and columns of the result.
        window: (top, bottom, left, right) of the part of `FRAME` that is seen.
    """
    top, bottom, left, right = window
    rows = top + (np.arange(size[0]) + 0.5) * (bottom - top) / size[0] - FRAME[0] / 2
    columns = left + (np.arange(size[1]) + 0.5) * (right - left) / size[1]
    columns -= FRAME[1] / 2
    axes = make_axes(scene.camera)
    across = axes[0, :, None] * columns.astype(np.float32)
    down = axes[1, :, None] * rows.astype(np.float32)
    rays = across[:, None, :] + down[:, :, None]
    rays += axes[2, :, None, None] * np.float32(FOCAL)
    distance = np.full(size, np.inf, np.float32)
    below = rays[2] < 0
    distance[below] = -scene.camera[2] / rays[2][below]
    numbers = np.full(size, NONE, np.int16)
    for i in range(len(scene.radii)):
        y, x = find_box(scene, i, axes, rows, columns)
        found = intersect(scene, i, scene.camera[:, None, None], rays[:, y, x])
        nearer = found < distance[y, x]
        distance[y, x][nearer] = found[nearer]
        numbers[y, x][nearer] = i
    distance = np.minimum(distance, np.float32(1e3))  # a ray above the horizon
    return Hits(numbers, scene.camera[:, None, None] + distance * rays)


def find_box(
    scene: Scene,
    i: int,
    axes: Float32[np.ndarray, "3 3"],
    rows: Num[np.ndarray, " H"],
    columns: Num[np.ndarray, " W"],
) -> tuple[slice, slice]:
    """The rows and columns that an object may cover: those of a cube around it."""
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
    center = axes @ (scene.centers[:, i] - scene.camera)
    right, down, forward = center[:, None] + find_reach(scene, i) * corners
    if forward.min() <= 0:
        return slice(None), slice(None)
    bounds = []
    for place, pixels in ((down, rows), (right, columns)):
        seen = FOCAL * place / forward
        first, last = np.searchsorted(pixels, [seen.min(), seen.max()])
        bounds.append(slice(int(first), int(last)))
    return bounds[0], bounds[1]


def find_reach(scene: Scene, i: int) -> float:
    """The radius of a sphere around an object."""
    return float(scene.radii[i]) * CORNERS[scene.shapes[i]]


def intersect(
    scene: Scene,
    i: int,
    origins: Num[np.ndarray, "3 ..."],
    rays: Num[np.ndarray, "3 ..."],
) -> Float32[np.ndarray, "..."]:
    """Returns the least t > 0 where origin + t * ray is on object i; infinity if nowhere."""
    radius, shape = scene.radii[i], int(scene.shapes[i])
    center = scene.centers[:, i].reshape((3,) + (1,) * (rays.ndim - 1))
    start = turn(origins - center, scene.angles[i])
    rays = turn(rays, scene.angles[i])
    with np.errstate(divide="ignore", invalid="ignore"):
        if shape == SPHERE:
            enter, leave = solve((start * start).sum(0), start, rays, 3, radius)
        elif shape == CYLINDER:
            enter, leave = solve((start[:2] ** 2).sum(0), start, rays, 2, radius)
            enter, leave = clip(enter, leave, start[2:], rays[2:], radius)
        else:
            enter = np.full(rays.shape[1:], -np.inf, np.float32)
            enter, leave = clip(enter, -enter, start, rays, radius)
        return np.where((enter <= leave) & (enter > 0), enter, np.float32(np.inf))


def turn(vectors: np.ndarray, angle: np.float32) -> np.ndarray:
    """Turns vectors into the axes of an object that is turned by `angle` about z."""
    sine, cosine = np.sin(angle), np.cos(angle)
    x, y, z = vectors
    return np.stack([cosine * x + sine * y, cosine * y - sine * x, z])


def solve(
    square: np.ndarray,
    start: np.ndarray,
    rays: np.ndarray,
    dims: int,
    radius: np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Where |start + t * ray| = radius in the first dimensions; NaN if nowhere."""
    a = (rays[:dims] ** 2).sum(0)
    half = (start[:dims] * rays[:dims]).sum(0)
    root = np.sqrt(half * half - a * (square - radius * radius))
    return (-half - root) / a, (-half + root) / a


def clip(
    enter: np.ndarray,
    leave: np.ndarray,
    start: np.ndarray,
    rays: np.ndarray,
    radius: np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Narrows [enter, leave] to where |start + t * ray| <= radius along every axis given."""
    middle, half = -start / rays, np.abs(radius / rays)
    return (
        np.maximum(enter, (middle - half).max(0)),
        np.minimum(leave, (middle + half).min(0)),
    )


def find_normals(scene: Scene, i: int, points: np.ndarray) -> np.ndarray:
    """Unit vectors away from the surface of object i, at points [3, P] on it."""
    local = turn(points - scene.centers[:, i, None], scene.angles[i])
    local /= scene.radii[i]
    shape = int(scene.shapes[i])
    if shape == CUBE:
        axis = np.abs(local).argmax(0)
        normal = np.where(np.arange(3)[:, None] == axis, np.sign(local), 0)
    elif shape == CYLINDER:
        cap = np.abs(local[2]) > 1 - 1e-4
        normal = np.where(
            cap, [[0], [0], [1]] * np.sign(local), local * [[1], [1], [0]]
        )
    else:
        normal = local
    return turn(normal.astype(np.float32), -scene.angles[i])


def find_shadow(
    scene: Scene, lamp: np.ndarray, points: np.ndarray, owners: np.ndarray
) -> Bool[np.ndarray, " P"]:
    """Where an object stands between points [3, P] and a lamp.

    A convex object hides its own far side by its normals, so it is left out.
    """
    shadow = np.zeros(points.shape[1], bool)
    rays = lamp[:, None] - points
    length = (rays * rays).sum(0)
    for i in range(len(scene.radii)):
        toward = scene.centers[:, i, None] - points
        along = (toward * rays).sum(0)
        off = (toward * toward).sum(0) - along * along / length
        near = (off < find_reach(scene, i) ** 2) & (along > 0) & (owners != i)
        near = np.flatnonzero(near & ~shadow)
        found = intersect(scene, i, points[:, near], rays[:, near])
        shadow[near[found < 1]] = True
    return shadow


def shade(scene: Scene, hits: Hits) -> Float32[np.ndarray, "H W 3"]:
    """The light of every pixel, 0 to 1: Lambert's law, highlights, shadows of the key lamp.

    Metal reflects a sky that is brighter above, tinted by its color; rubber does not.
    """
    owners, points = hits.numbers.ravel(), hits.points.reshape(3, -1)
    normals = np.zeros_like(points)
    normals[2] = 1
    for i in range(len(scene.radii)):
        own = owners == i
        normals[:, own] = find_normals(scene, i, points[:, own])
    base = np.append(scene.colors, np.full((3, 1), GROUND, np.float32), axis=1)
    base = base[:, owners]  # NONE is the last
    metal = np.append(scene.metal, False)[owners]
    view = scene.camera[:, None] - points
    view /= np.sqrt((view * view).sum(0))
    mirrored = 2 * (view * normals).sum(0) * normals - view
    light = np.full(points.shape[1], AMBIENT, np.float32)
    glint = np.zeros(points.shape[1], np.float32)
    for number, share in enumerate(LAMP_SHARES):
        rays = scene.lamps[:, number, None] - points
        square = (rays * rays).sum(0)
        rays /= np.sqrt(square)
        strength = np.float32(share) * np.minimum(2, REACH**2 / square)
        if number == 0:
            strength *= ~find_shadow(scene, scene.lamps[:, 0], points, owners)
        light += strength * np.maximum((normals * rays).sum(0), 0)
        near = np.maximum((mirrored * rays).sum(0), 0)
        for _ in range(GLOSS):
            near *= near
        glint += strength * near
    sky = 0.25 + 0.75 * np.maximum(mirrored[2], 0)
    color = base * np.where(metal, 0.45 * light + 0.55 * sky, light)
    gloss = np.where(metal, 0.9, np.where(owners == NONE, 0.0, 0.12))
    color += gloss.astype(np.float32) * glint
    return np.ascontiguousarray(color.clip(0, 1).T).reshape(*hits.numbers.shape, 3)
