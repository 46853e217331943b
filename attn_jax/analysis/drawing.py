"""Helpers that all figures share; they need no display."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

FRAME_MILLISECONDS, LAST_MILLISECONDS = 800, 2400  # of an animation
BACKGROUND = 0.15  # gray, of pixels without a segment


def make_figure(
    rows: int, columns: int, cell: tuple[float, float] = (1.6, 1.6)
) -> tuple[Figure, np.ndarray]:
    """(figure, axes [rows, columns]) without ticks; `cell` is (width, height) in inches."""
    fig = Figure(figsize=(cell[0] * columns, cell[1] * rows), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    return fig, axes


def make_chart(inches: tuple[float, float]) -> tuple[Figure, Any]:
    """(figure, axes) of one plot with ticks; `inches` is (width, height)."""
    fig = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots()


def show_image(axes: Any, image: Float[np.ndarray, "H W C"], title: str = "") -> None:
    """Draws an image in [-1, 1], in gray if it has one channel."""
    pixels = np.clip((image + 1) / 2, 0, 1)
    axes.imshow(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, "gray", vmin=0, vmax=1
    )
    if title:
        axes.set_title(title, fontsize=8)


def show_caption(axes: Any, caption: str) -> None:
    """Writes what is known of a picture above it."""
    axes.set_title(caption, fontsize=7)


def label_row(axes: Any, caption: str) -> None:
    """Writes what is known of a row to its left."""
    axes.set_ylabel(caption, fontsize=6, rotation=0, ha="right", va="center")


def add_bar(fig: Figure, shown: Any, axes: Any, label: str) -> None:
    """A color bar for all of the axes, which share the scale of `shown`."""
    bar = fig.colorbar(shown, ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def save_figure(fig: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes a PNG file, with its folder if needed, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    return path


def color_segments(ids: Integer[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 3"]:
    """An image in [-1, 1] with a color for each id from 0; dark gray where it is -1.

    There are 20 colors; id 20 has that of 0.
    """
    table = colormaps["tab20"](np.arange(20))[:, :3]
    table = np.concatenate([table[::2], table[1::2]])  # strong ones first
    colors = table[ids % len(table)]
    return 2 * np.where(ids[..., None] < 0, BACKGROUND, colors) - 1


def save_animation(frames: Sequence[Figure], path: pathlib.Path) -> pathlib.Path:
    """Writes figures of one size as an animated PNG (APNG), and returns the path.

    It repeats, and rests on the last frame. A viewer that knows no APNG shows the first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for fig in frames:
        fig.set_dpi(120)
        fig.canvas.draw()
        rgba = np.asarray(fig.canvas.buffer_rgba())  # type: ignore[attr-defined]
        pictures.append(Image.fromarray(rgba[..., :3].copy()))
    pauses = [FRAME_MILLISECONDS] * (len(pictures) - 1) + [LAST_MILLISECONDS]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=pauses, loop=0
    )
    return path
