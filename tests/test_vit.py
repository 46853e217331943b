"""The Vision Transformer: the original code's numbers, counts, and what must not matter."""

import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import perturb

from attn_jax import optim, paths
from attn_jax.models.resnet import ResNetStem
from attn_jax.models.vit import PatchEmbedding, ViT, sincos2d
from configs.vit import _sizes

GOLDEN = pathlib.Path(__file__).parent / "golden" / "vit"
KEY = jax.eval_shape(lambda: jax.random.key(0))
COUNTS = json.loads((GOLDEN / "param_counts.json").read_text())
# {stem and patch in image pixels: bottlenecks of each stage}
HYBRIDS = {
    "R/16": (),
    "R26/32": (2, 2, 2, 2),
    "R50/16": (3, 4, 9),
    "R50/32": (3, 4, 6, 3),
}
POOLS = {"tok": "cls", "gap": "gap", "map": "map"}

pytestmark = pytest.mark.usefixtures("quick_compilation")


def tiny(**changes) -> ViT:
    fields = dict(
        num_classes=5, patch_size=2, width=12, depth=3, mlp_width=20, num_heads=3
    )
    return ViT(**{**fields, **changes})


def images(batch: int = 2, height: int = 8, width: int = 6) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (batch, height, width, 3), minval=-1)


def initialised(model: ViT, x: jax.Array):
    return perturb(jax.jit(model.init)(jax.random.key(0), x), scale=0.1)


def run(model: ViT, variables, x: jax.Array, **options):
    """One compiled call: op by op, a test would take half a minute."""
    return jax.jit(functools.partial(model.apply, **options))(variables, x)


def size_of_row(row: str) -> tuple[int, ViT, int] | None:
    """(count, model, resolution) of a row of the table; None where it is not a ViT's."""
    family, *parts = row.split("|")
    stem = None
    if family == "vt":
        name, resolution, classes = parts
        if name.startswith("R"):
            resnet, name = name.split("+")
        name, *rest = name.removeprefix("ViT-").split("-")
        size, patch = name.split("_")
        pool = "gap" if rest else "cls"
        changes = {"pool": pool}
        if parts[0].startswith("R"):
            stages = HYBRIDS[f"{resnet}/{patch}"]
            stem = ResNetStem(stages)
            # R+ViT-Ti_16 has patches of 8 cells, 32 pixels, whatever its name says.
            patch = int(patch) // (4 * 2 ** (len(stages) - 1)) if stages else 8
    elif family == "bv":
        name, options, resolution, classes = parts
        size, patch = name.split("/")
        pool, *options = options.split(",")
        changes = {"pool": POOLS[pool], "dialect": "big_vision"}
        if "sincos2d" in options:
            changes["position"] = "sincos2d"
        if "rep" in options:
            changes["representation_size"] = _sizes.SIZES[size][0]
    elif family.startswith("vt_style"):
        name, resolution, classes = parts
        size, patch = name.split("/")
        changes = {}
    else:
        return None
    classes = 0 if classes == "no_head" else int(classes)
    model = ViT(classes, int(patch), **_sizes.size(size), stem=stem, **changes)
    return COUNTS[row], model, int(resolution)


ROWS = [row for row in COUNTS if size_of_row(row)]


def test_every_size_of_the_table_has_a_known_count():
    sizes = {name for row in ROWS for name in _sizes.SIZES if f"{name}/" in row}
    assert sizes == set(_sizes.SIZES)


@pytest.mark.parametrize("row", ROWS)
def test_parameter_counts_are_those_of_the_original_code(row):
    count, model, resolution = size_of_row(row)
    image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)

    def parameters(depth: int) -> int:
        init = model.clone(depth=depth).init
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(init, KEY, image)))

    # All blocks are alike: two depths say what the other 56 weigh, and trace in no time.
    block = parameters(2) - parameters(1)
    assert parameters(1) + (model.depth - 1) * block == count


