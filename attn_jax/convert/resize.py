"""The former home of `attn_jax.convert.vit.resize`, kept for importers."""

from attn_jax.convert.vit.resize import (
    resize_grid,
    resize_patch_kernel,
    resize_positions,
)

__all__ = ["resize_grid", "resize_patch_kernel", "resize_positions"]
