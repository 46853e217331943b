"""Draws the figures of a run, from its folder alone.

The figures of an architecture are in the file of this folder that has the same name as its
file in `attn_jax/models`: `analysis/vit.py` is for `models/vit`. It provides

    draw(module, variables, inputs, *, batch, assets, folder) -> paths of the files

with the model's inputs [B, ...], the batch that they come from (with labels, and "captions": what is
known of each row, in two lines), and the run's assets as {file name: text}. It may set `IMAGE_FILES = True` if the task's records may be
image files; `analyze --images` then accepts them.
"""

import importlib
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from attn_jax import workdir
from attn_jax.analysis import attention_maps
from attn_jax.analysis.heads import Heads, draw_heads, draw_training, measure_maps
from attn_jax.checkpoint_reader import CheckpointReader
from attn_jax.data import pipeline
from attn_jax.data.files import FolderImages, list_images
from attn_jax.evaluation import make_key
from attn_jax.folder import expand_local, resolve_folder
from attn_jax.restore import load_settings, restore
from attn_jax.step import prepare_batch
from attn_jax.tasks.classify import Classify

LONGEST = 24  # characters of a name in a caption


def analyze(
    directory: str,
    step: int | str = "latest",
    params: str | None = None,
    *,
    examples: int = 4,
    images: Sequence[str] = (),
    text: str | None = None,
    heads: bool = False,
    out: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> list[pathlib.Path]:
    """Writes the figures of a run's architecture; returns their paths.

    Args:
        examples: number of examples to draw, from the split of the last evaluation. For
            text, the shortest of them is drawn. For a folder of `images`, its first files.
        images: image files or folders to draw instead, preprocessed as in an evaluation.
            The run's data is then not read.
        text: a sentence to draw instead, in which [MASK] stands for words to fill in.
        heads: write heads.png and heads.json instead: over how many tokens each head averages,
            see `attn_jax.analysis.heads`. Any model that sows its attention has them. With
            step="all", heads_by_step.png and .json, over all checkpoints of the run.
        out: folder of the figures. None: DIR/analysis.
        overrides: {"task.num_slots": 7, ...}: changes to the run's config, as for `restore`.

    Raises:
        ValueError: the folder holds no run, or no checkpoint of that step; the model has
            no figures; `examples` is below 1; one of `images` does not exist or is not an
            image; the model's task does not read image files.
    """
    if examples < 1:
        raise ValueError(f"--examples={examples} must be 1 or more.")
    if images and text is not None:
        raise ValueError("--images and --text exclude each other; give one of them.")
    settings, _ = load_settings(directory, overrides, trust)
    steps: list[int | str] = [step]
    if step == "all":
        steps = list_steps(directory, heads)
    module, variables, task = restore(
        directory, steps[0], params, overrides, trust=trust
    )
    drawing = None if heads and not images else find_drawing(module)
    if images:
        if not getattr(drawing, "IMAGE_FILES", False):
            raise ValueError(
                f"--images={images[0]}: the task {type(task).__name__} of {directory} does "
                "not read image files. Leave out --images to draw "
                "examples of the run's data."
            )
        source = open_image_files(images, examples)
        batch = make_batch(task, source, len(source))
    elif text is not None:
        batch = make_text_batch(task, text)
    else:
        source = task.source(choose_split(settings))
        batch = make_batch(task, source, examples)
    inputs = task.inputs(batch)
    folder = expand_local(out or resolve_folder(directory) / "analysis")
    if heads or drawing is None:
        mask = np.asarray(inputs["mask"]) if "mask" in inputs else None
        found: dict[int | str, dict[str, Heads]] = {}
        for at in steps:
            if found:
                variables = restore(directory, at, params, overrides, trust=trust)[1]
            found[at] = measure_maps(attention_maps(module, variables, **inputs), mask)
        if step == "all":
            return draw_training({int(at): found[at] for at in steps}, folder)
        return draw_heads(found[step], folder)
    if text is None:
        batch["captions"] = caption_rows(
            module, variables, task, batch, source, labeled=not images
        )
    return drawing.draw(
        module,
        variables,
        inputs,
        batch=batch,
        assets=workdir.load_assets(directory),
        folder=folder,
    )


def choose_split(settings: Any) -> str:
    """The split of the last evaluation of a run's config; "train" if it has none."""
    return ["train", *(section.split for section in settings.evals.values())][-1]


def list_steps(directory: str, heads: bool) -> list[int | str]:
    """The steps of all checkpoints of a run, newest first, for `heads`."""
    if not heads:
        raise ValueError(
            "--step=all needs --heads; the figures are those of one checkpoint."
        )
    checkpoints = CheckpointReader(directory)
    try:
        return [*checkpoints.steps()] or ["latest"]  # `restore` says that there is none
    finally:
        checkpoints.close()


def find_drawing(module: nn.Module) -> ModuleType:
    """The file of this folder with the figures of a module's architecture.

    Raises:
        ValueError: there is none.
    """
    parent, _, rest = type(module).__module__.partition("models.")
    name = f"attn_jax.analysis.{rest.split('.')[0]}"
    if parent != "attn_jax." or importlib.util.find_spec(name) is None:
        raise no_figure(module)
    return importlib.import_module(name)


def no_figure(module: nn.Module) -> ValueError:
    return ValueError(
        f"{type(module).__name__} has no figure yet; attn_jax.analysis.attention_maps "
        "gives its attention as arrays."
    )


def open_image_files(given: Sequence[str], count: int) -> FolderImages:
    """The given image files, and the first `count` files of given folders, as records.

    Raises:
        ValueError: a file or folder does not exist, or a folder holds no images.
    """
    paths: list[str] = []
    for name in given:
        path = expand_local(name)
        if not path.exists():
            raise ValueError(
                f"--images={name} does not exist; give image files or a folder of them."
            )
        if not path.is_dir():
            paths.append(str(path))
            continue
        try:
            paths += list_images(path)[:count]
        except ValueError as error:
            raise ValueError(f"--images: {error}") from error
    return FolderImages(pathlib.Path(), paths, np.zeros(len(paths), np.int64), ())


def make_text_batch(task: Any, text: str) -> dict[str, Any]:
    """The first row of a text that the user gave, as a batch.

    Raises:
        ValueError: the task reads no text, or not this one.
    """
    read = getattr(task, "read_input", None)
    if read is None or hasattr(task, "expand_input"):
        raise ValueError(
            f"--text: the task {type(task).__name__} reads no text; leave out --text."
        )
    _, rows = read(text)
    batch = jax.device_put({name: array[None] for name, array in rows[0].items()})
    return dict(prepare_batch(task, batch, make_key(0), train=False))


def make_batch(task: Any, source: Any, count: int) -> dict[str, Any]:
    """The first rows of a source as one batch, preprocessed as in an evaluation."""
    plan, size = pipeline.plan_evaluation(source)
    rows = [
        pipeline.evaluation_row(source, task, plan, size, i)
        for i in range(min(count, size))
    ]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch = jax.device_put(stacked)
    return dict(prepare_batch(task, batch, make_key(0), train=False))


def caption_rows(
    module: nn.Module,
    variables: Mapping[str, Any],
    task: Any,
    batch: Mapping[str, Any],
    source: Any,
    *,
    labeled: bool,
) -> list[str]:
    """What is known of each row: the prediction, the true label, the name of the record.

    Args:
        labeled: whether the labels of the batch are true ones.
    """
    rows = len(next(iter(batch.values())))
    names = [""] * rows
    if not hasattr(source, "rows"):
        names = [str(source[i].get("name", "")) for i in range(rows)]
    # The end of a name tells more than its folder.
    captions = [shorten(pathlib.PurePath(name).name) for name in names]
    if not isinstance(task, Classify):
        return captions
    inputs = task.inputs(batch)
    logits = jax.device_get(jax.jit(module.apply)(variables, **inputs)["logits"])
    for row in range(rows):
        found = task.describe_outputs({}, [], [{"logits": logits[row]}], 1)
        [best] = found["predictions"]
        said = f"{shorten(best['label'])}, {100 * best['probability']:.0f} %"
        if labeled:
            true = task.name_label(np.asarray(batch["labels"][row]))
            said += f" (true: {shorten(true)})"
        captions[row] = "\n".join(part for part in (said, captions[row]) if part)
    return captions


def shorten(name: str) -> str:
    """The name, or its last characters if it is too long for a caption."""
    return name if len(name) <= LONGEST else "..." + name[3 - LONGEST :]
