"""Digests: no flipped bit and no exchange goes unnoticed, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from attn_jax import sharding
from attn_jax.digests import digest_leaf, digest_leaves

digest_of_each = jax.jit(jax.vmap(digest_leaf))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_any_flipped_bit_changes_the_digest(dtype):
    rng = np.random.default_rng(0)
    width = 8 * jnp.dtype(dtype).itemsize
    words = rng.integers(2**width, size=12, dtype=np.uint64).astype(f"uint{width}")
    word, bit = np.divmod(np.arange(12 * width), width)
    flipped = np.tile(words, (12 * width, 1))
    flipped[np.arange(12 * width), word] ^= (1 << bit).astype(words.dtype)
    arrays = np.concatenate([words[None], flipped]).view(jnp.dtype(dtype))
    whole, *others = np.asarray(digest_of_each(arrays.reshape(-1, 3, 4)))
    assert whole not in others


def test_a_flipped_boolean_changes_the_digest():
    arrays = np.concatenate([np.zeros((1, 6), bool), np.eye(6, dtype=bool)])
    assert len(set(np.asarray(digest_of_each(arrays)).tolist())) == 7


def test_two_values_that_change_places_change_the_digest():
    values = np.random.default_rng(0).normal(size=40).astype(np.float32)
    one, other = np.triu_indices(40, k=1)
    swapped = np.tile(values, (len(one), 1))
    swapped[np.arange(len(one)), one] = values[other]
    swapped[np.arange(len(one)), other] = values[one]
    whole, *others = np.asarray(digest_of_each(np.concatenate([values[None], swapped])))
    assert whole not in others


def test_zeros_that_differ_in_sign_differ_in_digest():
    plus, minus = np.asarray(digest_of_each(np.array([[0.0], [-0.0]], np.float32)))
    assert plus != minus


def test_a_digest_is_the_same_on_any_mesh():
    rng = np.random.default_rng(0)
    tree = {"kernel": rng.normal(size=(16, 8)), "key": jax.random.key(1)}
    tree["kernel"] = jnp.asarray(tree["kernel"], jnp.float32)
    expected = digest_leaves(tree)
    assert expected.keys() == tree.keys()
    for sizes in ({"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh = sharding.make_mesh(sizes)
        spec = PartitionSpec("fsdp", "tensor")
        kernel = jax.device_put(tree["kernel"], NamedSharding(mesh, spec))
        assert not kernel.is_fully_replicated
        key = jax.device_put(tree["key"], sharding.replicated(mesh))
        assert digest_leaves({"kernel": kernel, "key": key}) == expected


def test_the_digest_of_a_key_is_that_of_its_numbers():
    key = jax.random.key(7)
    found = digest_leaves({"key": key, "numbers": jax.random.key_data(key)})
    assert found["key"] == found["numbers"]
