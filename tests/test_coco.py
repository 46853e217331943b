"""Instance masks of COCO-style JSON."""

import json

import numpy as np
import pytest
from PIL import Image

from attn_jax.data import coco, scene_sources, sources
from attn_jax.tasks.reconstruct import Reconstruct

SIZES = {"train": 9, "validation": 1, "test": 1}


def encode_counts(counts):
    """Compressed runs, after maskApi.c `rleToString`."""
    text = ""
    for i, value in enumerate(counts):
        value -= counts[i - 2] if i > 2 else 0
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text += chr(digit + 32 * more + 48)
    return text


def write(folder, *, images=None, annotations=(), where="images"):
    images = images or [{"id": 7, "file_name": "a.png", "height": 4, "width": 5}]
    (folder / where).mkdir(exist_ok=True)
    for entry in images:
        if entry["file_name"] != "missing.png":
            Image.new("RGB", (5, 4)).save(folder / where / entry["file_name"])
    content = {"images": images, "annotations": list(annotations)}
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


def annotate(segmentation, image=7, **more):
    return {"id": 1, "image_id": image, "segmentation": segmentation} | more


def test_a_polygon_covers_the_pixels_whose_centers_are_in_it():
    mask = coco.draw(annotate([[1, 1, 4, 1, 4, 3, 1, 3], [0, 0, 1.4, 0, 0, 1.4]]), 4, 5)
    expected = np.zeros((4, 5), bool)
    expected[1:3, 1:4] = expected[0, 0] = True
    np.testing.assert_array_equal(mask, expected)
    # Beyond the image, a polygon is cut off.
    assert coco.draw(annotate([[-3, -3, 9, -3, 9, 9, -3, 9]]), 4, 5).all()


def test_runs_go_down_the_columns():
    mask = coco.draw(annotate({"size": [4, 5], "counts": [2, 3, 15]}), 4, 5)
    assert np.argwhere(mask.T).tolist() == [[0, 2], [0, 3], [1, 0]]


def test_compressed_runs_are_those_of_the_original():
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = rng.integers(0, 3000, size=rng.integers(1, 20)).tolist()
        assert coco.decode_counts(encode_counts(counts)) == counts
    # A first digit of 5 bits that looks negative needs a second.
    assert encode_counts([16, 1]) == "`01" and coco.decode_counts("`01") == [16, 1]


def test_later_objects_are_in_front_and_what_is_left_out_is_named(tmp_path):
    images = [
        {"id": key, "file_name": name, "height": 4, "width": 5}
        for key, name in ((7, "a.png"), (8, "b.png"), (9, "missing.png"), (3, "c.png"))
    ]
    square = [[0, 0, 2, 0, 2, 2, 0, 2]]
    path = write(
        tmp_path,
        images=images,
        annotations=[
            annotate([[0, 0, 5, 0, 5, 4, 0, 4]]),
            annotate(square),
            annotate(square, 9),
            *[annotate(square, 3)] * 5,
            annotate({"size": [4, 5], "counts": [20]}, iscrowd=1),
        ],
    )
    sizes = SIZES | {"validation": 0, "test": 0}
    source = scene_sources.open_files(str(path), "train", sizes, fewest=None, most=4)
    assert len(source) == 1
    expected = np.ones((4, 5))
    expected[:2, :2] = 2
    np.testing.assert_array_equal(source[0]["mask"], expected)
    assert sources.describe_left_out(source) == (
        " (left out: 1 without a mask: b.png; 1 whose image file is missing: missing.png; "
        "1 of a crowd: annotation 1; 1 with more than 4 objects: c.png)"
    )


@pytest.mark.parametrize("known", [True, False])
def test_objects_have_classes_if_all_have_a_category(tmp_path, known):
    squares = [[[x, 0, x + 1, 0, x + 1, 4, x, 4]] for x in range(3)]
    classes = [{"category_id": key} for key in (9, 4, 9)]
    if not known:
        classes[1] = {}
    objects = [annotate(s, **more) for s, more in zip(squares, classes, strict=True)]
    task = Reconstruct(
        str(write(tmp_path, annotations=objects)),
        image_size=4,
        **{f"{split}_images": int(split == "train") for split in SIZES},
    )
    example = task.example(task.source("train")[0], None)
    assert ("class_ids" in example) == known
    if known:  # the crop of 4 columns is drawn at its own size
        ids = example["object_ids"]
        np.testing.assert_array_equal(
            example["class_ids"], np.select([ids == 2, ids > 0], [1, 2])
        )
        assert {1, 2} <= set(example["class_ids"].ravel())


def test_images_are_found_where_coco_has_them(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    path = write(tmp_path / "annotations", annotations=[annotate([[0, 0, 1, 0, 1, 1]])])
    (path.parent / "images" / "a.png").rename(tmp_path / "train2017" / "a.png")
    path = path.rename(path.with_name("instances_train2017.json"))
    [pool] = coco.open_json(path).values()
    assert pool[0]["name"] == str(
        tmp_path / "annotations/../train2017/a.png".replace("annotations/../", "")
    )
    (tmp_path / "train2017" / "a.png").unlink()
    with pytest.raises(ValueError, match="lists 1 images, but none has both"):
        coco.open_json(path)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (
            {"size": [5, 4], "counts": [20]},
            r"20 pixels and the size \[5, 4\], the image",
        ),
        ({"size": [4, 5], "counts": [21]}, "21 pixels"),
        ({"size": [4, 5]}, "cannot be drawn: 'counts'"),
        ({"size": [4, 5], "counts": "o"}, "cannot be drawn: string index"),
        ([[1, 2, 3]], "annotation 1 of image 7 .*cannot be drawn: cannot reshape"),
    ],
)
def test_segmentations_that_cannot_be_drawn_are_named(segmentation, words):
    with pytest.raises(ValueError, match=words):
        coco.draw(annotate(segmentation), 4, 5)


def test_other_files_and_sizes_say_what_is_wrong(tmp_path):
    images = [{"id": 7, "file_name": "a.png", "height": 9, "width": 5}]
    path = write(tmp_path, images=images, annotations=[annotate([[0, 0, 1, 0, 1, 1]])])
    with pytest.raises(ValueError, match=r"a.png has \[4, 5\] pixels.*JSON \[9, 5\]"):
        coco.open_json(path)["train"][0]
    for text in (
        "{",
        "[]",
        '{"images": [{"id": 1}]}',
        '{"images": [], "annotations": [{}]}',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match="a.json is no COCO-style JSON"):
            coco.open_json(path)
