"""Generated solids on a plane: what is seen, how it is lit, and their properties."""

import pickle

import numpy as np
import pytest

from attn_jax.data import clevr_lite, packed_scenes, properties, raycasting
from attn_jax.data.clevr_lite import ClevrLite

SCENE = raycasting.Scene(  # one of each shape, apart
    shapes=np.array([0, 1, 2]),
    centers=np.array([[0.1, -1.3, 1.2], [-1.1, 0.3, 0.9], [0.5, 0.7, 0.6]], np.float32),
    radii=np.array([0.5, 0.7, 0.6], np.float32),
    angles=np.array([0.4, 0, 2], np.float32),
    colors=np.ones((3, 3), np.float32),
    metal=np.array([False, True, False]),
    camera=np.array(clevr_lite.CAMERA, np.float32),
    lamps=np.array(clevr_lite.LAMPS, np.float32).T,
)


def find_inside(scene, i, points):
    """Which points [3, ...] are in object i: by what the shapes are, not by rays."""
    x, y, z = np.moveaxis(np.moveaxis(points, 0, -1) - scene.centers[:, i], -1, 0)
    radius, angle = scene.radii[i], scene.angles[i]
    if scene.shapes[i] == raycasting.SPHERE:
        return x**2 + y**2 + z**2 <= radius**2
    if scene.shapes[i] == raycasting.CYLINDER:
        return (np.hypot(x, y) <= radius) & (np.abs(z) <= radius)
    sides = [
        x * np.cos(angle) + y * np.sin(angle),
        y * np.cos(angle) - x * np.sin(angle),
    ]
    return np.abs([*sides, z]).max(0) <= radius


def walk(scene, start, end, steps):
    """The first object on the ways from [3, P] to [3, P], and the share of the way."""
    shares = np.linspace(0, 1, steps)[:, None]
    points = start[:, None] + shares * (end - start)[:, None]
    inside = np.array([find_inside(scene, i, points) for i in range(len(scene.radii))])
    first = inside.any(0).argmax(0)
    at = inside[:, first, np.arange(len(first))]
    return np.where(at.any(0), at.argmax(0), raycasting.NONE), shares[first, 0]


def test_rays_hit_what_small_steps_along_them_find():
    hits = raycasting.cast(SCENE, (12, 16), clevr_lite.WHOLE)
    points, numbers = hits.points.reshape(3, -1), hits.numbers.ravel()
    camera = SCENE.camera[:, None]
    ground = camera + (points - camera) * (camera[2] / (camera[2] - points[2]))
    found, share = walk(SCENE, camera, ground, 4000)
    assert set(numbers) == {raycasting.NONE, 0, 1, 2}
    # A ray that only touches an edge may be inside for less than a step of 5 mm or so.
    assert (found != numbers).sum() <= 1
    same = (found == numbers) & (found != raycasting.NONE)
    away = np.linalg.norm(camera + share * (ground - camera) - points, axis=0)
    assert away[same].max() < 0.01


def test_normals_point_out_of_the_surface():
    hits = raycasting.cast(SCENE, (24, 32), clevr_lite.WHOLE)
    for i in range(3):
        points = hits.points[:, hits.numbers == i]
        normals = raycasting.find_normals(SCENE, i, points)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-3)
        # A hundredth out and in; a float32 at distance 10 is exact to 1e-6.
        assert not find_inside(SCENE, i, points + 0.01 * normals).any()
        assert find_inside(SCENE, i, points - 0.01 * normals).all()


def test_a_point_is_in_shadow_where_an_object_stands_before_the_lamp():
    lamp = SCENE.lamps[:, 0]
    grid = np.mgrid[-3:1.5:9j, -1:3:9j].reshape(2, -1)
    points = np.concatenate([grid, np.zeros((1, 81))]).astype(np.float32)
    found = raycasting.find_shadow(SCENE, lamp, points, np.full(81, raycasting.NONE))
    outside = ~np.any([find_inside(SCENE, i, points) for i in range(3)], axis=0)
    expected, _ = walk(SCENE, points, lamp[:, None], 2000)
    np.testing.assert_array_equal(found[outside], expected[outside] != raycasting.NONE)
    assert 5 < found[outside].sum() < 70


def test_an_object_in_shadow_is_darker():
    lit = raycasting.shade(SCENE, raycasting.cast(SCENE, (30, 40), clevr_lite.WHOLE))
    dark = SCENE._replace(lamps=-SCENE.lamps)  # below the ground
    unlit = raycasting.shade(dark, raycasting.cast(dark, (30, 40), clevr_lite.WHOLE))
    assert 0 <= unlit.min() and lit.max() <= 1
    assert unlit.mean() < lit.mean() / 2


def test_objects_keep_apart_and_all_of_them_are_seen():
    counts = set()
    source = ClevrLite("train", 12, canvas=96, whole=True)
    for i in range(len(source)):
        record = source[i]
        rows = record["properties"]
        assert rows.shape == (10, 19)
        real = rows[rows[:, -1] == 1]
        assert not rows[len(real) :].any()
        counts.add(len(real))
        # 200 of 240 x 320 pixels are 24 of 96 x 96; half of that for the coarser grids.
        seen = np.bincount(record["mask"].ravel(), minlength=len(real) + 1)
        assert len(seen) == len(real) + 1 and seen.min() > 12
        places = real[:, :3] * 6 - 3
        assert np.abs(places[:, :2]).max() <= 3
        gaps = np.linalg.norm(places[:, None, :2] - places[:, :2], axis=-1)
        gaps -= places[:, None, 2] + places[:, 2]
        assert gaps[~np.eye(len(real), dtype=bool)].min() > 0.25 - 1e-5
        heights = np.where(real[:, 3] == 1, 0.35, 0.7)
        heights = np.where(real[:, 7] == 1, heights / np.sqrt(2), heights)
        np.testing.assert_allclose(places[:, 2], heights, atol=1e-6)  # float32
    assert len(counts) > 3 and min(counts) >= 3 and max(counts) <= 10


