"""The derivative of a fixed point: that of many updates, without their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.models.hopfield import Hopfield, retrieve

pytestmark = pytest.mark.usefixtures("quick_compilation")


def draw(dtype):
    rng = np.random.default_rng(0)
    stored, state = rng.normal(size=(2, 7, 4)), rng.normal(size=(2, 3, 4))
    return (
        jnp.asarray(stored, dtype),
        jnp.asarray(state, dtype),
        jnp.asarray(0.6, dtype),
    )


def total(stored, state, beta, **options):
    found = retrieve(stored, state, beta=beta, **options)
    return jnp.sin(3 * found).sum()


def test_gradients_are_those_of_many_updates_and_of_differences():
    # None of these states is at rest early: 200 updates reach it to float64 rounding.
    with jax.enable_x64(True):
        stored, state, beta = draw(jnp.float64)

        def gradient(**options):
            function = jax.grad(lambda x, b: total(x, state, b, **options), (0, 1))
            return jax.jit(function)(stored, beta)

        unrolled = gradient(steps=300)
        ours = gradient(differentiate="implicit", steps=None, eps=1e-13)
        for a, b in zip(ours, unrolled, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)
        early = gradient(steps=2, differentiate="implicit")
        assert np.abs(early[0] - unrolled[0]).max() > 1e-3

        settled = jax.jit(lambda b: total(stored, state, b, steps=300))
        # An error of step^2, and of 1e-15 / step.
        difference = (settled(beta + 1e-5) - settled(beta - 1e-5)) / 2e-5
        np.testing.assert_allclose(ours[1], difference, atol=1e-7)


def test_float32_forward_mode_and_vmap_agree_with_float64_reverse_mode():
    with jax.enable_x64(True):
        stored, state, beta = draw(jnp.float64)
        expected = jax.grad(total, 2)(stored, state, beta, steps=300)
    stored, state, beta = draw(jnp.float32)

    def each(x, xi, b):
        return total(x, xi, b, steps=None, eps=1e-6, differentiate="implicit")

    for derivative in (jax.jacfwd, jax.jacrev):
        ours = jax.jit(jax.vmap(derivative(each, 2), (0, 0, None)))(stored, state, beta)
        # A fixed point known to 1e-5, in a sum of 24 terms.
        np.testing.assert_allclose(ours.sum(), expected, rtol=1e-3)


def make_layer(**fields):
    norms = dict(norm_stored="off", norm_state="off", norm_projection="off")
    return Hopfield(num_heads=2, beta=0.5, **norms, **fields)


def test_a_layer_has_the_gradient_of_many_updates_without_a_fixed_number():
    with jax.enable_x64(True):
        x, state, _ = draw(jnp.float64)
        mask = jnp.ones((2, 7), bool).at[1, 4:].set(False)
        many = make_layer(max_updates=200, eps=None, dtype="float64")
        variables = many.init(jax.random.key(0), x, state)
        variables = jax.tree.map(
            lambda leaf: (30 * leaf).astype(jnp.float64), variables
        )

        def gradient(module):
            def loss(variables):
                output = module.apply(variables, x, state, stored_mask=mask, train=True)
                return jnp.square(output).sum()

            return jax.jit(jax.grad(loss))(variables)["params"]

        unrolled = jax.tree.map(np.asarray, gradient(many))
        implicit = many.clone(max_updates=None, eps=1e-13, differentiate="implicit")
        ours = jax.tree.map(np.asarray, gradient(implicit))
    for name in ("key", "value", "out"):
        assert np.abs(ours[name]["kernel"]).max() > 1e-3
        np.testing.assert_allclose(
            ours[name]["kernel"], unrolled[name]["kernel"], rtol=0, atol=1e-8
        )
    # The start only selects the fixed point.
    assert (ours["query"]["kernel"] == 0).all()
    assert np.abs(unrolled["query"]["kernel"]).max() < 1e-8


def test_memory_does_not_grow_with_the_number_of_updates():
    def count_bytes(updates, differentiate):
        module = make_layer(max_updates=updates, eps=None, differentiate=differentiate)
        x = jax.ShapeDtypeStruct((2, 64, 8), jnp.float32)
        variables = jax.eval_shape(module.init, jax.random.key(0), x)

        def loss(variables, x):
            return jnp.square(module.apply(variables, x)).sum()

        compiled = jax.jit(jax.grad(loss)).lower(variables, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    matrix = 2 * 2 * 64 * 64 * 4  # bytes of the weights
    assert count_bytes(100, "unrolled") > 100 * matrix
    few, many = (count_bytes(updates, "implicit") for updates in (10, 100))
    assert many - few < 4096  # numbers of the updates


def test_a_sharded_batch_has_the_same_gradient():
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.random.normal(jax.random.key(0), (8, 5, 4))
    gradient = jax.jit(
        jax.grad(lambda x: total(x, x, 0.5, steps=60, differentiate="implicit"))
    )
    # Other batches, other orders of float32 sums.
    np.testing.assert_allclose(
        gradient(jax.device_put(x, rows)), gradient(x), atol=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(max_updates=0), "needs updates in every head, not max_updates=0"),
        (dict(max_updates=(3, 0)), r"not max_updates=\(3, 0\)"),
        (dict(max_updates=3, eps=None, chunk=2), "chunk=2 needs differentiate='unr"),
    ],
)
def test_what_has_no_fixed_point_is_refused(fields, message):
    module = make_layer(differentiate="implicit", **fields)
    variables = make_layer().init(jax.random.key(0), jnp.ones((1, 3, 4)))
    with pytest.raises(ValueError, match=message):
        module.apply(variables, jnp.ones((1, 3, 4)))
    with pytest.raises(ValueError, match="steps=0 has no fixed point"):
        x = jnp.ones((1, 2))
        retrieve(x, x, beta=1.0, steps=0, differentiate="implicit")
