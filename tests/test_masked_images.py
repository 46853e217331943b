"""Images with instance masks in folders and archives, and how they are cropped."""

import numpy as np
import pytest
from PIL import Image

from attn_jax.data import framing, images, masks, scene_sources, sources
from attn_jax.tasks.reconstruct import Reconstruct

SIZES = {"train": 100, "validation": 2, "test": 1}
IDS = np.array([[0, 0, 1], [2, 2, 1]])


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values), mode).save(path) if mode else Image.fromarray(
        np.asarray(values)
    ).save(path)


def paint(path, seed=0, size=(2, 3)):
    save(
        path, np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    )


def open_pools(path):
    return scene_sources.open_pools(str(path), scene_sources.make_need(SIZES, None, 9))


def open_all(folder, **options):
    """All records, in the order of their names."""
    pool = open_pools(folder)["train"]
    kept, left_out = scene_sources.choose_by_objects(pool, None, options.get("most", 9))
    return [pool[int(i)] for i in kept], [*pool.left_out, *left_out]


@pytest.mark.parametrize(
    "stored",
    [
        np.uint8(IDS),
        np.uint8(IDS * 100),
        np.uint16(IDS * 3000),
        np.uint8(np.stack([IDS * 7, IDS * 0, IDS * 100], -1)),
    ],
    ids=["ids", "gray", "16 bit", "colors"],
)
def test_a_mask_of_ids_is_numbered_whatever_its_values(tmp_path, stored):
    paint(tmp_path / "images" / "a.png")
    save(tmp_path / "masks" / "a.png", stored)
    [record], left_out = open_all(tmp_path)
    np.testing.assert_array_equal(record["mask"], IDS)
    assert record["mask"].dtype == np.uint16 and not left_out


