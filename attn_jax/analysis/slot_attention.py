"""Figures of Slot Attention: how slots decompose an image, after every iteration."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from attn_jax.analysis.drawing import make_figure, save_figure, show_image
from attn_jax.analysis.figures import no_figure
from attn_jax.models.slot_attention import SlotAttentionAutoEncoder


def draw(
    module: nn.Module,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    batch: Mapping[str, Any],
    assets: Mapping[str, str],
    folder: pathlib.Path,
) -> list[pathlib.Path]:
    """Writes slots.png and iterations.png.

    slots.png: each image, its reconstruction and its slots; iterations.png: the first
    image decoded after every iteration, although only the last one is trained (paper fig.
    4).

    Raises:
        ValueError: the model is not the autoencoder.
    """
    del batch, assets
    if not isinstance(module, SlotAttentionAutoEncoder):
        raise no_figure(module)
    outputs: Any = module.apply(variables, **inputs, every_iteration=True)
    images = np.asarray(inputs["images"])
    return [
        draw_slots(images, outputs, folder / "slots.png"),
        draw_iterations(
            module, variables, images[0], outputs, folder / "iterations.png"
        ),
    ]


def blend_on_white(outputs: Mapping[str, Any], row: int) -> np.ndarray:
    """Each slot's contribution on a white background, [K, H, W, 3] in [-1, 1]."""
    parts = np.asarray(outputs["slot_reconstructions"][row])
    masks = np.asarray(outputs["masks"][row])[..., None]
    return parts * masks + (1 - masks)


def draw_slots(
    images: np.ndarray, outputs: Mapping[str, Any], path: pathlib.Path
) -> pathlib.Path:
    slots = outputs["masks"].shape[1]
    fig, axes = make_figure(len(images), 2 + slots, cell=(1.2, 1.2))
    for row, image in enumerate(images):
        shown = [image, np.asarray(outputs["reconstruction"][row])]
        titles = ["image", "reconstruction", *(f"slot {k}" for k in range(slots))]
        for ax, picture, title in zip(
            axes[row], [*shown, *blend_on_white(outputs, row)], titles, strict=True
        ):
            show_image(ax, picture, title if row == 0 else "")
    return save_figure(fig, path)


def compute_grid(
    module: SlotAttentionAutoEncoder, image: np.ndarray
) -> tuple[int, int]:
    """The encoder's grid (down, across) for an image [H, W, 3]."""
    down, across = image.shape[:2]
    for stride in module.encoder_strides:  # convolutions are padded, so sizes round up
        down, across = -(-down // stride), -(-across // stride)
    return down, across


def draw_iterations(
    module: SlotAttentionAutoEncoder,
    variables: Mapping[str, Any],
    image: np.ndarray,
    outputs: Mapping[str, Any],
    path: pathlib.Path,
) -> pathlib.Path:
    """One row per iteration: decoded image, attention and contribution of each slot."""
    attention = np.asarray(outputs["attention_per_iteration"][:, 0])  # [T, K, N]
    slots = outputs["slots_per_iteration"][1:, :1]  # [T, 1, K, D]
    T, K, _ = attention.shape
    down, across = compute_grid(module, image)
    fig, axes = make_figure(T, 1 + 2 * K, cell=(1.2, 1.2))
    for t in range(T):
        decoded: Any = module.apply(variables, jnp.asarray(slots[t]), method="decode")
        title = f"after {t + 1}"
        show_image(axes[t, 0], np.asarray(decoded["reconstruction"][0]), title)
        parts = blend_on_white(decoded, 0)
        for k in range(K):
            weights = attention[t, k].reshape(down, across)
            axes[t, 1 + k].imshow(weights, "inferno", vmin=0, vmax=1)
            show_image(axes[t, 1 + K + k], parts[k])
            if t == 0:
                axes[t, 1 + k].set_title(f"attention {k}", fontsize=8)
                axes[t, 1 + K + k].set_title(f"slot {k}", fontsize=8)
    return save_figure(fig, path)
