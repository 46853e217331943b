"""Draws `curves.png`: the metrics of a run over its steps."""

import json
import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from etils import epath

from attn_jax.records import read_records

# The same in all pictures, so that those of two runs can be compared; other names get the rest.
COLORS = {"train": "C7", "validation": "C0", "test": "C1"}
OTHER_COLORS = ("C2", "C3", "C4", "C5", "C6", "C8", "C9")
BETTER = {"loss": "min", "accuracy": "max"}  # what to mark, besides `keep_best`

Curves = dict[str, dict[str, list[tuple[int, float]]]]


def draw_curves(workdir: epath.PathLike) -> None:
    """Draws `curves.png` from `metrics.jsonl`.

    Each metric of the evaluations has a panel, and so has the training loss; a panel has a
    curve per evaluation and one for the training batches, if they report it. Terms that equal the
    loss have none. The best value of an evaluation is marked where it is known what is better: of loss,
    accuracy and the metric of `keep_best`. Damaged lines of the file are ignored.
    """
    workdir = epath.Path(workdir)
    curves = _read_curves(workdir / "metrics.jsonl")
    if not curves:
        return
    # Imported here: it takes a second, and only the end of a run needs it.
    from matplotlib.figure import Figure

    names = dict.fromkeys(name for lines in curves.values() for name in lines)
    others = [name for name in names if name not in COLORS]
    colors = COLORS | {
        name: OTHER_COLORS[i % len(OTHER_COLORS)] for i, name in enumerate(others)
    }
    kept = _read_keep_best(workdir / "config.json")
    columns = min(len(curves), 3)
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.4 * rows + 0.3), layout="constrained")
    figure.suptitle(workdir.name, fontsize=11, x=0.01, ha="left", weight="bold")
    for i, (metric, lines) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        better = {
            name: kept.get(f"{name}/{metric}", BETTER.get(metric))
            for name in lines
            if name != "train"
        }
        draw_panel(axes, metric, lines, colors, better)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    (workdir / "curves.png").write_bytes(picture.getvalue())


def draw_panel(
    axes: Any,
    metric: str,
    lines: Mapping[str, list[tuple[int, float]]],
    colors: Mapping[str, str],
    better: Mapping[str, str | None],
) -> None:
    """The curves {name: [(step, value), ...]} of one metric.

    Args:
        better: {name: "min" or "max"}, of the curves whose best point is marked.
    """
    from matplotlib.ticker import MaxNLocator

    for name, points in lines.items():
        # A single point is invisible without a marker.
        marker = "o" if len(points) <= 30 else ""
        best = find_best(points, better.get(name))
        label = name if best is None else f"{name}, best {best[1]:.4g} at {best[0]:,}"
        look = {"color": colors[name], "lw": 1.4, "marker": marker, "markersize": 3}
        axes.plot(*zip(*points, strict=True), label=label, **look)
        if best is not None:
            axes.plot(*best, "*", color=colors[name], markersize=11, mec="white")
    axes.set_title(metric.replace("_", " "), loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5]))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def find_best(
    points: list[tuple[int, float]], better: str | None
) -> tuple[int, float] | None:
    """The first point with the "min" or "max" value; None without a number or a direction."""
    finite = [point for point in points if math.isfinite(point[1])]
    if better is None or not finite:
        return None
    sign = -1 if better == "max" else 1
    return min(finite, key=lambda point: sign * point[1])


def _read_curves(path: epath.Path) -> Curves:
    """{metric: {"train" or evaluation: [(step, value), ...]}}; a null is a gap."""
    curves: Curves = {"loss": {}}
    for record in read_records(path)[0]:
        for name, value in record.items():
            evaluation, _, metric = name.rpartition("/")
            if evaluation:
                points = curves.setdefault(metric, {}).setdefault(evaluation, [])
                points.append((record["step"], math.nan if value is None else value))
    loss = curves.pop("loss")
    shown = {
        metric: lines
        for metric, lines in curves.items()
        if lines.keys() != {"train"} and lines != loss
    }
    return {"loss": loss, **shown} if loss else shown


def _read_keep_best(path: epath.Path) -> dict[str, str]:
    """{"name/metric": "min" or "max"} of a run's `keep_best`; empty if it has none."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text()).get("keep_best")
    better, _, name = (kept or "").partition(":")
    return {name: better} if name else {}
