"""The grid of a ViT's positions comes from the size of the images, not from their number."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import paths
from attn_jax.convert import export, load_parameters, load_pretrained, runs
from attn_jax.convert.vit.resize import resize_positions
from attn_jax.models.vit import ViT

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOLDEN = pathlib.Path(__file__).parent / "golden" / "vit"


def make(size, **changes):
    """A model for images of `size`, and its variables."""
    fields = dict(
        num_classes=3, patch_size=4, width=8, depth=1, mlp_width=12, num_heads=2
    )
    model = ViT(**{**fields, **changes})
    images = jnp.zeros((1, *size, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images)


def shapes_of(variables):
    leaves = paths.named_leaves(variables["params"])
    return {name: leaf.shape for name, leaf in leaves.items()}


def resized(variables, old, new, rule):
    return resize_positions(
        np.asarray(variables["params"]["pos_embedding"]), old, new, rule
    )


class Task:
    image_size = (8, 32)


@pytest.fixture
def wide_run(tmp_path, monkeypatch):
    """(path, variables) of a run on [8, 32] pixels: a grid of 2 x 8, as many as 4 x 4."""
    model, variables = make((8, 32), dialect="hf")
    (tmp_path / "checkpoints").mkdir()
    config = {"model": {"cls": "attn_jax.models.vit:ViT"}, "task": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    restored = model, variables, Task()
    monkeypatch.setattr(runs, "restore", lambda path, trust=(): restored)
    return tmp_path, variables


def test_positions_of_a_run_on_wide_images_are_resized_as_a_wide_grid(wide_run):
    path, variables = wide_run
    _, found = load_pretrained(path, image_size=(16, 64))
    expected = resized(variables, (2, 8), (4, 16), "hf")
    np.testing.assert_array_equal(found["params"]["pos_embedding"], expected)


@pytest.mark.parametrize("size", [(16, 16), (16, 64), (8, 32)])
def test_parameters_for_another_model_fit_the_size_of_its_images(wide_run, size):
    """16 x 16 pixels have as many patches as 8 x 32, and other positions."""
    path, variables = wide_run
    shapes = shapes_of(make(size)[1])
    _, leaves = load_parameters(path, shapes, "head/.*", image_size=size)
    grid = size[0] // 4, size[1] // 4
    expected = resized(variables, (2, 8), grid, "hf")
    np.testing.assert_array_equal(leaves["pos_embedding"], expected)


def test_a_model_that_sees_other_images_than_the_batch_holds_is_refused(wide_run):
    shapes = shapes_of(make((16, 16))[1])
    with pytest.raises(ValueError, match="17 tokens, which do not fit images of 12x12"):
        load_parameters(wide_run[0], shapes, image_size=(12, 12))


@pytest.mark.parametrize("format", ["hf", "timm"])
def test_a_wide_model_is_exported_as_one(wide_run, tmp_path, format):
    model, variables = load_pretrained(wide_run[0])
    model = model.clone(norm_epsilon=1e-6)
    path = tmp_path / ("m.safetensors" if format == "timm" else "m")
    export(model, variables, path, format, image_size=(8, 32))
    _, again = load_pretrained(path, image_size=(16, 64))
    expected = resized(variables, (2, 8), (4, 16), format)
    np.testing.assert_array_equal(again["params"]["pos_embedding"], expected)


def test_an_export_that_assumes_square_images_says_so(tmp_path, caplog):
    model, variables = make((16, 16))
    with caplog.at_level("WARNING", logger="absl"):
        export(model, variables, tmp_path, "hf")
    assert "images of 16x16 pixels; pass image_size" in caplog.text


def test_the_size_that_an_npz_was_trained_on_can_be_passed():
    path = GOLDEN / "google" / "token_ckpt.npz"
    _, variables = load_pretrained(path)
    grid = 2, 8
    _, found = load_pretrained(path, trained_size=(8, 32), image_size=(16, 64))
    expected = resized(variables, grid, (4, 16), "google")
    np.testing.assert_array_equal(found["params"]["pos_embedding"], expected)
    with pytest.raises(ValueError, match="16 patches, but images of 8x16 have 2x4"):
        load_pretrained(path, trained_size=(8, 16))
    with pytest.raises(ValueError, match="leave out trained_size"):
        load_pretrained(GOLDEN / "hf" / "mim", trained_size=(8, 16))
