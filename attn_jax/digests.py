"""Digests that show whether arrays and JSON come back from disk unchanged.

Orbax and tensorstore do not detect a flipped bit in an uncompressed array.
"""

import hashlib
import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

from attn_jax import paths


def describe_leaves(tree: Any) -> dict[str, dict[str, Any]]:
    """{name: {shape, dtype, digest}} for every leaf, as JSON values."""
    found = digest_leaves(tree)
    return {
        name: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "digest": found[name],
        }
        for name, leaf in paths.named_leaves(tree).items()
    }


def digest_leaves(tree: Any) -> dict[str, int]:
    """{name: 32-bit digest} for every leaf; independent of the mesh.

    For global arrays this is a collective: every process must call it.
    """
    return {
        name: int(value)
        for name, value in paths.named_leaves(jax.device_get(_digests(tree))).items()
    }


@jax.jit
def _digests(tree: Any) -> Any:
    return jax.tree.map(digest_leaf, tree)


def digest_leaf(leaf: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """The sum of each element's bits times an odd hash of its position, mod 2^32.

    An integer sum does not depend on the order, hence not on the sharding. An odd factor is
    invertible mod 2^32, so a change of any single element changes the sum.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    width = np.dtype(leaf.dtype).itemsize * 8
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{width}").astype(jnp.uint32)
    position = jnp.zeros((), jnp.uint32)
    for dim, size in enumerate(leaf.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, dim)
        position = position * jnp.uint32(size) + along
    # With 2 * position + 1 instead of a hash, two changes could easily cancel.
    mixed = (position + 1) * jnp.uint32(2654435761)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2246822519)
    return jnp.sum(bits * (mixed | 1), dtype=jnp.uint32)


def digest_json(content: Any) -> int:
    """CRC-32 of a JSON value, independent of the order of keys."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def digest_bytes(data: bytes) -> str:
    """SHA-256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
