"""ReaL labels: all classes that fit an image of ImageNet's validation set."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from attn_jax import evaluation, sharding
from attn_jax.data import real_labels
from attn_jax.tasks import classify

pytestmark = pytest.mark.usefixtures("quick_compilation")


def classify_digits(**fields):
    fields = {"num_classes": 10, "image_size": 8, "channels": 1, **fields}
    return classify.Classify(**{"data": "digits", **fields})


def evaluate(model, task, batch_size, split):
    one = evaluation.Evaluation(
        "probe",
        model,
        task,
        split,
        mesh=sharding.make_mesh({"data": 1}, jax.devices()[:1]),
        batch_size=batch_size,
        key=jax.random.key(0),
    )
    return one.run({})


def real_file(folder, rows):
    path = folder / "real.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return str(path)


NAMED = {"num_classes": 3, "class_names": ("a", "b", "c")}


@pytest.fixture
def validation_images(tmp_path):
    """A folder of four images named as ImageNet's, in an order other than the names'."""
    for name, number in [("a", 3), ("a", 2), ("b", 1), ("b", 4)]:
        for split in ("train", "val"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8, 1), 60 * number, np.uint8)
            file = folder / f"ILSVRC2012_{split}_{number:08d}.png"
            Image.fromarray(pixels[..., 0]).save(file)
    return str(tmp_path / "images")


def test_real_labels_find_their_images_by_name(validation_images, tmp_path):
    path = real_file(tmp_path, [[1], [], [0, 2], [2, 1]])
    task = classify_digits(data=validation_images, **NAMED, real_labels=path)
    found = {}
    for record in task.source("validation"):
        real = task.example(record, None)["real_labels"]
        found[record["image"] and record["name"][-12:-4]] = np.flatnonzero(
            real
        ).tolist()
    assert found == {
        "00000001": [1],
        "00000002": [],
        "00000003": [0, 2],
        "00000004": [1, 2],
    }
    # tfds:imagenet2012 has the file's name as a feature, and `name` for messages.
    pixels = np.zeros((8, 8, 1), np.uint8)
    for name in ("ILSVRC2012_val_00000004.JPEG", b"ILSVRC2012_val_00000004.JPEG"):
        record = {"image": pixels, "label": 0, "file_name": name, "name": "tfds:x[0]"}
        np.testing.assert_array_equal(
            task.example(record, None)["real_labels"], [False, True, True]
        )


def test_any_fitting_label_is_right_and_images_without_one_do_not_count(
    validation_images, tmp_path
):
    class Brightness(nn.Module):
        """Class 0 for the darkest image, 1 for the next two, 2 for the brightest."""

        @nn.compact
        def __call__(self, images, *, train=False):
            bright = (images.mean(axis=(1, 2, 3)) * 127.5 + 127.5) / 60
            classes = jnp.digitize(bright, jnp.array([1.5, 3.5]))
            return {"logits": jax.nn.one_hot(classes, 3)}

    def real_accuracy(rows, batch_size):
        path = real_file(tmp_path, rows)
        real_labels.read.cache_clear()
        task = classify_digits(data=validation_images, **NAMED, real_labels=path)
        results = evaluate(Brightness(), task, batch_size, "validation")
        return results["probe/real_accuracy"]

    # Predicted: 0, 1, 1, 2.
    for batch_size in (1, 3, 4):
        assert real_accuracy([[0], [0, 1], [2, 1, 0], [2]], batch_size) == 1
        assert real_accuracy([[1], [], [2, 1], [0]], batch_size) == 1 / 3
        assert math.isnan(real_accuracy([[], [], [], []], batch_size))


def test_training_images_have_no_real_labels(validation_images, tmp_path):
    path = real_file(tmp_path, [[1], [], [0], [1]])
    task = classify_digits(data=validation_images, **NAMED, real_labels=path)
    record = task.source("train")[0]
    with pytest.raises(
        ValueError, match=r"train_0000000.* Set .* config.evals.NAME.task"
    ):
        task.example(record, None)


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        ({}, "''"),
        ({"name": "ILSVRC2012_val_00000000.JPEG"}, "val_00000000"),
        ({"name": "ILSVRC2012_val_00000003.JPEG"}, "val_00000003"),
    ],
)
def test_an_image_that_the_file_does_not_list_is_named(tmp_path, record, shown):
    task = classify_digits(real_labels=real_file(tmp_path, [[1], [0]]))
    record = {"image": np.zeros((8, 8, 1), np.uint8), "label": 0, **record}
    with pytest.raises(ValueError, match=f"{shown}.*to ILSVRC2012_val_00000002"):
        task.example(record, None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[[1], [", "is no JSON"),
        ('{"1": [1]}', "entry 1 is"),
        ("[[1], 2]", "entry 2 is 2, no list"),
        ('[["1"]]', "entry 1 is"),
        ("[[true]]", "entry 1 is"),
        ("[[1], [10]]", r"entry 2 is \[10\], .* num_classes - 1 = 9"),
    ],
)
def test_a_malformed_file_of_real_labels_is_refused(tmp_path, rows, message):
    task = classify_digits(real_labels=real_file(tmp_path, rows))
    with pytest.raises(ValueError, match=f"real.json'.*{message}.*google-research"):
        task.source("test")


def test_a_missing_file_of_real_labels_is_named(tmp_path):
    task = classify_digits(real_labels=str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r"none.json' is no file; .*google-research"):
        task.source("test")
