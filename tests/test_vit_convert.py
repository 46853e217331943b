"""ViT checkpoints: the numbers of four code bases, resizing, and files that lie."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from attn_jax.convert import export, load_pretrained
from attn_jax.convert.vit.resize import (
    resize_grid,
    resize_patch_kernel,
    resize_positions,
)
from attn_jax.models.resnet import ResNetStem
from attn_jax.models.vit import ViT, sincos2d

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOLDEN = pathlib.Path(__file__).parent / "golden" / "vit"
GOOGLE = ["token", "token_prelogits", "gap", "hybrid"]
BIG_VISION = [
    "gap_sincos", "map_learn", "tok_learn", "scan", "gap_bf16", "sincos_rect"
]  # fmt: skip
HF = ["classification", "classification_noqkvbias", "model_pooler", "mim"]
TIMM = ["avg_fc_norm", "layerscale_qknorm_prenorm", "map_pool", "reg_no_embed_class"]
TIMM_SHARED = [
    "avg_no_fc_norm", "cls_token", "layerscale", "rect", "reg_embed_class"
]  # fmt: skip

# The golden set's own: each reference differs from float64 by up to 5e-6, the hybrid by
# 1.2e-5; attention by less. The wrong GELU is off by 4e-4.
CLOSE = dict(rtol=0, atol=2e-5)
ATTENTION = dict(rtol=0, atol=1e-5)


def npz(kind: str, name: str) -> pathlib.Path:
    return GOLDEN / kind / f"{name}_ckpt.npz"


def run(module, variables, images, **options):
    """(outputs, {layer: attention}, block outputs, patch embedding) of a compiled call."""
    apply = functools.partial(
        module.apply,
        mutable=["intermediates"],
        capture_intermediates=lambda part, _: part.name == "embedding",
    )
    with jax.default_matmul_precision("highest"):
        outputs, sown = jax.jit(apply)(variables, jnp.asarray(images), **options)
    sown = sown["intermediates"]
    blocks = [sown[f"block_{i}"] for i in range(module.depth)]
    return (
        outputs,
        np.stack([block["attention"]["attention"][0] for block in blocks]),
        np.stack([block["block_output"][0] for block in blocks]),
        sown["embedding"]["__call__"][0],
    )


def channels_last(pixels):
    return pixels.transpose(0, 2, 3, 1)


# --- the originals ----------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOGLE)
def test_vision_transformer_gives_the_same_numbers(name):
    io = np.load(GOLDEN / "google" / f"{name}_io.npz")
    module, variables = load_pretrained(npz("google", name))
    assert module.dialect == "google"
    outputs, attention, blocks, embedding = run(module, variables, io["images"])
    close = dict(rtol=0, atol=5e-5) if name == "hybrid" else CLOSE
    np.testing.assert_allclose(embedding, io["stem"], **close)
    np.testing.assert_allclose(attention, io["attention"], **ATTENTION)
    np.testing.assert_allclose(blocks, io["encoder_blocks"], **close)
    np.testing.assert_allclose(outputs["tokens"], io["encoded"], **close)
    np.testing.assert_allclose(outputs["pooled"], io["pre_logits"], **close)
    np.testing.assert_allclose(outputs["logits"], io["logits"], **close)


@pytest.mark.parametrize("name", BIG_VISION)
def test_big_vision_gives_the_same_numbers(name):
    io = np.load(GOLDEN / "bigvision" / f"{name}_io.npz")
    module, variables = load_pretrained(npz("bigvision", name))
    assert module.dialect == "big_vision"
    outputs, attention, blocks, embedding = run(module, variables, io["images"])
    params = variables["params"]
    rows, columns = embedding.shape[1:3]
    positions = params.get("pos_embedding", sincos2d(rows, columns, module.width))
    patches = embedding.reshape(len(embedding), rows * columns, -1)
    np.testing.assert_allclose(patches + positions, io["with_posemb"], **CLOSE)
    if "attention" in io:
        np.testing.assert_allclose(attention, io["attention"], **ATTENTION)
    np.testing.assert_allclose(blocks, io["encoder_blocks"], **CLOSE)
    np.testing.assert_allclose(outputs["tokens"], io["encoded"], **CLOSE)
    np.testing.assert_allclose(outputs["pooled"], io["pre_logits"], **CLOSE)
    np.testing.assert_allclose(outputs["logits"], io["logits"], **CLOSE)
    # The head on every patch, as big_vision also gives it.
    grid = np.asarray(outputs["tokens"][:, module.prefix :])
    grid = grid.reshape(len(grid), rows, columns, -1)
    if "pre_logits" in params:
        grid = np.tanh(
            grid @ params["pre_logits"]["kernel"] + params["pre_logits"]["bias"]
        )
    np.testing.assert_allclose(grid, io["pre_logits_2d"], **CLOSE)
    grid = grid @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(grid, io["logits_2d"], **CLOSE)


@pytest.mark.parametrize("name", ["map_learn", "sincos_rect"])
def test_the_pooling_probe_attends_as_in_big_vision(name):
    io = np.load(GOLDEN / "bigvision" / f"{name}_io.npz")
    module, variables = load_pretrained(npz("bigvision", name))
    _, sown = jax.jit(functools.partial(module.apply, mutable=["intermediates"]))(
        variables, io["images"]
    )
    pooling = sown["intermediates"]["attention_pooling"]["attention"]["attention"][0]
    np.testing.assert_allclose(pooling, io["map_attention"], **ATTENTION)


@pytest.mark.parametrize("name", HF)
def test_transformers_gives_the_same_numbers(name):
    io = np.load(GOLDEN / "hf" / name / "io.npz")
    module, variables = load_pretrained(GOLDEN / "hf" / name)
    images = channels_last(io["pixel_values"])
    masked = {}
    if "bool_masked_pos" in io:
        masked = {"patch_mask": jnp.asarray(io["bool_masked_pos"])}
    outputs, attention, blocks, _ = run(module, variables, images, **masked)
    np.testing.assert_allclose(attention, io["attentions"], **ATTENTION)
    np.testing.assert_allclose(blocks, io["hidden_states"][1:], **CLOSE)
    np.testing.assert_allclose(outputs["tokens"], io["last_hidden_state"], **CLOSE)
    if "logits" in io:
        np.testing.assert_allclose(outputs["logits"], io["logits"], **CLOSE)
    if "pooler_output" in io:
        np.testing.assert_allclose(outputs["pooled"], io["pooler_output"], **CLOSE)


def test_masked_image_modelling_gives_the_pixels_of_transformers():
    io = np.load(GOLDEN / "hf" / "mim" / "io.npz")
    module, variables = load_pretrained(GOLDEN / "hf" / "mim")
    images = channels_last(io["pixel_values"])
    mask = io["bool_masked_pos"]
    for name, masked in [
        ("reconstruction", {"patch_mask": jnp.asarray(mask)}),
        ("reconstruction_unmasked", {}),
    ]:
        patches = run(module, variables, images, **masked)[0]["patch_logits"]
        # Pixel shuffle: the channels of a patch are [c, row, column].
        pixels = np.asarray(patches).reshape(len(images), 4, 4, 3, 4, 4)
        pixels = pixels.transpose(0, 3, 1, 4, 2, 5).reshape(io[name].shape)
        np.testing.assert_allclose(pixels, io[name], **CLOSE)
        if masked:
            error = np.abs(pixels - io["pixel_values"])
            where = mask.reshape(-1, 4, 4).repeat(4, 1).repeat(4, 2)[:, None]
            loss = (error * where).sum() / (where.sum() + 1e-5) / 3
            np.testing.assert_allclose(loss, io["loss"], rtol=1e-5)


@pytest.mark.parametrize("name", TIMM + TIMM_SHARED)
def test_timm_gives_the_same_numbers(name, request):
    folder = GOLDEN / "timm"
    if name in TIMM_SHARED:  # not every clone needs all of them
        folder = request.getfixturevalue("shared") / "golden" / "vit" / "timm"
    io = np.load(folder / f"{name}_io.npz")
    module, variables = load_pretrained(folder / f"{name}.safetensors")
    images = channels_last(io["pixel_values"])
    outputs, attention, blocks, _ = run(module, variables, images)
    np.testing.assert_allclose(attention, io["attention"], **ATTENTION)
    np.testing.assert_allclose(blocks, io["blocks"], **CLOSE)
    np.testing.assert_allclose(outputs["tokens"], io["features"], **CLOSE)
    np.testing.assert_allclose(outputs["pooled"], io["pre_logits"], **CLOSE)
    np.testing.assert_allclose(outputs["logits"], io["logits"], **CLOSE)


def test_one_file_read_in_another_dialect_has_that_ones_gelu():
    expected = np.load(GOLDEN / "timm" / "from_google_token_io.npz")
    images = np.load(GOLDEN / "google" / "token_io.npz")["images"]
    for dialect, name in [("timm", "logits_erf"), ("google", "logits_tanh")]:
        module, variables = load_pretrained(npz("google", "token"), dialect=dialect)
        logits = run(module, variables, images)[0]["logits"]
        np.testing.assert_allclose(logits, expected[name], **CLOSE)
    assert np.abs(expected["logits_erf"] - expected["logits_tanh"]).max() > 2e-4


def test_the_class_tokens_position_is_folded_into_it_as_big_vision_does():
    expected = np.load(GOLDEN / "bigvision" / "from_google_token.npz")
    module, variables = load_pretrained(npz("google", "token"), dialect="big_vision")
    for name in ("cls", "pos_embedding"):
        np.testing.assert_array_equal(variables["params"][name], expected[name])
    images = np.load(GOLDEN / "google" / "token_io.npz")["images"]
    logits = run(module, variables, images)[0]["logits"]
    np.testing.assert_allclose(logits, expected["logits"], **CLOSE)


# --- layouts of the same file -----------------------------------------------------------


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


def on_the_hub(folder, architecture, width=192, depth=1, **changes):
    """Writes a folder as timm puts it on the Hub."""
    model = ViT(
        num_classes=3,
        patch_size=8,
        width=width,
        depth=depth,
        mlp_width=24,
        num_heads=3 if width == 192 else 1,
        dialect="timm",
        **changes,
    )
    images = jnp.zeros((1, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    export(model, variables, folder / "model.safetensors", "timm")
    (folder / "model.json").unlink()
    config = {
        "architecture": architecture,
        "num_classes": 3,
        "global_pool": "token",
        "pretrained_cfg": {"input_size": [3, 16, 16]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return variables


def test_the_hubs_config_of_timm_is_read(tmp_path):
    """Heads follow from the name and the width there."""
    variables = on_the_hub(tmp_path, "vit_tiny_patch8_16.augreg_in1k")
    module, loaded = load_pretrained(tmp_path)
    assert module.num_heads == 3
    assert module.rules[:2] == ("erf", 1e-6)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])


@pytest.mark.parametrize(
    ("architecture", "width", "heads", "gelu", "epsilon"),
    [
        ("vit_base_patch16_clip_224.openai_ft_in1k", 768, 12, "erf", 1e-5),
        ("vit_huge_patch14_clip_quickgelu_378", 1280, 16, "quick", 1e-5),
        ("vit_so400m_patch14_siglip_384", 1152, 16, "erf", 1e-6),
        ("vit_so400m_patch16_siglip_gap_256", 1152, 16, "tanh", 1e-6),
        ("vit_large_patch16_siglip_384", 1024, 16, "erf", 1e-6),
        ("vit_large_patch16_siglip_512", 1024, 16, "tanh", 1e-6),
        ("vit_base_patch16_gap_224", 768, 16, "erf", 1e-6),
        ("deit3_base_patch16_224", 768, 12, "erf", 1e-6),
    ],
)
def test_what_an_architecture_of_timm_hides(
    architecture, width, heads, gelu, epsilon, tmp_path
):
    """As timm's constructors have it; none of this shows in the arrays."""
    on_the_hub(tmp_path, architecture, width=width)
    module, _ = load_pretrained(tmp_path)
    assert (module.num_heads, *module.rules[:2]) == (heads, gelu, epsilon)


