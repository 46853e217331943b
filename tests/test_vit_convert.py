"""ViT checkpoints give the numbers of the four code bases that wrote them."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.convert import load_pretrained
from attn_jax.convert.vit.resize import (
    resize_grid,
)
from attn_jax.models.vit import sincos2d

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