# Each pooling and each position once: neither reads the other.
@pytest.mark.parametrize(
    ("pool", "position"), [("cls", "learned"), ("gap", "sincos2d"), ("map", "learned")]
)
def test_every_parameter_but_the_key_bias_has_a_gradient(pool, position):
    model = tiny(pool=pool, position=position, representation_size=7)
    variables = initialised(model, images())

    def loss(variables):
        logits = model.apply(variables, images())["logits"]
        return (logits * jnp.arange(5).reshape(1, 5)).sum()

    gradients = jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(variables))
    for path, gradient in gradients:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # Softmax ignores what is added to all keys, so that bias never learns.
        assert (jnp.abs(gradient).max() > 1e-5) == (not name.endswith("key/bias")), name


def test_patch_embedding_is_the_strided_convolution():
    model = tiny(patch_size=(4, 3))
    x = images()
    params = initialised(model, x)["params"]["embedding"]
    expected = jax.lax.conv_general_dilated(
        x, params["kernel"], (4, 3), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    ours = PatchEmbedding((4, 3), 12).apply({"params": params}, x)
    expected = expected + params["bias"].reshape(1, 1, 1, -1)
    # Sums of 36 products of order 0.1: rounding is 1e-7, a wrong patch order 1e-1.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_gap_without_positions_does_not_see_the_order_of_patches():
    model = tiny(pool="gap", position="sincos2d", patch_size=2)
    x = images()
    variables = initialised(model, x)
    flipped = x.reshape(2, 4, 2, 6, 3)[:, ::-1].reshape(x.shape)
    table = sincos2d(4, 3, 12)
    assert jnp.abs(table[:, :3] - table[:, -3:]).max() > 0.1
    difference = (
        run(model, variables, x)["pooled"] - run(model, variables, flipped)["pooled"]
    )
    assert jnp.abs(difference).max() > 1e-3  # the positions tell rows apart


def test_batch_rows_do_not_see_each_other():
    model = tiny(pool="map")
    x = images(4)
    variables = initialised(model, x)
    whole = run(model, variables, x)["logits"]
    parts = [run(model, variables, x[i : i + 1])["logits"][0] for i in range(4)]
    np.testing.assert_allclose(
        whole, np.stack(parts), rtol=0, atol=1e-6
    )  # float32 sums


def test_evaluation_draws_nothing_and_training_does():
    model = tiny(dropout=0.5, stochastic_depth=0.5)
    variables = initialised(model, images())
    quiet = run(tiny(), variables, images())["logits"]
    np.testing.assert_array_equal(run(model, variables, images())["logits"], quiet)
    draws = [
        run(
            model,
            variables,
            images(),
            train=True,
            rngs={"dropout": jax.random.key(seed)},
        )["logits"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert jnp.abs(draws[0] - draws[2]).max() > 1e-3


def test_stochastic_depth_leaves_out_a_branch_for_whole_examples():
    model = tiny(stochastic_depth=1.0, depth=2)
    variables = initialised(model, images())
    _, sown = run(
        model,
        variables,
        images(),
        train=True,
        rngs={"dropout": jax.random.key(0)},
        mutable=["intermediates"],
    )
    first, last = (
        sown["intermediates"][f"block_{i}"]["block_output"][0] for i in range(2)
    )
    # The first block's rate is 0, the last one's 1: nothing is left of its branches.
    np.testing.assert_array_equal(first, last)


def test_remat_changes_no_number():
    x = images()
    variables = initialised(tiny(), x)
    rngs = {"dropout": jax.random.key(0)}

    def gradient(model):
        def loss(variables):
            return model.apply(variables, x, train=True, rngs=rngs)["logits"].sum()

        return jax.jit(jax.grad(loss))(variables)

    plain, remat = gradient(tiny(dropout=0.1)), gradient(tiny(dropout=0.1, remat=True))
    # Recomputed sums may be fused otherwise: 1e-6 of values of order 1.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        plain,
        remat,
    )


def test_bfloat16_computes_in_it_and_returns_float32():
    variables = initialised(tiny(), images())
    outputs = run(tiny(dtype="bfloat16"), variables, images())
    assert all(value.dtype == jnp.float32 for value in outputs.values())
    exact = run(tiny(), variables, images())["logits"]
    difference = jnp.abs(outputs["logits"] - exact).max()
    # 8 bits of mantissa: not equal to float32, and not far from it.
    assert 1e-5 < difference < 5e-2 * jnp.abs(exact).max() + 5e-2


def test_an_image_that_the_patch_does_not_divide_is_named():
    with pytest.raises(
        ValueError, match=r"image is 8x6; patch_size=4 must divide both"
    ):
        jax.eval_shape(tiny(patch_size=4).init, jax.random.key(0), images())


def test_a_width_that_heads_do_not_divide_is_named():
    with pytest.raises(ValueError, match=r"width=12 must be divisible by num_heads=5"):
        jax.eval_shape(tiny(num_heads=5).init, jax.random.key(0), images())


def test_a_width_that_sincos_positions_cannot_fill_is_named():
    with pytest.raises(ValueError, match="needs a width divisible by 4, not 10"):
        sincos2d(2, 2, 10)


def test_layers_learn_the_less_the_nearer_they_are_to_the_pixels():
    model = tiny(mask_token=True, registers=1, pre_norm=True, stem=ResNetStem((), 32))
    model = model.clone(patch_size=1)
    variables = jax.eval_shape(model.init, KEY, jnp.zeros((1, 8, 8, 3)))
    names = paths.named_leaves(variables["params"])
    rates = optim.select_multipliers([[_sizes.LAYERS, 0.5]], names)
    heads = {name for name in names if name not in rates}
    assert {name.split("/")[0] for name in heads} == {"encoder_norm", "head"}
    for name, rate in rates.items():
        found = re.match(r"block_(\d)/", name)
        assert rate == 0.5 ** (3 - int(found[1]) if found else 4)


def test_the_mask_token_stands_where_the_mask_is_and_after_what_is_moved():
    model = tiny(mask_token=True, patch_outputs=6, num_classes=0, pool="gap")
    x = images()
    variables = initialised(model, x)
    grid = 12  # of patches
    mask = jnp.zeros((2, grid), bool).at[0, 3].set(True)
    source = jnp.tile(jnp.arange(grid), (2, 1)).at[1, 5].set(7)
    plain = run(model, variables, x)["patch_logits"]
    hidden = run(model, variables, x, patch_mask=mask)["patch_logits"]
    assert plain.shape == (2, grid, 6)
    assert (plain[0] != hidden[0]).any() and (plain[1] == hidden[1]).all()
    # What lies under the mask does not matter; elsewhere it does.
    other = x.at[0, 2:4, 0:2].set(0.0)  # patch 3: second row of three
    assert (
        run(model, variables, other, patch_mask=mask)["patch_logits"] == hidden
    ).all()
    assert (run(model, variables, other)["patch_logits"] != plain).any()
    # Patch 7 standing at 5 is the image with 7's pixels there.
    moved = run(model, variables, x, patch_source=source)["patch_logits"]
    pixels = x.at[1, 2:4, 4:6].set(x[1, 4:6, 2:4])
    expected = run(model, variables, pixels)["patch_logits"]
    np.testing.assert_array_equal(moved, expected)


def test_registers_are_between_the_class_token_and_the_patches():
    model = tiny(registers=2)
    x = images()
    variables = initialised(model, x)
    assert model.prefix == 3
    assert run(model, variables, x)["tokens"].shape == (2, 3 + 12, 12)
    assert variables["params"]["pos_embedding"].shape == (1, 15, 12)
    patches = initialised(tiny(registers=2, position_on="patches"), x)
    assert patches["params"]["pos_embedding"].shape == (1, 12, 12)


def test_a_dialect_is_overruled_by_the_fields_beside_it():
    assert tiny(dialect="hf").rules == ("erf", 1e-12, "all", False)
    assert tiny(dialect="hf", gelu="tanh", norm_epsilon=0.1).rules[:2] == ("tanh", 0.1)
    assert tiny(dialect="timm", pool="gap").rules.norm_after_pool
    assert not tiny(dialect="timm", pool="cls").rules.norm_after_pool  # nothing to pool


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"class_token": False}, {}, "pool='cls' needs the class token; set"),
        (
            {},
            {"patch_mask": jnp.zeros((2, 12), bool)},
            "no mask token; set config.model.mask_token to True",
        ),
    ],
)
def test_what_the_model_lacks_is_named(changes, options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes).init(jax.random.key(0), images(), **options)