def test_an_architecture_that_only_timm_knows_is_asked_for(tmp_path):
    on_the_hub(tmp_path, "vit_base_patch16_rpn_224")
    with pytest.raises(ValueError, match="pass num_heads, gelu, norm_epsilon"):
        load_pretrained(tmp_path)
    module, _ = load_pretrained(tmp_path, num_heads=6, gelu="quick", norm_epsilon=1e-3)
    assert (module.num_heads, *module.rules[:2]) == (6, "quick", 1e-3)


def test_a_pooler_of_transformers_without_tanh_is_refused(tmp_path):
    for file in (GOLDEN / "hf" / "model_pooler").iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"pooler_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="pooler_act='gelu'"):
        load_pretrained(tmp_path)
    module, _ = load_pretrained(tmp_path, representation_size=None)
    assert module.representation_size is None


@pytest.mark.parametrize(
    "argument", [{"pool_include_prefix": True}, {"norm_layer": "rmsnorm"}]
)
def test_arguments_of_timm_that_leave_no_trace_are_refused(argument, tmp_path):
    stored = json.loads((GOLDEN / "timm" / "avg_fc_norm.json").read_text())
    shutil.copy(GOLDEN / "timm" / "avg_fc_norm.safetensors", tmp_path)
    (tmp_path / "avg_fc_norm.json").write_text(json.dumps(stored | argument))
    with pytest.raises(ValueError, match=next(iter(argument))):
        load_pretrained(tmp_path / "avg_fc_norm.safetensors")


