"""How slots do on more objects, with more slots and iterations than in training."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.patches import Rectangle

from attn_jax import sharding
from attn_jax.analysis.drawing import make_chart, save_figure
from attn_jax.analysis.figures import choose_split
from attn_jax.evaluation import Evaluation, make_key
from attn_jax.folder import expand_local, resolve_folder
from attn_jax.restore import load_settings, restore

METRIC = "fg_ari"


def draw_generalization(
    directory: str,
    step: int | str = "latest",
    params: str | None = None,
    *,
    objects: Sequence[int],
    iterations: int,
    out: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> list[pathlib.Path]:
    """Writes generalization.png and generalization.json: FG-ARI by objects and iterations.

    Every row has new images with exactly so many objects, from the split of the last
    evaluation. There are as many slots more than objects as in training.

    Args:
        objects: numbers of objects per image; one row of the heat map each.
        iterations: the most iterations; one column each from 1.
        overrides, trust: as for `restore`.

    Raises:
        ValueError: the run's task does not generate images of any number of objects; one
            of the numbers is below 1, or the images cannot hold so many.
    """
    if not objects or min(objects) < 1 or iterations < 1:
        raise ValueError(
            f"--objects={','.join(map(str, objects))} and --iterations={iterations} must be "
            "numbers from 1 on, such as --objects=2,3,4 --iterations=5."
        )
    settings, _ = load_settings(directory, overrides, trust)
    module, variables, task = restore(directory, step, params, overrides, trust=trust)
    if not hasattr(task, "num_objects"):
        raise ValueError(
            f"--objects: the task {type(task).__name__} of {directory} does not generate "
            "images of a number of objects; leave out --objects."
        )
    section = list(settings.evals.values())[-1:]
    spare = (task.num_slots or module.num_slots) - task.num_objects
    scores = []
    for number in objects:
        changed = {
            name: number
            for name in ("num_objects", "fewest_objects")
            if hasattr(task, name)
        }
        changed |= {"num_slots": max(1, number + spare), "iterations": iterations}
        evaluation = Evaluation(
            "row",
            module,
            dataclasses.replace(task, **changed, every_iteration=True),
            choose_split(settings),
            mesh=sharding.make_mesh({}, jax.local_devices()[:1]),
            batch_size=(section[0].batch_size if section else None)
            or settings.batch_size,
            key=make_key(settings.seed),
        )
        found = evaluation.run(variables["params"])
        scores.append(
            [found[f"row/{METRIC}_after_{t}"] for t in range(1, iterations + 1)]
        )
    folder = expand_local(out or resolve_folder(directory) / "analysis")
    table = {
        "metric": METRIC,
        "objects": list(objects),
        "slots": [max(1, number + spare) for number in objects],
        "iterations": list(range(1, iterations + 1)),
        "trained": {"objects": task.num_objects, "iterations": module.iterations},
        "values": scores,
    }
    picture = draw_table(table, folder / "generalization.png")
    (folder / "generalization.json").write_text(json.dumps(table, indent=1))
    return [picture, folder / "generalization.json"]


def draw_table(table: Mapping[str, Any], path: pathlib.Path) -> pathlib.Path:
    """The heat map of `draw_generalization`; a frame marks the setting of the training."""
    values = np.array(table["values"])
    rows, columns = values.shape
    fig, axes = make_chart((2.2 + 0.62 * columns, 1.4 + 0.5 * rows))
    shown = axes.imshow(values, "viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        color = "black" if value > 0.7 else "white"
        text = f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    labels = [
        f"{number} ({slots} slots)"
        for number, slots in zip(table["objects"], table["slots"], strict=True)
    ]
    axes.set_yticks(range(rows), labels)
    axes.set_xticks(range(columns), table["iterations"])
    axes.set_xlabel("iterations")
    axes.set_ylabel("objects in the image")
    trained = table["trained"]
    if (
        trained["objects"] in table["objects"]
        and trained["iterations"] in table["iterations"]
    ):
        place = (
            table["iterations"].index(trained["iterations"]) - 0.5,
            table["objects"].index(trained["objects"]) - 0.5,
        )
        axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="red", linewidth=2))
        axes.set_title("frame: as in training", fontsize=8)
    fig.colorbar(shown, ax=axes).set_label("FG-ARI")
    return save_figure(fig, path)
