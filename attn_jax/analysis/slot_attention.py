"""Figures of Slot Attention: how slots decompose an image, after every iteration.

Axes: B images, T iterations, K slots, H W pixels, N cells of the encoder's grid.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from attn_jax import metrics
from attn_jax.analysis.drawing import (
    add_bar,
    color_segments,
    label_row,
    make_figure,
    save_animation,
    save_figure,
    show_image,
)
from attn_jax.analysis.figures import no_figure
from attn_jax.analysis.vit import compute_grid
from attn_jax.models.slot_attention import SlotAttentionAutoEncoder

IMAGE_FILES = True  # `analyze --images` works
CELL = (1.2, 1.2)  # inches of a picture

Arrays = Mapping[str, np.ndarray]


def draw(
    module: nn.Module,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    batch: Mapping[str, Any],
    assets: Mapping[str, str],
    folder: pathlib.Path,
) -> list[pathlib.Path]:
    """Writes slots.png, iterations.png and routing.png.

    slots.png: each image, its true masks if there are some, its reconstruction, the slot of
    each pixel, and the contribution of each slot; iterations.png: the same of the first
    image after every iteration, with the attention of each slot, although only the last
    iteration is trained (paper fig. 4); routing.png: slots.png after every iteration, an
    animation (APNG, which browsers play).

    Raises:
        ValueError: the model is not the autoencoder.
    """
    del assets
    if not isinstance(module, SlotAttentionAutoEncoder):
        raise no_figure(module)
    # As constants, because the numbers of slots and iterations are no arrays.
    found = jax.jit(
        lambda variables: module.apply(variables, **{**inputs, "every_iteration": True})
    )(variables)
    outputs = {name: np.asarray(array) for name, array in found.items()}
    images = np.asarray(inputs["images"])
    true = None if "object_ids" not in batch else np.asarray(batch["object_ids"])
    T = len(outputs["attention_per_iteration"])
    if module.backbone is None:
        grid = count_cells(module.encoder_strides, images.shape[1:3])
    else:
        grid = compute_grid(module, variables, inputs)
    captions = batch.get("captions", [""] * len(images))
    frames = [draw_slots(images, outputs, true, captions, t) for t in range(T)]
    return [
        save_figure(frames[-1], folder / "slots.png"),
        save_figure(
            draw_iterations(grid, images[0], outputs, true), folder / "iterations.png"
        ),
        save_animation(frames, folder / "routing.png"),
    ]


def blend_on_white(outputs: Arrays, t: int, row: int) -> Float[np.ndarray, "K H W 3"]:
    """Each slot's contribution after iteration t on a white background, in [-1, 1]."""
    parts = outputs["slot_reconstructions_per_iteration"][t, row]
    masks = outputs["masks_per_iteration"][t, row][..., None]
    return parts * masks + (1 - masks)


def find_segments(outputs: Arrays, t: int, row: int) -> Integer[np.ndarray, "H W"]:
    """The slot of each pixel after iteration t."""
    return outputs["masks_per_iteration"][t, row].argmax(axis=0)


def match_colors(
    true: Integer[np.ndarray, "H W"], segments: Integer[np.ndarray, "H W"]
) -> Integer[np.ndarray, "H W"]:
    """The true objects, each with the number of the slot that covers it; background -1.

    Every object gets a number of its own: that of its slot where objects and slots match
    one to one with the largest overlap, else one above the slots.
    """
    objects = [int(i) for i in np.unique(true) if i != 0]
    slots = int(segments.max()) + 1
    overlap = np.array(
        [np.bincount(segments[true == i], minlength=slots) for i in objects]
    ).reshape(len(objects), slots)
    rows, columns = linear_sum_assignment(-overlap)
    number = {
        objects[row]: int(column) for row, column in zip(rows, columns, strict=True)
    }
    matched = np.full(true.shape, -1)
    for i in objects:
        matched[true == i] = number.setdefault(i, slots + len(number))
    return matched


