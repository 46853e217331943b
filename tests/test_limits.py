"""Whether a run fits into memory, known from shapes before anything is allocated."""

import jax
import jax.numpy as jnp
import pytest

from attn_jax import limits

GIB = 2**30


def shape(*sides, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sides, dtype)


def test_what_fits_exactly_is_accepted_and_one_byte_more_is_not():
    params, batch = {"a": shape(100), "b": shape(7, dtype=jnp.bfloat16)}, {}
    limits.check_size(params, batch, memory=414)
    with pytest.raises(ValueError, match="the parameters would need"):
        limits.check_size(params, batch, memory=413)


def test_the_message_names_sizes_the_largest_array_and_a_remedy():
    params = {"small": shape(3), "block": {"kernel": shape(2**17, 2**17)}}
    message = (
        r"the parameters, 5 times in training, would need 320 GiB, but 32 GiB are "
        r"available \(largest array: block/kernel \[131072, 131072\]\); reduce config.model"
    )
    with pytest.raises(ValueError, match=message):
        limits.check_size(params, copies=5, memory=32 * GIB)
    images = {"images": shape(2**14, 2**10, 2**10, 3, dtype=jnp.uint8)}
    with pytest.raises(
        ValueError, match="one batch would need 48 GiB.*config.batch_size"
    ):
        limits.check_size({}, images, memory=32 * GIB)


def test_a_product_of_sides_beyond_64_bits_does_not_wrap():
    with pytest.raises(ValueError, match="TiB"):
        limits.check_size({"a": shape(2**31, 2**31, 2**31)}, memory=GIB)


def test_memory_is_the_lesser_of_the_host_s_and_the_container_s(tmp_path, monkeypatch):
    host = limits.find_memory()
    assert host is None or 2**27 < host < 2**47  # 128 MiB to 128 TiB
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert limits.find_memory() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert limits.find_memory() == limits._read_meminfo()
