"""The image input that all image tasks share."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import png, write_folder

from attn_jax.data import survey
from attn_jax.data.reading import CroppedImageReading, ImageReading
from attn_jax.tasks.bags import Bags
from attn_jax.tasks.classify import Classify
from attn_jax.tasks.masked_patches import MaskedPatches
from attn_jax.tasks.probe import Probe

TASKS = {
    Classify: dict(num_classes=10),
    MaskedPatches: dict(patch_size=4),
    Probe: {},
    Bags: dict(target=9),
}


def task_of(cls, **fields):
    return cls(**{"data": "digits", "image_size": 8, **TASKS[cls], **fields})


@pytest.mark.parametrize("cls", TASKS)
def test_every_image_task_normalizes_by_its_mean_and_std(cls):
    task = task_of(cls, channels=3, mean=(0.1, 0.2, 0.3), std=0.25)
    name = "instances" if cls is Bags else "images"
    shape = (2, 5, 8, 8, 3) if cls is Bags else (2, 8, 8, 3)
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    batch = {name: jnp.asarray(pixels), "labels": jnp.zeros(2, jnp.int32)}
    batch["index"] = jnp.arange(2)
    found = task.prepare(batch, jax.random.key(0), False)[name]
    expected = (pixels / 255 - np.array([0.1, 0.2, 0.3])) / 0.25
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)  # float32 up to 4


@pytest.mark.parametrize("cls", [Classify, MaskedPatches, Probe])
def test_rotation_and_background_reach_the_decoder(cls, monkeypatch):
    seen = {}

    def decode(data, channels, **options):
        seen.update(options)
        return np.zeros((8, 8, channels), np.uint8)

    monkeypatch.setattr("attn_jax.data.decoding.decode", decode)
    record = {"image": b"", "label": 0, "name": "x"}
    task_of(cls, exif_rotation=False, background=(1, 2, 3)).example(record, None)
    assert seen == dict(name="x", exif_rotation=False, background=(1, 2, 3))


def test_a_probe_has_no_training_augmentation():
    added = {f.name for f in dataclasses.fields(CroppedImageReading)}
    added -= {f.name for f in dataclasses.fields(ImageReading)}
    assert added == {"crop", "crop_area", "shift_pixels", "flip"}
    assert not added & {f.name for f in dataclasses.fields(Probe)}


def test_assets_tell_the_range_of_values():
    def told(**fields):
        return json.loads(task_of(MaskedPatches, **fields).describe())

    assert told() == {"value_range": [-1, 1]}
    odd = told(mean=(0.0, 0.5, 0.25), std=(1.0, 0.5, 0.25))
    assert odd["mean"] == [0.0, 0.5, 0.25] and odd["std"] == [1.0, 0.5, 0.25]
    assert odd["value_range"] == [-1, 3]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(mean=(0.1, 0.2)), r"mean=\(0.1, 0.2\) must be .* each of the 3 channels"),
        (dict(std=0.0), "std=0.0 must be one finite number above 0"),
        (dict(std=(0.2, 0.2, -0.2)), "std=.* above 0"),
        (dict(mean=float("nan")), "mean=nan must be one finite number"),
        (
            dict(background=(0, 0, 256)),
            r"background=\(0, 0, 256\) must be three numbers",
        ),
    ],
)
@pytest.mark.parametrize("cls", TASKS)
def test_a_field_out_of_range_is_refused(cls, fields, says):
    with pytest.raises(ValueError, match=f"config.task.{says}"):
        task_of(cls, channels=3, **fields)


def test_opening_looks_at_the_images(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(survey, "_warned", set())
    path = write_folder(tmp_path, {"train/cat/a.png": png(200)})
    task_of(Classify, data=path, num_classes=1, channels=3).source("train")
    assert not caplog.text
    task_of(Classify, data=path, num_classes=1, channels=1).source("train")
    assert "1 are stored in color" in caplog.text
