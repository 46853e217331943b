"""What all figures share, drawn without a display."""

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def figure(
    rows: int, columns: int, cell: tuple[float, float] = (1.6, 1.6)
) -> tuple[Figure, np.ndarray]:
    """(figure, axes [rows, columns]) without ticks; `cell` is (width, height) in inches."""
    page = Figure(figsize=(cell[0] * columns, cell[1] * rows), layout="constrained")
    FigureCanvasAgg(page)
    axes = page.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.set_xticks([])
        one.set_yticks([])
    return page, axes


def chart(inches: tuple[float, float]) -> tuple[Figure, Any]:
    """(figure, one axes with ticks) of (width, height) in inches."""
    page = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(page)
    return page, page.subplots()


def show_image(axes: Any, image: Float[np.ndarray, "H W C"], title: str = "") -> None:
    """Draws an image in [-1, 1], in grey if it has one channel."""
    pixels = np.clip((image + 1) / 2, 0, 1)
    axes.imshow(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, "gray", vmin=0, vmax=1
    )
    if title:
        axes.set_title(title, fontsize=8)


def save(page: Figure, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    page.savefig(path, dpi=120)
    return path