def test_a_palette_gives_its_numbers(tmp_path):
    paint(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    indexed = Image.fromarray(np.uint8(IDS), "L").convert("P")
    indexed.putpalette([0, 0, 0, 9, 9, 9, 9, 9, 9])  # two entries of one color
    indexed.save(tmp_path / "masks" / "a.png")
    [record], _ = open_all(tmp_path)
    np.testing.assert_array_equal(record["mask"], IDS)


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("layout", ["masks/a/", "a/masks/"])
def test_one_mask_an_object_may_be_0_and_1_or_0_and_255(tmp_path, white, layout):
    nested = layout.startswith("a")
    paint(tmp_path / ("a/images/a.png" if nested else "images/a.jpg"))
    for number in (1, 2):
        save(tmp_path / layout / f"{number}.png", np.uint8((number == IDS) * white))
    [record], _ = open_all(tmp_path)
    np.testing.assert_array_equal(record["mask"], IDS)


def test_images_without_masks_are_read_and_have_no_mask(tmp_path):
    for name in ("b.png", "deep/a.png"):
        paint(tmp_path / name)
    records, left_out = open_all(tmp_path)
    assert [r["name"].rpartition("/")[2] for r in records] == ["b.png", "a.png"]
    assert all("mask" not in record for record in records) and not left_out


def test_an_image_without_its_mask_is_counted_and_named(tmp_path):
    for name in ("a", "b", "c"):
        paint(tmp_path / "images" / f"{name}.png")
    for name in ("b", "d"):
        save(tmp_path / "masks" / f"{name}.png", np.uint8(IDS))
    pool = open_pools(tmp_path)["train"]
    assert len(pool) == 1
    assert sources.describe_left_out(pool) == (
        " (left out: 2 without a mask: images/a.png, images/c.png; 1 a mask without an "
        "image: masks/d.png)"
    )
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(
        ValueError, match="none of 3 images .* has a mask, but there are"
    ):
        open_pools(tmp_path)


def test_masks_of_another_size_are_named_with_their_image(tmp_path):
    paint(tmp_path / "images" / "a.png", size=(3, 3))
    save(tmp_path / "masks" / "a.png", np.uint8(IDS))
    words = (
        r"images/a.png has \[3, 3\] pixels .*masks/a.png \[2, 3\]; they must be equal"
    )
    with pytest.raises(ValueError, match=words):
        open_all(tmp_path)
    save(tmp_path / "b" / "masks" / "1.png", np.uint8(IDS))
    save(tmp_path / "b" / "masks" / "2.png", np.uint8(IDS[:1]))
    stack = sorted((tmp_path / "b" / "masks").iterdir())
    with pytest.raises(
        ValueError, match=r"1.png of \[2, 3\].*2.png of \[1, 3\].*differ"
    ):
        masks.read_stack(stack)


def test_masks_that_are_no_ids_say_why(tmp_path):
    lossy = tmp_path / "a.png"
    Image.fromarray(np.uint8(IDS)).save(lossy, "JPEG")
    with pytest.raises(ValueError, match="mask .*a.png cannot be read.*PNG, BMP"):
        masks.read_ids(lossy)
    Image.fromarray(np.float32(IDS)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="float32 values; ids must be whole"):
        masks.read_ids(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="the mask a has 2 values from -1"):
        masks.number(np.array([[-1, 0]]), "a")
    paint(tmp_path / "images" / "a.png")
    save(tmp_path / "masks" / "a.png", np.uint8(IDS))
    save(tmp_path / "masks" / "a" / "1.png", np.uint8(IDS))
    with pytest.raises(
        ValueError, match="a.png has several masks: masks/a.png, masks/a/1"
    ):
        open_pools(tmp_path)


def write_npz(path, number=9, **changes):
    rng = np.random.default_rng(1)
    arrays = {
        "images": rng.integers(256, size=(number, 6, 8, 3), dtype=np.uint8),
        # Image i has i objects.
        "instances": np.minimum(
            np.arange(48).reshape(6, 8), np.arange(number)[:, None, None]
        )
        * 50,
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return arrays


def test_an_archive_is_split_and_images_with_other_numbers_are_named(tmp_path):
    arrays = write_npz(tmp_path / "a.npz", ids=np.arange(9))
    found = {}
    for split in SIZES:
        source = scene_sources.open_files(
            str(tmp_path / "a.npz"), split, SIZES, fewest=2, most=7
        )
        for i in range(len(source)):
            record = source[i]
            at = int(record["name"][6:-1])
            assert found.setdefault(at, split) == split
            np.testing.assert_array_equal(record["image"], arrays["images"][at])
            np.testing.assert_array_equal(record["mask"], arrays["instances"][at] // 50)
            assert record["mask"].max() == at
    assert sorted(found) == [2, 3, 4, 5, 6, 7]
    assert (
        sorted(found.values())
        == ["test", "train", "train", "train"] + ["validation"] * 2
    )
    assert sources.describe_left_out(source) == (
        " (left out: 1 not a key that we read: ids.npy; 1 with more than 7 objects: "
        "a.npz[8]; 2 with less than 2: a.npz[0], a.npz[1])"
    )


def test_splits_of_a_folder_are_kept(tmp_path):
    for split, number in (("train", 5), ("val", 3)):
        for i in range(number):
            paint(tmp_path / split / f"{i}.png", seed=i)

    def count(split, **sizes):
        source = scene_sources.open_files(
            str(tmp_path), split, SIZES | sizes, fewest=None, most=1
        )
        folders = {source[i]["name"].split("/")[-2] for i in range(len(source))}
        return len(source), folders

    assert count("validation") == (2, {"val"})
    assert count("validation", validation=9) == (3, {"val"})
    assert count("train") == (4, {"train"})
    assert count("test") == (1, {"train"})
    with pytest.raises(
        ValueError, match="no image is left for train: of 5 images 5.*test_images=5"
    ):
        count("train", test=5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"images": None},
            r"holds the keys \['instances.npy'\]; it must hold `images`",
        ),
        ({"images": np.zeros((2, 3, 3))}, r"images is float64 \[2, 3, 3, 1\]"),
        ({"images": np.zeros((0, 3, 3), np.uint8)}, "holds no image"),
        (
            {"instances": np.zeros((9, 6, 7), int)},
            r"instances is int64 \[9, 6, 7\], images",
        ),
        ({"instances": np.zeros((9, 6, 8))}, "instances is float64"),
    ],
)
def test_archives_that_cannot_be_used_say_why(tmp_path, changes, words):
    write_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(ValueError, match=words):
        open_pools(tmp_path / "a.npz")


