"""The ResNet beside ViT: what its norms promise. Its numbers are the hybrid's in
test_vit_convert.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.models.resnet import ResNet, ResNetStem, StandardizedConv

pytestmark = pytest.mark.usefixtures("quick_compilation")


def images(batch: int = 2, size: int = 16) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (batch, size, size, 3), minval=-1)


def run(module, variables, x, **options):
    return jax.jit(functools.partial(module.apply, **options))(variables, x)


@pytest.mark.parametrize(
    ("stages", "grid", "channels"), [((), 8, 32), ((1,), 8, 128), ((1, 2), 4, 256)]
)
def test_stages_halve_the_grid_and_double_the_channels(stages, grid, channels):
    stem = ResNetStem(stages, 32)
    shape = jax.eval_shape(
        lambda x: stem.init_with_output(jax.random.key(0), x)[0], images(size=32)
    ).shape
    assert shape == (2, grid, grid, channels)


def test_a_kernels_scale_and_mean_do_not_matter():
    """Weight standardisation takes both away, but for the 1e-5 beside the deviation."""
    conv = StandardizedConv(4, 3, 1, "float32")
    x = images()
    variables = conv.init(jax.random.key(0), x)
    expected = run(conv, variables, x)
    moved = jax.tree.map(lambda k: 3 * k + 2.0, variables)
    np.testing.assert_allclose(run(conv, moved, x), expected, rtol=0, atol=2e-3)
    assert np.abs(expected).max() > 1


def test_each_unit_starts_as_its_shortcut():
    """The last norm of a bottleneck starts at zero."""
    model = ResNet(3, stage_sizes=(1, 2), width=32)
    x = images()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    before = run(model, variables, x)["pooled"]
    last = variables["params"]["stem"]["stage_1_unit_1"]  # without a projection
    last["conv3"]["kernel"] = 7 * last["conv3"]["kernel"][::-1] + 1
    np.testing.assert_array_equal(run(model, variables, x)["pooled"], before)
    last["gn3"]["scale"] = jnp.ones_like(last["gn3"]["scale"])
    assert (run(model, variables, x)["pooled"] != before).any()


def test_an_example_does_not_see_its_batch():
    model = ResNet(3, stage_sizes=(1,), width=32)
    x = images(4)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    whole = run(model, variables, x)["pooled"]
    half = run(model, variables, x[:2])["pooled"]
    # Float32 sums of another order, nothing else.
    np.testing.assert_allclose(whole[:2], half, rtol=0, atol=1e-5)


def test_channels_that_the_groups_do_not_divide_are_named():
    with pytest.raises(
        ValueError, match="gn_root has 48 channels, which .* its 32 groups"
    ):
        ResNetStem((), 48).init(jax.random.key(0), images())