def test_an_epsilon_that_timm_cannot_be_told_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="norm_epsilon=1e-05 is not timm's"):
        on_the_hub(tmp_path, "vit_tiny_patch8_16", norm_epsilon=1e-5)


# --- resizing ---------------------------------------------------------------------------


def grids(key: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """`..._AxBtoCxD_...`, or `..._AtoB_...` of squares."""
    part = next(p for p in key.split("_") if "to" in p)
    old, new = (
        tuple(map(int, side.split("x") if "x" in side else [side, side]))
        for side in part.split("to")
    )
    return old, new


def pairs_of(file: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    data = np.load(GOLDEN / "resize" / f"{file}.npz")
    keys = [key[:-3] for key in data if key.endswith("_in")]
    return [(key, data[f"{key}_in"], data[f"{key}_out"]) for key in keys]


# Float32 here, float64 or float32 there: 5e-6 is the golden set's own for positions, 1e-5
# for filters, which pass through a pseudo-inverse.
@pytest.mark.parametrize(
    ("key", "old", "new"), pairs_of("posemb_google") + pairs_of("posemb_hf")
)
def test_positions_are_resized_as_in_the_original(key, old, new):
    before, after = grids(key)
    if key.startswith("zoom"):
        found = resize_grid(old, after, "corners")
    else:
        found = resize_positions(old, before, after, key.split("_")[0])
    np.testing.assert_allclose(found, new, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("key", "old", "new"), pairs_of("posemb_timm"))
def test_positions_are_resized_as_in_timm(key, old, new):
    before, after = grids(key)
    _, _, prefix, method, antialias = key.split("_")
    kept = int(prefix.removeprefix("prefix"))
    antialias = antialias == "aa1"
    grid = old[0, kept:].reshape(*before, -1)
    found = resize_grid(grid, after, method, antialias=antialias)
    found = found.reshape(-1, found.shape[-1])
    np.testing.assert_allclose(found, new[0, kept:], rtol=0, atol=5e-6)
    if method == "bicubic" and antialias:
        whole = resize_positions(old, before, after, "timm")
        np.testing.assert_allclose(whole, new, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("key", "old", "new"),
    pairs_of("patch_kernel_bigvision") + pairs_of("patch_kernel_timm"),
)
def test_patch_filters_are_resized_as_in_the_original(key, old, new):
    options = {}
    if key.startswith("timm"):
        old, new = (array.transpose(2, 3, 1, 0) for array in (old, new))
        method, antialias = key.split("_")[2:]
        options = {"method": method, "antialias": antialias == "aa1"}
    found = resize_patch_kernel(old, grids(key)[1], **options)
    np.testing.assert_allclose(found, new, rtol=0, atol=1e-5)


def test_a_larger_image_gives_the_interpolated_logits_of_transformers():
    for name in ("classification", "classification_noqkvbias"):
        io = np.load(GOLDEN / "hf" / name / "io.npz")
        module, variables = load_pretrained(GOLDEN / "hf" / name, image_size=28)
        images = channels_last(io["pixel_values_big"])
        logits = run(module, variables, images)[0]["logits"]
        np.testing.assert_allclose(logits, io["logits_big_interpolated"], **CLOSE)


def test_patches_of_another_size_see_an_enlarged_image_alike():
    """FlexiViT's promise: an image twice as large, in patches twice as large."""
    path = npz("bigvision", "map_learn")
    small, variables = load_pretrained(path)
    large, grown = load_pretrained(path, patch_size=8, image_size=32)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    doubled = np.zeros((1, 32, 32, 3), np.float32)
    for row in range(4):  # bilinear inside each patch, as the filters are resized
        for column in range(4):
            patch = image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            doubled[0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = (
                resize_grid(patch, (8, 8), "bilinear")
            )
    expected = run(small, variables, image)[0]["logits"]
    found = run(large, grown, doubled)[0]["logits"]
    # The pseudo-inverse of the filters costs a digit.
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)
    same, filters = load_pretrained(path, patch_size=8)  # images as before: a 2x2 grid
    assert filters["params"]["pos_embedding"].shape == (1, 4, 32)
    assert run(same, filters, image)[0]["logits"].shape == (1, 7)


# --- there and back ---------------------------------------------------------------------


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


# --- files that lie ---------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="image_size is for a ViT"):
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
        ({"patch_size": 0}, "patch_size=0 must be at least 1"),
        ({"patch_size": "8"}, "patch_size='8' must be of type"),
        ({"num_classes": "0"}, "num_classes='0' must be of type int"),
        ({"image_size": 0}, "image_size=0 must be at least 1"),
        ({"image_size": (16, -16)}, "must be at least 1"),
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
    (hf / "model.safetensors.index.json").touch()
    with pytest.raises(ValueError, match="arrays in several files"):
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