def test_data_that_is_no_set_of_images_says_why(tmp_path):
    with pytest.raises(
        ValueError,
        match="'nothing' is unknown.*exists, 'tfds:clevr', or one of 'tetrom",
    ):
        scene_sources.open_files("nothing", "train", SIZES, fewest=None, most=3)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="a.txt is no set of images"):
        open_pools(tmp_path / "a.txt")
    (tmp_path / "a.npz").write_text("no zip")
    with pytest.raises(ValueError, match="a.npz is no readable .npz file"):
        open_pools(tmp_path / "a.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image; expected images/NAME"):
        open_pools(tmp_path / "empty")


def test_the_crop_of_clevr_is_the_original_codes(shared):
    golden = np.load(shared / "golden" / "slot_attention" / "preprocess_clevr.npz")
    for crop, key in (("clevr", "cropped_image"), ("whole", "image")):
        framed, none = framing.frame_scene(golden["image_u8"], None, 32, crop)
        found = images.value_range(framed)
        # Resized after the scaling there, before it here: roundings of values up to 255.
        np.testing.assert_allclose(found, golden[key], rtol=0, atol=5e-7)
        assert none is None
    with pytest.raises(
        ValueError, match=r"\[240, 319\] pixels.*crop='clevr' is made for"
    ):
        framing.frame_scene(golden["image_u8"][:, 1:], None, 32, "clevr")


def test_a_mask_is_cropped_with_its_image():
    ids = np.arange(240 * 320).reshape(240, 320) % 60_000
    image = np.zeros((240, 320, 3), np.uint8)
    for crop, part in (("clevr", ids[29:221, 64:256]), ("center", ids[:, 40:280])):
        side = len(part)
        _, mask = framing.frame_scene(image, ids.astype(np.uint16), side, crop)
        np.testing.assert_array_equal(mask, part)
        # A third: the middle of three pixels is the nearest.
        _, mask = framing.frame_scene(image, ids.astype(np.uint16), side // 3, crop)
        np.testing.assert_array_equal(mask, part[1::3, 1::3])


def test_the_task_reads_files_with_masks_and_without(tmp_path):
    arrays = write_npz(tmp_path / "a.npz")
    task = Reconstruct(
        str(tmp_path / "a.npz"),
        image_size=6,
        num_objects=8,
        validation_images=2,
        test_images=2,
    )
    record = task.source("train")[0]
    at = int(record["name"][6:-1])
    example = task.example(record, None)
    np.testing.assert_array_equal(example["images"], arrays["images"][at][:, 1:7])
    np.testing.assert_array_equal(
        example["object_ids"], arrays["instances"][at][:, 1:7] // 50
    )
    assert example["images"].dtype == np.float32
    write_npz(tmp_path / "a.npz", instances=None)
    assert set(task.example(task.source("test")[1], None)) == {"images"}


def test_the_nuclei_are_read(shared):
    data = str(shared / "data" / "dsb2018" / "dsb2018_256.npz")
    sizes = {"train": 1000, "validation": 12, "test": 12}
    source = scene_sources.open_files(data, "train", sizes, fewest=None, most=10)
    assert len(source) == 79 - 24
    record = source[0]
    assert record["image"].shape == (256, 256, 3) and 1 <= record["mask"].max() <= 10


def test_a_mask_without_background_has_no_0():
    found = masks.number(np.array([[5, 5], [9, 5]]), "a")
    assert found.tolist() == [[1, 1], [2, 1]]
