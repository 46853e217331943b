"""Where a Vision Transformer looks: attention over the patches of an image."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from attn_jax.analysis import attention_maps
from attn_jax.analysis.drawing import figure, save, show_image
from attn_jax.models.vit import ViT


def draw(
    module: ViT,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Any],
    folder: pathlib.Path,
) -> list[pathlib.Path]:
    """Writes attention.png: each image, and how much attention each block pays to it."""
    images = np.asarray(inputs["images"])
    maps = attention_maps(module, variables, **inputs)
    columns = ["image", *maps]
    page, axes = figure(len(images), len(columns))
    over = {path: over_patches(module, weights) for path, weights in maps.items()}
    for row, image in enumerate(images):
        show_image(axes[row, 0], image, "image" if row == 0 else "")
        for column, path in enumerate(maps, start=1):
            grid = on_grid(module, image.shape[:2], over[path][row])
            title = path.removesuffix("/attention") if row == 0 else ""
            show_image(axes[row, column], image, title)
            height, width = image.shape[:2]
            # Strong where the model looks; the image stays visible below.
            axes[row, column].imshow(
                grid,
                cmap="inferno",
                alpha=0.7,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
    return [save(page, folder / "attention.png")]


def over_patches(
    module: ViT, weights: Float[np.ndarray, "B N Q K"]
) -> Float[np.ndarray, "B G"]:
    """Attention to each patch, mean over heads: the class token's where there is one (or
    the pooling probe's), else the mean over all queries."""
    over = weights.mean(axis=1)
    over = over[:, 0] if module.pool == "cls" else over.mean(axis=1)
    return over[:, 1:] if module.pool == "cls" else over


def on_grid(
    module: ViT, size: tuple[int, int], patches: Float[np.ndarray, " G"]
) -> Float[np.ndarray, "Gh Gw"]:
    patch = module.patch_size
    ph, pw = (patch, patch) if isinstance(patch, int) else patch
    return patches.reshape(size[0] // ph, size[1] // pw)
