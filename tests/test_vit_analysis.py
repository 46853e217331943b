"""Readings of a ViT's attention and filters: golden numbers, closed forms, figures."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_readings import attention

import train
from attn_jax import config as config_lib
from attn_jax.__main__ import main
from attn_jax.analysis import attention_maps, readings
from attn_jax.analysis import vit as vit_analysis
from attn_jax.models.resnet import ResNetStem
from attn_jax.models.vit import ViT, sincos2d
from attn_jax.tasks.classify import Classify

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "vit"

pytestmark = pytest.mark.usefixtures("quick_compilation")


# Distance.


# Entropy.


# Rollout.


# Positions and filters.


# Golden numbers.


# A model's readings and figures.

EVERY = [
    "attention.png",
    "heads.png",
    "rollout.png",
    "distance.png",
    "position.png",
    "filters.png",
    "analysis.npz",
]
TINY = {
    "num_classes": 3,
    "patch_size": 2,
    "width": 8,
    "depth": 2,
    "mlp_width": 8,
    "num_heads": 2,
}
# {name: (fields, image, grid, tokens before the patches)}; all sides differ.
MODELS = {
    "cls": ({}, (6, 10, 3), (3, 5), 1),
    "cls, registers": ({"registers": 2}, (4, 6, 1), (2, 3), 3),
    "gap": ({"pool": "gap"}, (4, 4, 3), (2, 2), 0),
    "gap beside a class token": (
        {"pool": "gap", "class_token": True, "dialect": "big_vision"},
        (4, 6, 3),
        (2, 3),
        1,
    ),
    "map, sincos2d": (
        {"pool": "map", "position": "sincos2d", "registers": 1},
        (8, 9, 1),
        (4, 3),
        1,
    ),
    # The stem halves twice and rounds up: 9 -> 3 and 14 -> 4 features; patch size 1.
    "stem": ({"stem": ResNetStem(width=32)}, (9, 14, 3), (3, 4), 1),
}
MODELS["map, sincos2d"][0]["patch_size"] = (2, 3)
MODELS["stem"][0]["patch_size"] = 1


def model(name: str) -> tuple[ViT, dict, dict]:
    fields, shape, _, _ = MODELS[name]
    module = ViT(**{**TINY, **fields})
    images = jax.random.uniform(jax.random.key(0), (2, *shape), minval=-1)
    return module, jax.jit(module.init)(jax.random.key(1), images), {"images": images}


def test_the_maps_of_a_picture_share_one_scale_with_a_bar(tmp_path, monkeypatch):
    module, variables, inputs = model("gap")
    saved = {}

    def save(fig, path):
        saved[path.name] = fig
        return path

    monkeypatch.setattr(vit_analysis, "save_figure", save)
    batch = {"captions": ["cat, 98 % (true: dog)\na.png", "b.png"]}
    vit_analysis.draw(
        module, variables, inputs, batch=batch, assets={}, folder=tmp_path
    )
    for name in ("attention.png", "heads.png", "rollout.png"):
        maps = [
            shown
            for axes in saved[name].axes
            for shown in axes.images
            if shown.get_cmap().name == "inferno"
        ]
        # To a relative error of float32: the end of the scale is a largest weight.
        most = pytest.approx(maps[0].get_clim()[1], rel=1e-6)
        assert [shown.get_clim() for shown in maps] == [(0, most)] * len(maps)
        assert saved[name].axes[-1].get_ylabel() == "share of a patch (%)"
        assert saved[name].axes[0].get_title() == batch["captions"][0]


@pytest.mark.parametrize("name", MODELS)
def test_every_figure_of_a_vit_is_written_with_its_numbers(name, tmp_path):
    _, shape, grid, prefix = MODELS[name]
    patches = grid[0] * grid[1]
    module, variables, inputs = model(name)
    files = vit_analysis.draw(
        module,
        variables,
        inputs,
        batch={},
        assets={},
        folder=tmp_path / "new" / "folder",
    )
    wanted = [file for file in EVERY if name != "stem" or file != "filters.png"]
    assert [file.name for file in files] == wanted
    for file in files[:-1]:
        pixels = np.asarray(Image.open(file).convert("L"))
        assert pixels.std() > 5, f"{file.name} is an empty page"
    arrays = np.load(files[-1])
    tokens = prefix + patches
    shapes = {
        "images": (2, *shape),
        "grid": (2,),
        "attention_to_patches": (2, 2, 2, *grid),
        "mean_attention_distance": (2, 2),
        "mean_attention_distance_renormalized": (2, 2),
        "mean_attention_distance_per_image": (2, 2, 2),
        "uniform_attention_distance": (),
        "attention_entropy_nats": (2, 2),
        "rollout": (2, 2, tokens, tokens),
        "rollout_map": (2, *grid),
        "posemb_similarity": (patches, patches),
    }
    assert {part: arrays[part].shape for part in shapes} == shapes
    rest = {part for part in arrays if part not in shapes}
    pooled = {"pooling_to_patches"} if name.startswith("map") else set()
    filters = {f"pca_{field}" for field in readings.FilterComponents._fields}
    assert rest == pooled | (filters if name != "stem" else set())


def measured(name: str) -> tuple[ViT, dict, dict, dict]:
    module, variables, inputs = model(name)
    maps = attention_maps(module, variables, **inputs)
    return (
        module,
        variables,
        maps,
        vit_analysis.measure(module, variables, inputs, maps),
    )


def test_behind_a_stem_a_patch_is_as_many_pixels_as_it_covers():
    """9x14 pixels are 3x4 features: 3 and 3.5 pixels from one to the next."""
    _, _, maps, found = measured("stem")
    first = maps["block_0/attention"]
    wanted = readings.mean_attention_distance(first, (3, 4), (3.0, 3.5), prefix=1)
    np.testing.assert_array_equal(
        found["mean_attention_distance_per_image"][:, 0], wanted
    )
    uniform = np.full((1, 1, 13, 13), 1 / 13)
    wanted = readings.mean_attention_distance(uniform, (3, 4), (3.0, 3.5), prefix=1)
    np.testing.assert_allclose(
        found["uniform_attention_distance"], wanted[0, 0], rtol=1e-6
    )


def test_with_a_class_token_pooled_its_rows_are_read():
    _, _, maps, found = measured("cls, registers")
    last = maps["block_1/attention"]
    np.testing.assert_array_equal(
        found["attention_to_patches"][1], last[:, :, 0, 3:].reshape(2, 2, 2, 3)
    )
    np.testing.assert_allclose(
        found["rollout_map"].reshape(2, -1), found["rollout"][-1, :, 0, 3:], rtol=1e-6
    )


def test_a_mean_reads_patches_and_not_a_class_token_beside_them():
    _, _, maps, found = measured("gap beside a class token")
    last = maps["block_1/attention"]
    np.testing.assert_array_equal(
        found["attention_to_patches"][1],
        last[:, :, 1:, 1:].mean(axis=2).reshape(2, 2, 2, 3),
    )
    np.testing.assert_allclose(
        found["rollout_map"].reshape(2, -1),
        found["rollout"][-1, :, 1:, 1:].mean(axis=1),
        rtol=1e-5,
    )


def test_a_probe_reads_by_its_own_attention():
    """It sees the patches alone, so the register before them has no share."""
    _, _, maps, found = measured("map, sincos2d")
    probe = maps["attention_pooling/attention"]
    assert probe.shape == (2, 2, 1, 12)
    np.testing.assert_array_equal(
        found["pooling_to_patches"], probe[:, :, 0].reshape(2, 2, 4, 3)
    )
    assert len(found["rollout"]) == 2, "blocks only"
    shares = probe.mean(axis=(1, 2))
    wanted = np.einsum("bi,bij->bj", shares, found["rollout"][-1, :, 1:, 1:])
    np.testing.assert_allclose(found["rollout_map"].reshape(2, -1), wanted, rtol=1e-5)


def test_positions_are_of_the_patches_learned_or_fixed():
    _, variables, _, found = measured("cls, registers")
    learned = np.asarray(variables["params"]["pos_embedding"])[0]
    np.testing.assert_array_equal(
        found["posemb_similarity"], readings.position_similarity(learned, prefix=3)
    )
    _, _, _, found = measured("map, sincos2d")
    fixed = np.asarray(sincos2d(4, 3, 8))[0]
    np.testing.assert_array_equal(
        found["posemb_similarity"], readings.position_similarity(fixed)
    )


def test_features_of_a_stem_are_no_colours_even_where_they_are_three():
    module = ViT(**TINY, stem=nn.Conv(3, (2, 2), 2))
    images = jnp.ones((1, 4, 8, 3))
    variables = jax.jit(module.init)(jax.random.key(0), images)
    maps = {"block_0/attention": attention(1, 2, 3, 3)}
    found = vit_analysis.measure(module, variables, {"images": images}, maps)
    assert not any(part.startswith("pca") for part in found)


def test_without_positions_there_is_no_table():
    module = ViT(**TINY)
    assert vit_analysis.position_table(module, {}, (2, 3)) is None


def test_readings_of_a_model_are_those_of_the_reference(monkeypatch):
    """The golden attention and parameters, through `measure`: names and axes are right."""
    wanted = np.load(GOLDEN / "analysis" / "token.npz")
    weights = np.load(GOLDEN / "google" / "token_ckpt.npz")
    seen = np.load(GOLDEN / "google" / "token_io.npz")
    module = ViT(**{**TINY, "patch_size": 4, "width": 32, "num_heads": 4, "depth": 3})
    images = jnp.asarray(seen["images"])
    params = dict(jax.jit(module.init)(jax.random.key(0), images)["params"])
    params["embedding"] = {
        leaf: weights[f"embedding/{leaf}"] for leaf in ("kernel", "bias")
    }
    params["pos_embedding"] = weights["Transformer/posembed_input/pos_embedding"]
    maps = {f"block_{i}/attention": m for i, m in enumerate(seen["attention"])}
    found = vit_analysis.measure(module, {"params": params}, {"images": images}, maps)
    for part in wanted:
        tolerance = 1e-3 if part.startswith("pca") else 1e-5
        np.testing.assert_allclose(
            found[part], wanted[part], rtol=0, atol=tolerance, err_msg=part
        )


# Images of one's own.


def trained(recipe: str, folder: pathlib.Path) -> str:
    settings = ["duration=2 steps", "evals={}", "keep_best=null"]
    train.train(config_lib.load(f"{ROOT / recipe}:debug", settings), str(folder))
    return f"--workdir={folder}"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """A ViT for grey images of 16x16 pixels."""
    return trained("configs/vit/digits.py", tmp_path_factory.mktemp("vit") / "run")


@pytest.fixture
def pictures(tmp_path) -> list[pathlib.Path]:
    """Three files, in colour and of other sizes than the model reads, and no image."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = [folder / name for name in ("a.png", "b.JPG", "c.png")]
    for number, file in enumerate(files):
        pixels = rng.integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(file, file.suffix[1:].replace("JPG", "jpeg"))
    (folder / "notes.txt").write_text("no image")
    (folder / ".d.png").write_text("nor this")
    return files