def test_the_mask_is_where_the_properties_say():
    source = ClevrLite("train", 5, canvas=64, most=3, whole=True)
    for i in range(len(source)):
        rng = np.random.default_rng([0, 0, i])
        objects, scene = clevr_lite.draw_scene(rng, int(rng.integers(3, 4)))
        axes = raycasting.make_axes(scene.camera)
        mask = source[i]["mask"]
        assert objects.positions[:, 0] == pytest.approx(
            source[i]["properties"][:, 0] * 6 - 3, abs=1e-6
        )
        for number in range(3):
            right, down, forward = axes @ (objects.positions[number] - scene.camera)
            column = (raycasting.FOCAL * right / forward + 160) / 5
            row = (raycasting.FOCAL * down / forward + 120) / 3.75
            at = mask[int(row), int(column)]
            # An object may stand before this one's center, but none behind it.
            depths = axes[2] @ (objects.positions.T - scene.camera[:, None])
            assert at == number + 1 or depths[at - 1] < depths[number]


def test_another_canvas_shows_the_same_scene():
    fine = ClevrLite("validation", 4, canvas=48, most=4)
    coarse = ClevrLite("validation", 4, canvas=16, most=4)
    for i in range(4):
        np.testing.assert_array_equal(coarse[i]["mask"], fine[i]["mask"][1::3, 1::3])
        np.testing.assert_array_equal(coarse[i]["properties"], fine[i]["properties"])
        # The same ray in another array: a rounding may move the last of 255 levels.
        levels = coarse[i]["image"].astype(int) - fine[i]["image"][1::3, 1::3]
        assert np.abs(levels).max() <= 1


def test_the_crop_shows_the_middle_of_the_whole_frame():
    # Pixels of 4 x 4 of the frame: the crop has 48 x 48, from row 29 / 4 on; compare 1 by 1.
    objects, scene = clevr_lite.draw_scene(np.random.default_rng(3), 4)
    whole = raycasting.cast(scene, (240, 320), clevr_lite.WHOLE).numbers
    crop = raycasting.cast(scene, (192, 192), clevr_lite.CROP).numbers
    np.testing.assert_array_equal(crop, whole[29:221, 64:256])
    assert len(objects.sizes) == 4


def test_a_scene_depends_on_seed_split_and_index_alone():
    one = ClevrLite("train", 30, canvas=24, most=4)
    again = ClevrLite("train", 40, canvas=24, most=4)
    for key in ("image", "mask", "properties"):
        np.testing.assert_array_equal(one[7][key], again[7][key])
    for other in (ClevrLite("test", 30, canvas=24, most=4)[7], one[8]):
        assert (other["image"] != one[7]["image"]).any()
    changes = (
        {},
        {"canvas": 25},
        {"fewest": 2},
        {"most": 5},
        {"whole": True},
        {"seed": 1},
    )
    prints = {ClevrLite("train", 30, **change).fingerprint() for change in changes}
    assert len(prints) == 6


def test_properties_are_the_target_of_the_original_code(shared):
    golden = np.load(shared / "golden" / "slot_attention" / "preprocess_clevr.npz")
    codes = {name: golden[f"objects/{name}"] for name in properties.NAMES}
    found = properties.encode(golden["objects/3d_coords"], **codes, rows=10)
    # The division of float32 against that of TensorFlow: a rounding.
    np.testing.assert_allclose(found, golden["target"], rtol=0, atol=1e-7)


def test_more_objects_than_rows_are_named():
    codes = dict.fromkeys(properties.NAMES, np.zeros(4, int))
    with pytest.raises(ValueError, match="4 objects, but only 3 rows.*num_objects"):
        properties.encode(np.zeros((4, 3)), **codes, rows=3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fewest": 4, "most": 3}, "fewest=4, most=3"),
        ({"most": 11}, "most=11 objects.*from 1 to 10"),
        ({"canvas": 7}, "canvas=7 pixels"),
    ],
)
def test_scenes_that_cannot_be_drawn_say_why(options, words):
    with pytest.raises(ValueError, match=words):
        ClevrLite("train", 3, **options)


def test_a_crowd_that_has_no_place_is_refused(monkeypatch):
    monkeypatch.setattr(clevr_lite, "TRIES", 2)
    with pytest.raises(ValueError, match="no scene with 40 objects apart"):
        clevr_lite.draw_scene(np.random.default_rng(0), 40)


def test_kept_scenes_are_those_that_were_generated(cache, monkeypatch):
    source = ClevrLite("train", 6, canvas=16, most=4)
    kept = packed_scenes.keep_generated(source)
    monkeypatch.setattr(packed_scenes, "write", None)
    again = pickle.loads(pickle.dumps(packed_scenes.keep_generated(source)))
    assert len(kept) == 6 and kept.fingerprint() == again.fingerprint()
    for i in (5, 2):
        record = source[i]
        for key in ("image", "mask", "properties"):
            np.testing.assert_array_equal(again[i][key], record[key])
    with pytest.raises(IndexError):
        kept[6]
    with pytest.raises(
        TypeError
    ):  # another seed is another entry, which would be written
        packed_scenes.keep_generated(ClevrLite("train", 6, canvas=16, most=4, seed=1))
