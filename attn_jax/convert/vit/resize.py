"""Resizes position tables and patch filters to another resolution or patch size.

Each code base has its own rule, named after it. Axes: h w grid or patch, c channels, D width,
T tokens.
"""

from typing import Literal

import jax
import numpy as np
from jaxtyping import Float
from scipy import ndimage

Rule = Literal["google", "big_vision", "hf", "timm"]


def resize_grid(
    grid: Float[np.ndarray, "h w D"],
    size: tuple[int, int],
    method: Literal["corners", "bilinear", "bicubic"],
    *,
    antialias: bool = False,
) -> Float[np.ndarray, "h2 w2 D"]:
    """Interpolates a grid of vectors, in float32.

    "corners" is linear and aligns the corners (SciPy's zoom of order 1). The others align the
    edges of cells, as PyTorch does by default; "bicubic" has a = -0.75, or -0.5 with
    antialias.
    """
    if grid.shape[:2] == tuple(size):
        return np.asarray(grid, np.float32)
    if method == "corners":
        factors = (size[0] / grid.shape[0], size[1] / grid.shape[1], 1)
        return ndimage.zoom(np.asarray(grid, np.float32), factors, order=1)
    cubic = "cubic" if antialias else "cubic-pytorch"
    return np.asarray(
        jax.image.resize(
            np.asarray(grid, np.float32),
            (*size, grid.shape[2]),
            cubic if method == "bicubic" else "bilinear",
            antialias=antialias,
        )
    )


def resize_positions(
    positions: Float[np.ndarray, "1 T D"],
    old: tuple[int, int],
    new: tuple[int, int],
    rule: Rule,
) -> Float[np.ndarray, "1 T2 D"]:
    """Resizes a position table to the `new` grid of patches.

    The rows before the `old` grid's, those of the class token and registers, are kept.

    Source: vision_transformer checkpoint.py and big_vision models/vit.py (scipy zoom);
    transformers modeling_vit.py `interpolate_pos_encoding` (bicubic); timm
    layers/pos_embed.py `resample_abs_pos_embed` (bicubic, antialiased).
    """
    prefix = positions.shape[1] - old[0] * old[1]
    if prefix < 0:
        raise ValueError(
            f"the position table has {positions.shape[1]} rows, fewer than a grid of "
            f"{old[0]}x{old[1]} patches has."
        )
    if old == new:
        return positions
    grid = positions[0, prefix:].reshape(*old, -1)
    if rule in ("google", "big_vision"):
        grid = resize_grid(grid, new, "corners")
    else:
        grid = resize_grid(grid, new, "bicubic", antialias=rule == "timm")
    return np.concatenate([positions[0, :prefix], grid.reshape(-1, grid.shape[-1])])[
        None
    ]


def resize_patch_kernel(
    kernel: Float[np.ndarray, "h w c D"],
    size: tuple[int, int],
    method: Literal["bilinear", "bicubic"] = "bilinear",
    *,
    antialias: bool = False,
) -> Float[np.ndarray, "h2 w2 c D"]:
    """Resizes filters to another patch size: pinv(B^T) w, where B resizes patches.

    If patches grow, the response of the new filter to an enlarged patch equals that of the old
    one to the patch itself; if they shrink, it is closest in the least-squares sense.

    Source: Beyer et al. 2023 (FlexiViT), sec. 3.4; big_vision models/proj/flexi/vit.py;
    timm layers/patch_embed.py (bicubic, antialiased).
    """
    h, w = kernel.shape[:2]
    if (h, w) == tuple(size):
        return kernel
    basis = np.eye(h * w, dtype=np.float32).reshape(h, w, h * w)
    B = resize_grid(basis, size, method, antialias=antialias).reshape(-1, h * w)
    inverse = np.linalg.pinv(B.astype(np.float64).T)
    flat = inverse @ np.asarray(kernel, np.float64).reshape(h * w, -1)
    return flat.reshape(*size, *kernel.shape[2:]).astype(np.float32)
