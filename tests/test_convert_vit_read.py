"""ViT checkpoints: layouts of the same file, and files that lie."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from test_vit_convert import (
    GOLDEN,
    npz,
    run,
)

from attn_jax.convert import load_pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_half_precision_and_old_names_load_as_today(tmp_path):
    """Two-byte voids, a pooling head without a scope, one model of several."""
    arrays = dict(np.load(npz("bigvision", "map_learn")))
    old = {
        "params/img/" + name.removeprefix("MAPHead_0/"): array
        for name, array in arrays.items()
    }
    old["params/txt/Embed_0/embedding"] = np.zeros((3, 2), np.float32)
    old["params/t"] = np.zeros(1, np.float32)
    np.savez(tmp_path / "two.npz", **old)
    _, expected = load_pretrained(npz("bigvision", "map_learn"))
    for path in ("two.npz:img", "two.npz"):  # where only one is a ViT it is found
        _, variables = load_pretrained(tmp_path / path)
        jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_all_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", a=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="no whole .npz file"):
        load_pretrained(tmp_path / "evil.npz")


def test_a_classifier_does_not_read_the_pooler_that_lies_beside_it(tmp_path):
    source = GOLDEN / "hf" / "classification"
    arrays = safetensors.numpy.load_file(source / "model.safetensors")
    arrays["vit.pooler.dense.weight"] = np.ones((32, 32), np.float32)
    arrays["vit.pooler.dense.bias"] = np.ones(32, np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    module, variables = load_pretrained(tmp_path)
    assert module.representation_size is None
    _, expected = load_pretrained(source)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_a_pooler_of_transformers_without_tanh_is_refused(tmp_path):
    for file in (GOLDEN / "hf" / "model_pooler").iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"pooler_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="pooler_act='gelu'"):
        load_pretrained(tmp_path)
    module, _ = load_pretrained(tmp_path, representation_size=None)
    assert module.representation_size is None


def copied(tmp_path, change):
    arrays = dict(np.load(npz("google", "token")))
    change(arrays)
    np.savez(tmp_path / "changed.npz", **arrays)
    return tmp_path / "changed.npz"


def test_all_differences_stand_in_one_table(tmp_path):
    def change(arrays):
        del arrays["head/kernel"], arrays["Transformer/encoder_norm/scale"]
        arrays["surplus/kernel"] = np.zeros((2, 3), np.float32)
        block = "Transformer/encoderblock_1/LayerNorm_0/bias"
        arrays[block] = np.zeros(3, np.float32)
        arrays["embedding/bias"] = arrays["embedding/bias"].astype(np.int32)

    path = copied(tmp_path, change)
    with pytest.raises(ValueError) as error:
        load_pretrained(path)
    message = str(error.value)
    for row in [
        r"head/kernel",
        r"Transformer/encoder_norm/scale",
        r"surplus/kernel",
        r"Transformer/encoderblock_1/LayerNorm_0/bias",
        r"int32",
    ]:
        assert row in message
    assert "in the file" in message and "no such parameter" in message


@pytest.mark.parametrize("name", ["head/bias", "head/kernel"])
def test_half_a_head_is_no_model_without_one(tmp_path, name):
    path = copied(tmp_path, lambda arrays: arrays.pop(name))
    with pytest.raises(ValueError, match="differ in 1 arrays"):
        load_pretrained(path)


def test_another_number_of_classes_says_how_to_start_a_head():
    with pytest.raises(ValueError, match=r"head of 7 classes, but num_classes=10.*"):
        load_pretrained(npz("google", "token"), num_classes=10)
    module, variables = load_pretrained(npz("google", "token"), num_classes=0)
    assert "head" not in variables["params"]
    images = np.load(GOLDEN / "google" / "token_io.npz")["images"]
    assert "logits" not in run(module, variables, images)[0]


def test_what_precedes_the_head_can_be_left_behind():
    path = npz("google", "token_prelogits")
    module, variables = load_pretrained(path, representation_size=None, num_classes=0)
    assert module.representation_size is None
    assert "pre_logits" not in variables["params"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_cut_short_is_named(tmp_path, share):
    for path in (npz("google", "token"), GOLDEN / "timm" / "map_pool.safetensors"):
        whole = path.read_bytes()
        cut = tmp_path / path.name
        cut.write_bytes(whole[: int(len(whole) * share)])
        if path.suffix == ".safetensors":
            shutil.copy(path.with_suffix(".json"), tmp_path)
        with pytest.raises(ValueError, match="Fetch it again"):
            load_pretrained(cut)


def test_a_checkpoint_of_another_family_is_named(tmp_path):
    np.savez(tmp_path / "other.npz", **{"bert/embeddings": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="another family"):
        load_pretrained(tmp_path / "other.npz")
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"conv1.weight": np.zeros((2, 2))}, path)
    with pytest.raises(ValueError, match="needs other.json or config.json"):
        load_pretrained(path)
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(ValueError, match="no checkpoint of timm's"):
        load_pretrained(path)
    with pytest.raises(ValueError, match="image_size is only for a ViT"):
        load_pretrained(GOLDEN.parent / "bert" / "hf" / "pretraining", image_size=3)


@pytest.mark.parametrize(
    "path",
    [
        npz("google", "token"),
        GOLDEN / "hf" / "mim",
        GOLDEN / "timm" / "map_pool.safetensors",
        GOLDEN.parent / "bert" / "hf" / "pretraining",
    ],
)
def test_a_field_that_the_module_lacks_is_named(path):
    with pytest.raises(
        ValueError, match=r"dtyp: nothing reads this key; did you mean 'dtype'"
    ):
        load_pretrained(path, dtyp="bfloat16")


def test_an_image_that_the_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="30x30 does not divide into patches"):
        load_pretrained(npz("google", "token"), image_size=30)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dialect": "goggle"}, "dialect='goggle' must be of type Literal"),
        ({"pool": "mean"}, "pool='mean' must be of type"),
        ({"dtype": "foo"}, "dtype='foo': .*'bfloat16'"),
        ({"patch_size": 0}, "patch_size=0 must be from 1 to"),
        ({"patch_size": "8"}, "patch_size='8' must be of type"),
        ({"num_classes": "0"}, "num_classes='0' must be of type int"),
        ({"image_size": 0}, "image_size=0 must be from 1 to"),
        ({"image_size": (16, -16)}, "image_size=.* must be from 1 to"),
    ],
    ids=str,
)
def test_a_field_of_another_type_or_out_of_bounds_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(npz("google", "token"), **fields)


def a_copy(source, folder):
    folder.mkdir()
    for file in source.iterdir():
        shutil.copy(file, folder)
    return folder


def test_a_folder_whose_files_are_not_what_they_should_be_is_named(tmp_path):
    bert = GOLDEN.parent / "bert" / "hf" / "pretraining"
    hf = a_copy(GOLDEN / "hf" / "classification", tmp_path / "hf")
    whole = json.loads((hf / "config.json").read_text())

    def refused(message, text=None, **config):
        text = json.dumps(config) if text is None else text
        (hf / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_pretrained(hf)

    refused("config.json is no JSON", text="")
    refused("holds no JSON object", text="[]")
    refused("config.json lacks 'hidden_size'", model_type="vit", patch_size=4)
    refused("is no size in pixels", **{**whole, "image_size": "16"})
    refused("has no checkpoints/ yet", **{"task": {}, "model": {}})
    (hf / "config.json").write_text(json.dumps(whole))
    shutil.copy(bert / "model.safetensors", hf)
    with pytest.raises(ValueError, match="projection.weight +missing"):
        load_pretrained(hf)
    (hf / "model.safetensors").unlink()
    (hf / "model.safetensors.index.json").touch()
    with pytest.raises(ValueError, match="index.json is no JSON"):
        load_pretrained(hf)


def test_the_file_of_a_folder_is_read_as_the_folder():
    module, _ = load_pretrained(GOLDEN / "hf" / "mim" / "model.safetensors")
    assert module.dialect == "hf" and module.mask_token


def test_quantised_parameters_are_no_parameters(tmp_path):
    for name in (GOLDEN / "hf" / "mim", GOLDEN.parent / "bert" / "hf" / "pretraining"):
        folder = a_copy(name, tmp_path / name.name)
        path = folder / "model.safetensors"
        arrays = safetensors.numpy.load_file(path)
        quantised = {k: (100 * v).astype(np.int8) for k, v in arrays.items()}
        safetensors.numpy.save_file(quantised, path)
        with pytest.raises(ValueError, match=r"full precision first"):
            load_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("Transformer/posembed_input/pos_embedding", "lacks .*pos_embedding"),
        (
            "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel",
            "lacks Transformer/encoderblock_0/.*query/kernel",
        ),
        ("embedding/kernel", "another family"),
    ],
)
def test_a_file_without_one_of_its_first_arrays_is_named(key, message, tmp_path):
    path = copied(tmp_path, lambda arrays: arrays.pop(key))
    with pytest.raises(ValueError, match=message):
        load_pretrained(path)


def test_text_under_the_name_of_an_archive_is_named(tmp_path):
    (tmp_path / "page.npz").write_text("<html>404</html>")
    with pytest.raises(ValueError, match="page.npz is no whole .npz file. Fetch"):
        load_pretrained(tmp_path / "page.npz")
