"""Draws `curves.png`: the metrics of a run over its steps."""

import math
from io import BytesIO

from etils import epath

from attn_jax.records import read_records


def draw_curves(workdir: epath.PathLike) -> None:
    """Draws `curves.png` from `metrics.jsonl`.

    Each metric of the evaluations has a panel, and so has the training loss; a panel has a
    curve per evaluation and one for the training batches. Damaged lines of the file are
    ignored.
    """
    workdir = epath.Path(workdir)
    curves = _read_curves(workdir / "metrics.jsonl")
    if not curves:
        return
    # Imported here: it takes a second, and only the end of a run needs it.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = dict.fromkeys(name for lines in curves.values() for name in lines)
    colors = {name: f"C{i}" for i, name in enumerate(names)}  # the same in all panels
    columns = min(len(curves), 3)
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.4 * rows), layout="constrained")
    for i, (metric, lines) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for name, points in lines.items():
            steps, values = zip(*points, strict=True)
            # A single point is invisible without a marker.
            marker = "o" if len(points) <= 30 else ""
            (line,) = axes.plot(steps, values, label=name, color=colors[name], lw=1.4)
            line.set(marker=marker, markersize=3)
        axes.set_title(metric.replace("_", " "), loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5]))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    (workdir / "curves.png").write_bytes(picture.getvalue())


def _read_curves(path: epath.Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """{metric: {"train" or evaluation: [(step, value), ...]}}; a null is a gap."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in read_records(path)[0]:
        for name, value in record.items():
            evaluation, _, metric = name.rpartition("/")
            if evaluation and (metric == "loss" or evaluation != "train"):
                points = curves.setdefault(metric, {}).setdefault(evaluation, [])
                points.append((record["step"], math.nan if value is None else value))
    return curves