def draw_slots(
    images: np.ndarray,
    outputs: Arrays,
    true: np.ndarray | None,
    captions: Sequence[str],
    t: int,
) -> Figure:
    """One row per image, after iteration t; a slot's frame has its color."""
    T, _, slots = outputs["masks_per_iteration"].shape[:3]
    known = [] if true is None else ["true objects"]
    titles = ["image", *known, "reconstruction", "segments"]
    fig, axes = make_figure(len(images), len(titles) + slots, cell=CELL)
    for row, image in enumerate(images):
        segments = find_segments(outputs, t, row)
        shown = [image]
        if true is not None:
            shown.append(color_segments(match_colors(true[row], segments)))
        shown.append(outputs["reconstruction_per_iteration"][t, row])
        shown.append(color_segments(segments))
        for ax, picture, title in zip(axes[row], shown, titles, strict=False):
            show_image(ax, picture, title if row == 0 else "")
        label_row(axes[row, 0], captions[row])
        draw_parts(axes[row, len(titles) :], outputs, t, row, named=row == 0)
    fig.suptitle(f"after iteration {t + 1} of {T}", fontsize=9)
    return fig


def draw_parts(
    axes: np.ndarray, outputs: Arrays, t: int, row: int, *, named: bool
) -> None:
    """The contribution of each slot, framed in its color."""
    for k, part in enumerate(blend_on_white(outputs, t, row)):
        show_image(axes[k], part, f"slot {k}" if named else "")
        frame_in_color(axes[k], k)


def frame_in_color(axes: Any, slot: int) -> None:
    color = (color_segments(np.array([[slot]]))[0, 0] + 1) / 2
    for side in axes.spines.values():
        side.set(color=color, linewidth=2)


def count_cells(strides: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """The grid (down, across) of convolutions for an image of this size."""
    down, across = size
    for stride in strides:  # convolutions are padded, so sizes round up
        down, across = -(-down // stride), -(-across // stride)
    return down, across


def draw_iterations(
    grid: tuple[int, int],
    image: np.ndarray,
    outputs: Arrays,
    true: np.ndarray | None,
) -> Figure:
    """One row per iteration: the first image, its parts and the attention of each slot."""
    attention = outputs["attention_per_iteration"][:, 0]  # [T, K, N]
    T, K, _ = attention.shape
    fig, axes = make_figure(T, 3 + 2 * K, cell=CELL)
    for ax in axes[:, 0]:
        ax.set_frame_on(False)
    show_image(axes[0, 0], image, "image")
    segments = find_segments(outputs, T - 1, 0)
    if true is not None and T > 1:
        matched = match_colors(true[0], segments)
        show_image(axes[1, 0], color_segments(matched), "true objects")
    for t in range(T):
        decoded = outputs["reconstruction_per_iteration"][t, 0]
        segments = find_segments(outputs, t, 0)
        show_image(axes[t, 1], decoded, "reconstruction" if t == 0 else "")
        show_image(axes[t, 2], color_segments(segments), "segments" if t == 0 else "")
        axes[t, 1].set_ylabel(f"t = {t + 1}", fontsize=9)
        axes[t, 2].set_xlabel(describe(image, decoded, segments, true), fontsize=7)
        for k in range(K):
            ax = axes[t, 3 + k]
            shown = ax.imshow(attention[t, k].reshape(grid), "inferno", vmin=0, vmax=1)
            ax.set_title(f"attention {k}" if t == 0 else "", fontsize=8)
            frame_in_color(ax, k)
        draw_parts(axes[t, 3 + K :], outputs, t, 0, named=t == 0)
    add_bar(fig, shown, axes, "attention of a slot")
    return fig


def describe(
    image: np.ndarray,
    decoded: np.ndarray,
    segments: np.ndarray,
    true: np.ndarray | None,
) -> str:
    """The squared error of the first image, and its FG-ARI if it has objects."""
    error = f"error {np.square(decoded - image).mean():.2g}"
    if true is None or not true[0].any():
        return error
    ids = jnp.asarray(true[:1].astype(np.int32))
    agreement = metrics.adjusted_rand_index(
        ids,
        jnp.asarray(segments[None]),
        num_true=int(ids.max()) + 1,
        num_predicted=int(segments.max()) + 1,
        where=ids != 0,
    )
    return f"FG-ARI {float(agreement[0]):.2f}, {error}"
