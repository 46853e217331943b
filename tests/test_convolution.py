"""Convolutions that are fast on a CPU equal those of XLA, and cost and communicate no more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from attn_jax.convolution import LARGE, PARTS, convolve, convolve_transposed
from attn_jax.metrics import count_flops
from attn_jax.sharding import make_mesh

NUMBERS = ("NHWC", "HWIO", "NHWC")


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def assert_equal_with_gradients(function, reference, x, kernel):
    def differentiate(function):
        def loss(x, kernel):
            y = function(x, kernel)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)

    for ours, theirs in zip(
        jax.tree.leaves(differentiate(function)),
        jax.tree.leaves(differentiate(reference)),
        strict=True,
    ):
        # sums of up to 65,536 products, in another order
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("images", [16, 18, 17])  # 8, 2 and 1 parts
@pytest.mark.parametrize("stride", [1, 2])
def test_parts_of_the_images_are_convolved_alike(images, stride):
    x, kernel = draw((images, 64, 64, 2), (5, 5, 2, 3))
    assert x.size // 2 >= LARGE
    options = {"padding": "SAME", "dimension_numbers": NUMBERS}
    assert_equal_with_gradients(
        lambda x, k: convolve(x, k, (stride, stride), **options),
        lambda x, k: jax.lax.conv_general_dilated(x, k, (stride, stride), **options),
        x,
        kernel,
    )


SIZES = [(size, stride) for size in range(1, 6) for stride in range(1, 5)]


@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_phases_are_the_transposed_convolution(size, stride):
    x, kernel = draw((2, 3, 4, 3), (size, max(size - 1, 1), 2, 3))

    def direct(x, kernel):
        strides = (stride, stride)
        return jax.lax.conv_transpose(x, kernel, strides, "SAME", transpose_kernel=True)

    def ours(x, kernel):
        return convolve_transposed(x, kernel, stride)

    assert_equal_with_gradients(ours, direct, x, kernel)


def test_phases_of_many_images_are_alike_and_count_the_same_operations():
    x, kernel = draw((16, 32, 32, 2), (5, 5, 3, 2))

    def direct(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", transpose_kernel=True)

    def ours(x, kernel):
        return convolve_transposed(x, kernel, 2)

    assert_equal_with_gradients(ours, direct, x, kernel)
    counts = [count_flops(jax.make_jaxpr(f)(x, kernel)) for f in (ours, direct)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("platform", "spread"), [("cpu", False), ("tpu", True)])
def test_only_a_cpu_has_phases(platform, spread):
    x, kernel = draw((2, 4, 4, 3), (5, 5, 2, 3))
    traced = jax.jit(lambda x, k: convolve_transposed(x, k, 2)).trace(x, kernel)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("lhs_dilate = [2, 2]" in program) == spread


@pytest.mark.parametrize(
    ("images", "platform", "parts"),
    [(16, "cpu", PARTS), (15, "cpu", 1), (16, "cuda", 1)],
)
def test_only_a_cpu_convolves_many_images_in_parts(images, platform, parts):
    x, kernel = draw((images, 64, 64, 2), (5, 5, 2, 3))
    assert (x.size // 2 >= LARGE) == (images == 16)
    options = {"padding": "SAME", "dimension_numbers": NUMBERS}
    traced = jax.jit(lambda x, k: convolve(x, k, (1, 1), **options)).trace(x, kernel)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == parts


def test_nothing_is_chosen_while_the_program_runs():
    x, kernel = draw((2, 4, 4, 3), (5, 5, 2, 3))
    function = jax.jit(jax.grad(lambda x, k: convolve_transposed(x, k, 2).sum()))
    assert " conditional(" not in function.lower(x, kernel).compile().as_text()


def test_parts_of_a_sharded_batch_stay_on_their_devices():
    mesh = make_mesh({"data": 8})
    x, kernel = draw((8 * PARTS, 32, 32, 2), (3, 3, 2, 3))
    assert x.size // 2 >= LARGE
    options = {"padding": "SAME", "dimension_numbers": NUMBERS}
    sharded = NamedSharding(mesh, P("data"))
    function = jax.jit(
        lambda x, k: convolve(x, k, (1, 1), **options),
        in_shardings=(sharded, NamedSharding(mesh, P())),
        out_shardings=sharded,
    )
    program = function.lower(x, kernel).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in program
