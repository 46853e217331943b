"""ViTs written for transformers and timm, and read again."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from test_vit_convert import (
    GOLDEN,
    HF,
    TIMM,
    npz,
    run,
)

from attn_jax.convert import export, load_pretrained
from attn_jax.models.resnet import ResNetStem
from attn_jax.models.vit import ViT

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("name", HF)
def test_a_folder_of_transformers_is_written_as_it_was_read(name, tmp_path):
    module, variables = load_pretrained(GOLDEN / "hf" / name)
    export(module, variables, tmp_path / "out", "hf")
    before = safetensors.numpy.load_file(GOLDEN / "hf" / name / "model.safetensors")
    after = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array)
    old, new = (
        json.loads((folder / "config.json").read_text())
        for folder in (GOLDEN / "hf" / name, tmp_path / "out")
    )
    for key in new.keys() - {"id2label", "label2id"}:
        assert new[key] == old[key], key


@pytest.mark.parametrize("name", TIMM)
def test_a_file_of_timm_is_written_as_it_was_read(name, tmp_path):
    path = GOLDEN / "timm" / f"{name}.safetensors"
    module, variables = load_pretrained(path)
    export(module, variables, tmp_path / "out.safetensors", "timm")
    before = safetensors.numpy.load_file(path)
    after = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array)


@pytest.mark.parametrize(
    ("name", "format"), [("token", "hf"), ("token", "timm"), ("gap", "timm")]
)
def test_an_exported_model_loads_with_the_same_logits(name, format, tmp_path):
    module, variables = load_pretrained(npz("google", name))
    path = tmp_path / ("m.safetensors" if format == "timm" else "m")
    export(module, variables, path, format)
    images = np.load(GOLDEN / "google" / f"{name}_io.npz")["images"]
    expected = run(module, variables, images)[0]["logits"]
    again, loaded = load_pretrained(path)
    # The same arrays and the same operations.
    np.testing.assert_array_equal(run(again, loaded, images)[0]["logits"], expected)


def test_fixed_positions_are_written_out_for_others(tmp_path):
    model = ViT(
        num_classes=3,
        patch_size=4,
        width=8,
        depth=1,
        mlp_width=12,
        num_heads=2,
        position="sincos2d",
        dialect="timm",
    )
    images = jax.random.uniform(jax.random.key(1), (2, 8, 12, 3), minval=-1)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    with pytest.raises(ValueError, match="pass image_size"):
        export(model, variables, tmp_path / "m.safetensors", "timm")
    for format, path in [("timm", "m.safetensors"), ("hf", "m")]:
        export(model, variables, tmp_path / path, format, image_size=(8, 12))
        module, loaded = load_pretrained(tmp_path / path)
        assert module.position == "learned"
        found = run(module, loaded, images)[0]["tokens"]
        expected = run(model, variables, images)[0]["tokens"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_what_the_other_library_lacks_is_refused():
    module, variables = load_pretrained(npz("google", "gap"))
    with pytest.raises(ValueError, match="no place for this model's pool"):
        export(module, variables, "nowhere", "hf")
    stem = module.clone(stem=ResNetStem())
    with pytest.raises(ValueError, match="stem"):
        export(stem, variables, "nowhere.safetensors", "timm")
    with pytest.raises(ValueError, match="must be 'hf' or 'timm'"):
        export(module, variables, "nowhere", "onnx")
    with pytest.raises(ValueError, match=r"nowhere must be FILE.safetensors"):
        export(module, variables, "nowhere", "timm")
    with pytest.raises(ValueError, match="variables have no 'params'"):
        export(module, variables["params"], "nowhere", "hf")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        export(module, variables, __file__, "hf")
