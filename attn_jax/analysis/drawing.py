"""Helpers that all figures share; they need no display."""

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


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


def save_figure(fig: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes a PNG file, with its folder if needed, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    return path
