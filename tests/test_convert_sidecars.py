"""What a checkpoint tells beside its parameters: statistics of pixels, names of classes."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from attn_jax.convert import (
    explain_statistics,
    export,
    label_names,
    load_pretrained,
    pixel_statistics,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOLDEN = pathlib.Path(__file__).parent / "golden"
HF = GOLDEN / "vit" / "hf" / "classification"
TIMM = GOLDEN / "vit" / "timm" / "map_pool.safetensors"
NPZ = GOLDEN / "vit" / "google" / "token_ckpt.npz"
BERT = GOLDEN / "bert" / "hf" / "pretraining"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ("ant", "bee", "cat", "dog", "eel")


def folder_with(folder, processor=None, **config):
    """A folder of transformers with a changed config.json and an image processor."""
    shutil.copy(HF / "model.safetensors", folder)
    whole = json.loads((HF / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(whole))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def run_with(folder, **images):
    (folder / "checkpoints").mkdir()
    config = {"model": {"cls": "attn_jax.models.vit:ViT"}, "task": {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "assets").mkdir()
    (folder / "assets" / "images.json").write_text(json.dumps(images))
    return folder


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_mean": IMAGENET[0], "image_std": IMAGENET[1]}, *IMAGENET),
        ({"image_mean": 0.5, "image_std": 0.5}, (0.5,), (0.5,)),
        ({"do_normalize": False}, (0,), (1,)),
        # Twice the usual factor: images come to 0..2.
        ({"do_normalize": False, "rescale_factor": 2 / 255}, (0,), (0.5,)),
        # Statistics of 0..255.
        ({"do_rescale": False, "image_mean": [127.5], "image_std": 51}, (0.5,), (0.2,)),
    ],
)
def test_an_image_processor_is_read_step_by_step(tmp_path, processor, mean, std):
    found = pixel_statistics(folder_with(tmp_path, processor))
    np.testing.assert_allclose(found[0], mean, rtol=1e-6)
    np.testing.assert_allclose(found[1], std, rtol=1e-6)
    # What it says of a pixel is what its own steps make of it.
    pixel, scale = 200, processor.get("rescale_factor", 1 / 255)
    value = pixel * (scale if processor.get("do_rescale", True) else 1)
    if processor.get("do_normalize", True):
        value = (value - np.ravel(processor["image_mean"])) / processor["image_std"]
    found_mean, found_std = map(np.asarray, found)
    np.testing.assert_allclose((pixel / 255 - found_mean) / found_std, value, rtol=1e-5)


def test_statistics_are_those_of_each_format(tmp_path):
    assert pixel_statistics(NPZ) == ((0.5,), (0.5,))
    assert pixel_statistics(HF) is None  # there is no image processor
    assert pixel_statistics(TIMM) is None
    assert pixel_statistics(BERT) is None


@pytest.mark.parametrize(
    ("images", "mean", "std"),
    [
        ({"value_range": [-1, 1]}, (0.5,), (0.5,)),
        ({"value_range": [0, 1]}, (0,), (1,)),
        ({"value_range": [-2.2, 2.6], "mean": IMAGENET[0], "std": 0.25}, IMAGENET[0],
         (0.25,)),
    ],
)  # fmt: skip
def test_statistics_of_a_run_are_those_of_its_assets(tmp_path, images, mean, std):
    found = pixel_statistics(run_with(tmp_path, **images))
    np.testing.assert_allclose(found[0], mean)
    np.testing.assert_allclose(found[1], std)


def test_the_names_of_a_run_are_those_of_its_assets(tmp_path):
    assert label_names(run_with(tmp_path, labels=list(NAMES))) == NAMES


def test_names_are_in_the_order_of_the_head(tmp_path):
    ids = {str(i): name for i, name in reversed(list(enumerate(NAMES)))}
    assert label_names(folder_with(tmp_path, id2label=ids)) == NAMES


def test_placeholders_are_no_names():
    assert label_names(HF) is None
    assert label_names(TIMM) is None
    assert label_names(NPZ) is None


@pytest.mark.parametrize("kind", ["hf", "timm"])
def test_an_export_tells_names_and_statistics(tmp_path, kind):
    module, variables = load_pretrained(HF if kind == "hf" else TIMM)
    path = tmp_path / ("m.safetensors" if kind == "timm" else "m")
    names = NAMES[: module.num_classes]
    known = {"labels": names, "mean": IMAGENET[0], "std": 0.25, "image_size": 16}
    export(module, variables, path, kind, **known)
    assert label_names(path) == names
    assert pixel_statistics(path) == (IMAGENET[0], (0.25, 0.25, 0.25))
    again, _ = load_pretrained(path)
    assert again == module


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"labels": NAMES[:3]}, "3 different labels, but the head has 5"),
        ({"labels": ["a"] * 5}, "1 different labels"),
        ({"mean": 0.5}, "pass both or none"),
        ({"mean": 0.5, "std": 0.0}, "std=0.0 must be above 0"),
        ({"mean": [0.5, 0.5], "std": 0.5}, "2 numbers, but the images have 3 channels"),
    ],
)
def test_an_export_that_would_name_wrongly_is_refused(tmp_path, known, message):
    module, variables = load_pretrained(HF)
    with pytest.raises(ValueError, match=message):
        export(module, variables, tmp_path, "hf", image_size=16, **known)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_mean", "0.5"),
        ("image_mean", [1e400]),
        ("image_mean", []),
        ("image_std", [0.5, None, 0.5]),
        ("image_std", [0.0]),
        ("image_std", [0.5, 0.5]),
        ("rescale_factor", 0),
        ("do_normalize", "yes"),
    ],
)
def test_statistics_that_cannot_be_are_refused(tmp_path, key, value):
    processor = {"image_mean": IMAGENET[0], "image_std": IMAGENET[1]} | {key: value}
    with pytest.raises(ValueError, match="preprocessor_config.json: "):
        pixel_statistics(folder_with(tmp_path, processor))


@pytest.mark.parametrize("ids", [{"0": "a", "2": "b"}, {"0": 1}, [], {"0": None}])
def test_names_that_cannot_be_are_refused(tmp_path, ids):
    path = folder_with(tmp_path, id2label=ids)
    with pytest.raises(ValueError, match="config.json: id2label"):
        label_names(path)


def test_other_statistics_name_the_settings_to_paste():
    assert explain_statistics(None, 0.5, 0.5) is None
    assert explain_statistics(((0.5,), (0.5,)), 0.5, (0.5, 0.5, 0.5)) is None
    assert explain_statistics(IMAGENET, *IMAGENET) is None
    told = explain_statistics(IMAGENET, 0.5, 0.5)
    assert told.endswith(
        "set --config.task.mean='[0.485,0.456,0.406]' "
        "--config.task.std='[0.229,0.224,0.225]'"
    )
    assert "--config.task.mean=0.5 " in explain_statistics(((0.5,), (0.5,)), *IMAGENET)
