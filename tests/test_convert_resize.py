"""Positions and patch filters are resized as in the original code."""

import numpy as np
import pytest
from test_vit_convert import (
    GOLDEN,
)

from attn_jax.convert.vit.resize import (
    resize_grid,
    resize_patch_kernel,
    resize_positions,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def grids(key: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """`..._AxBtoCxD_...`, or `..._AtoB_...` of squares."""
    part = next(p for p in key.split("_") if "to" in p)
    old, new = (
        tuple(map(int, side.split("x") if "x" in side else [side, side]))
        for side in part.split("to")
    )
    return old, new


def pairs_of(file: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    data = np.load(GOLDEN / "resize" / f"{file}.npz")
    keys = [key[:-3] for key in data if key.endswith("_in")]
    return [(key, data[f"{key}_in"], data[f"{key}_out"]) for key in keys]


# Float32 here, float64 or float32 there: 5e-6 is the golden set's own for positions, 1e-5
# for filters, which pass through a pseudo-inverse.
@pytest.mark.parametrize(
    ("key", "old", "new"), pairs_of("posemb_google") + pairs_of("posemb_hf")
)
def test_positions_are_resized_as_in_the_original(key, old, new):
    before, after = grids(key)
    if key.startswith("zoom"):
        found = resize_grid(old, after, "corners")
    else:
        found = resize_positions(old, before, after, key.split("_")[0])
    np.testing.assert_allclose(found, new, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("key", "old", "new"), pairs_of("posemb_timm"))
def test_positions_are_resized_as_in_timm(key, old, new):
    before, after = grids(key)
    _, _, prefix, method, antialias = key.split("_")
    kept = int(prefix.removeprefix("prefix"))
    antialias = antialias == "aa1"
    grid = old[0, kept:].reshape(*before, -1)
    found = resize_grid(grid, after, method, antialias=antialias)
    found = found.reshape(-1, found.shape[-1])
    np.testing.assert_allclose(found, new[0, kept:], rtol=0, atol=5e-6)
    if method == "bicubic" and antialias:
        whole = resize_positions(old, before, after, "timm")
        np.testing.assert_allclose(whole, new, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("key", "old", "new"),
    pairs_of("patch_kernel_bigvision") + pairs_of("patch_kernel_timm"),
)
def test_patch_filters_are_resized_as_in_the_original(key, old, new):
    options = {}
    if key.startswith("timm"):
        old, new = (array.transpose(2, 3, 1, 0) for array in (old, new))
        method, antialias = key.split("_")[2:]
        options = {"method": method, "antialias": antialias == "aa1"}
    found = resize_patch_kernel(old, grids(key)[1], **options)
    np.testing.assert_allclose(found, new, rtol=0, atol=1e-5)
