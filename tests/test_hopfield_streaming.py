"""Association in chunks and over ragged bags: the same numbers in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.models.hopfield import (
    Entmax,
    Hopfield,
    HopfieldPooling,
    associate_bags,
    associate_in_chunks,
    associate_sharded,
)
from attn_jax.models.hopfield.equations import associate

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("chunk", [1, 4, 11, 50])
def test_chunks_give_the_values_and_gradients_of_the_whole_matrix(chunk):
    keys = jax.random.split(jax.random.key(0), 6)
    query, key = (
        2 * jax.random.normal(k, (2, n, 3, 4))
        for k, n in zip(keys[:2], (5, 11), strict=True)
    )
    value = jax.random.normal(keys[2], (2, 11, 3, 2))
    scale = jnp.array([[0.5], [1.0], [3.0]])
    mask = jax.random.bernoulli(keys[3], 0.6, (2, 1, 1, 11)).at[1].set(False)
    bias = jax.random.normal(keys[4], (1, 3, 5, 11))
    fixed = jax.random.normal(keys[5], (2, 5, 3, 2))

    def whole(query, key, value, scale, bias):
        weights = associate(query, key, scale, mask, bias)
        return jnp.einsum("bnqk,bknp->bqnp", weights, value)

    def chunks(query, key, value, scale, bias):
        return associate_in_chunks(query, key, value, scale, mask, bias, chunk=chunk)

    arguments = (query, key, value, scale, bias)
    (ours, pull), (expected, pull_expected) = (
        jax.vjp(jax.jit(function), *arguments) for function in (chunks, whole)
    )
    # Other orders of float32 sums.
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    assert (ours[1] == 0).all()  # fully masked
    for a, b in zip(pull(fixed), pull_expected(fixed), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_patterns_spread_over_devices_give_the_same_values_and_gradients():
    keys = jax.random.split(jax.random.key(0), 6)
    query, key, value, fixed = (
        2 * jax.random.normal(k, (2, n, 3, 4))
        for k, n in zip(keys[:4], (5, 16, 16, 5), strict=True)
    )
    scale = jnp.array([[0.5], [1.0], [3.0]])
    # Of some states and devices nothing takes part, of the second sample nothing at all.
    mask = jax.random.bernoulli(keys[4], 0.4, (2, 1, 5, 16)).at[1].set(False)
    bias = jax.random.normal(keys[5], (1, 3, 5, 16))
    spec = jax.sharding.PartitionSpec
    last = spec(None, None, None, "memory")
    spread = jax.shard_map(
        lambda *arguments: associate_sharded(*arguments, axis_name="memory"),
        mesh=jax.sharding.Mesh(jax.devices(), ("memory",)),
        in_specs=(
            spec(),
            spec(None, "memory"),
            spec(None, "memory"),
            spec(),
            last,
            last,
        ),
        out_specs=spec(),
    )

    def whole(query, key, value, scale, mask, bias):
        weights = associate(query, key, scale, mask, bias)
        return jnp.einsum("bnqk,bknp->bqnp", weights, value)

    def pull(function):
        def call(query, key, value, scale, bias):
            return function(query, key, value, scale, mask, bias)

        output, back = jax.vjp(jax.jit(call), query, key, value, scale, bias)
        return output, back(fixed)

    (ours, gradients), (expected, expected_gradients) = pull(spread), pull(whole)
    # Other orders of float32 sums.
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    assert (ours[1] == 0).all()
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_a_layer_in_chunks_is_the_same_layer():
    x = jax.random.normal(jax.random.key(0), (2, 9, 8))
    mask = jnp.arange(9)[None] < jnp.array([[9], [5]])
    settings = dict(num_heads=2, max_updates=2, eps=None, trainable_beta=True)
    whole = Hopfield(**settings)
    variables = whole.init(jax.random.key(1), x)
    # Larger weights: with the initial ones all patterns weigh the same.
    variables = jax.tree.map(lambda leaf: 20 * leaf, variables)
    for zero in (False, True):
        found = [
            module.clone(zero_association=zero).apply(variables, x, stored_mask=mask)
            for module in (whole, whole.clone(chunk=4))
        ]
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
    _, sown = whole.clone(chunk=4).apply(variables, x, mutable=["intermediates"])
    [weights] = jax.tree.leaves(sown)
    assert weights.shape == (2, 2, 9, 9)


def test_memory_does_not_grow_with_the_matrix_of_weights():
    def count_bytes(chunk):
        module = HopfieldPooling(Hopfield(num_heads=4, chunk=chunk), quantity=128)
        x = jax.ShapeDtypeStruct((1, 20_000, 16), jnp.float32)
        variables = jax.eval_shape(module.init, jax.random.key(0), x)

        def loss(variables, x):
            return jnp.square(module.apply(variables, x)).sum()

        compiled = jax.jit(jax.grad(loss)).lower(variables, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    matrix = 4 * 128 * 20_000 * 4  # bytes of N Q K weights
    assert count_bytes(None) > 2 * matrix  # weights, and their derivative
    assert count_bytes(1000) < matrix / 2


def test_what_chunks_cannot_do_is_refused():
    x = jnp.ones((1, 3, 4))
    for settings, message in [
        (
            dict(member=Entmax()),
            r"needs member=Softmax\(\) and dropout=0.0, not Entmax",
        ),
        (dict(dropout=0.1), "and 0.1"),
        (dict(max_updates=2), "eps=None, not max_updates=2 and eps=0.0001"),
        (dict(max_updates=None, eps=None), "same number of updates for all heads"),
    ]:
        module = Hopfield(chunk=2, **settings)
        variables = Hopfield().init(jax.random.key(0), x)
        with pytest.raises(ValueError, match=message):
            module.apply(variables, x)


def test_ragged_bags_give_what_each_bag_gives_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (2, 3, 4))
    key, value = (
        jax.random.normal(k, (10, 3, n)) for k, n in zip(keys[1:], (4, 5), strict=True)
    )
    bag_ids = jnp.array([2, 0, 2, 0, 0, -1, 2, 7, 0, 2])  # bag 1 is empty

    def pool(query, key, value):
        return associate_bags(query, key, value, bag_ids, bags=3, scale=0.7)

    found, pull = jax.vjp(jax.jit(pool), query, key, value)
    assert found.shape == (3, 2, 3, 5) and (found[1] == 0).all()
    for bag in (0, 2):
        own = bag_ids == bag

        def alone(query, key, value, own=own):
            weights = associate(query[None], key[None], 0.7, own[None, None, None])
            return jnp.einsum("bnqk,bknp->bqnp", weights, value[None])[0]

        expected, pull_alone = jax.vjp(alone, query, key, value)
        np.testing.assert_allclose(found[bag], expected, atol=1e-6)
        cotangent = jax.random.normal(keys[0], expected.shape)
        gradients = pull(jnp.zeros_like(found).at[bag].set(cotangent))
        for a, b in zip(gradients, pull_alone(cotangent), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
