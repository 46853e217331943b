"""The Vision Transformer: the original code's numbers, counts, and what must not matter."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.models.vit import PatchEmbedding, ViT, sincos2d
from configs.vit import _sizes

GOLDEN = pathlib.Path(__file__).parent / "golden" / "vit"
KEY = jax.eval_shape(lambda: jax.random.key(0))
COUNTS = json.loads((GOLDEN / "param_counts.json").read_text())
POOLS = {"tok": "cls", "gap": "gap", "map": "map"}


def tiny(**changes) -> ViT:
    fields = dict(
        num_classes=5, patch_size=2, width=12, depth=3, mlp_width=20, num_heads=3
    )
    return ViT(**{**fields, **changes})


def images(batch: int = 2, height: int = 8, width: int = 6) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (batch, height, width, 3), minval=-1)


def noisy(variables, seed: int = 0):
    """Every parameter away from its start: zeros and ones would hide a missing one."""
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        x + 0.1 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


def initialised(model: ViT, x: jax.Array):
    return noisy(jax.jit(model.init)(jax.random.key(0), x))


def run(model: ViT, variables, x: jax.Array, **options):
    """One compiled call: op by op, a test would take half a minute."""
    return jax.jit(functools.partial(model.apply, **options))(variables, x)


def size_of_row(row: str) -> tuple[int, ViT, int] | None:
    """(count, model, resolution) of a row of the table, None for another issue's rows."""
    family, *parts = row.split("|")
    if family == "vt" and not parts[0].startswith("R"):
        name, resolution, classes = parts
        name, *rest = name.removeprefix("ViT-").split("-")
        size, patch = name.split("_")
        pool = "gap" if rest else "cls"
        changes = {"pool": pool}
    elif family == "bv":
        name, options, resolution, classes = parts
        size, patch = name.split("/")
        pool, *options = options.split(",")
        if pool == "tok":  # its class token has no position: another dialect
            return None
        changes = {"pool": POOLS[pool]}
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
    model = ViT(classes, int(patch), **_sizes.size(size), **changes)
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


@pytest.mark.parametrize("pool", ["cls", "gap", "map"])
@pytest.mark.parametrize("position", ["learned", "sincos2d"])
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