def drawn(folder: pathlib.Path) -> np.ndarray:
    return np.load(folder / "analysis.npz")["images"]


def prepared(file: pathlib.Path) -> np.ndarray:
    """As the run's evaluation would read it."""
    task = Classify(data="", num_classes=10, image_size=16, channels=1)
    row = task.example({"image": file.read_bytes(), "label": 0}, None)
    return (row["images"].astype(np.float32) - 127.5) / 127.5


def test_given_images_are_read_as_in_evaluation_and_no_data_is(
    run, pictures, tmp_path, monkeypatch
):
    def absent(self, split):
        raise AssertionError("the data was opened")

    monkeypatch.setattr(Classify, "source", absent)
    a, b, _ = map(str, pictures)
    main(["analyze", run, f"--out={tmp_path / 'out'}", f"--images={b}", a])
    images = drawn(tmp_path / "out")
    assert images.shape == (2, 16, 16, 1)
    for image, file in zip(images, (b, a), strict=True):
        # The division is the device's: one rounding of numbers up to 1 may differ.
        np.testing.assert_allclose(image, prepared(pathlib.Path(file)), atol=1e-6)


def test_of_a_folder_the_first_images_by_name_are_read(run, pictures, tmp_path):
    folder = str(pictures[0].parent)
    main(["analyze", run, f"--out={tmp_path / 'all'}", "--images", folder])
    assert len(drawn(tmp_path / "all")) == 3
    given = ["--images", folder, "--examples=2"]
    main(["analyze", run, f"--out={tmp_path / 'two'}", *given])
    np.testing.assert_array_equal(drawn(tmp_path / "two"), drawn(tmp_path / "all")[:2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent.png", "absent.png does not exist; give image files or a folder"),
        ("empty", "empty is a folder without an image .*Give a folder that holds some"),
        ("notes.txt", "notes.txt .* cannot be decoded: .* Replace or remove it"),
    ],
)
def test_what_is_no_image_is_named(given, message, run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"{message}"):
        main(["analyze", run, f"--images={tmp_path / given}"])


def test_a_task_without_image_files_refuses_them(pictures, tmp_path):
    bags = trained("configs/hopfield/digit_bags.py", tmp_path / "bags")
    with pytest.raises(
        ValueError, match="task Bags of .* does not read image files.*Leave"
    ):
        main(["analyze", bags, f"--images={pictures[0]}"])


def test_no_example_is_too_few(run):
    with pytest.raises(ValueError, match="--examples=0 must be 1 or more"):
        main(["analyze", run, "--examples=0"])
