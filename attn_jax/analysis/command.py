"""`python -m attn_jax analyze`: figures of a finished run, from its folder alone."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from attn_jax import workdir
from attn_jax.analysis import bert, hopfield, slot_attention, vit
from attn_jax.data import pipeline
from attn_jax.data.files import SUFFIXES, FolderImages
from attn_jax.models.bert import Bert
from attn_jax.models.hopfield import BagClassifier
from attn_jax.models.slot_attention import SlotAttentionAutoEncoder
from attn_jax.models.vit import ViT
from attn_jax.restore import load_settings, restore


def analyze(
    directory: str,
    step: int | str = "latest",
    params: str | None = None,
    *,
    examples: int = 4,
    images: Sequence[str] = (),
    out: str | None = None,
    trust: Sequence[str] = (),
) -> list[pathlib.Path]:
    """Writes the figures of a run's architecture; returns their paths.

    Args:
        examples: how many of the split that was evaluated last are drawn; of text, the
            shortest of so many; of a folder of `images`, the first so many.
        images: image files, or folders of such, that are drawn instead, prepared as for
            an evaluation. The run's data is then not read.
        out: folder of the figures; None: DIR/analysis.

    Raises:
        ValueError: no run, no such step, or a model without a figure; `examples` is below
            1; a file of `images` is missing or no image, or the model reads none.
    """
    if examples < 1:
        raise ValueError(f"--examples={examples} must be 1 or more.")
    settings, _ = load_settings(directory, {}, trust)
    module, variables, task = restore(directory, step, params, trust=trust)
    if images:
        if not isinstance(module, ViT):
            raise ValueError(
                f"--images={images[0]}, but the {type(task).__name__} of {directory} reads "
                "no image files; only a ViT's task does. Leave out --images, and examples "
                "of the run's data are drawn."
            )
        files = image_files(images, examples)
        batch = first_rows(task, files, len(files))
    else:
        splits = [section.split for section in settings.evals.values()] or ["train"]
        batch = first_rows(task, task.source(splits[-1]), examples)
    inputs = task.inputs(batch)
    folder = pathlib.Path(out or pathlib.Path(directory) / "analysis")
    if isinstance(module, ViT):
        return vit.draw(module, variables, inputs, folder)
    if isinstance(module, Bert):
        file = pathlib.Path(directory) / "assets" / "vocab.txt"
        vocabulary = file.read_text(encoding="utf-8").splitlines()
        return bert.draw(module, variables, inputs, vocabulary, folder)
    if isinstance(module, BagClassifier):
        return hopfield.draw(module, variables, inputs, batch["labels"], folder)
    if isinstance(module, SlotAttentionAutoEncoder):
        return slot_attention.draw(module, variables, inputs, folder)
    raise ValueError(
        f"{type(module).__name__} has no figure yet; attn_jax.analysis.attention_maps "
        "gives its attention as arrays."
    )


def image_files(given: Sequence[str], count: int) -> FolderImages:
    """The files as records without a label; of a folder the first `count` by name.

    Raises:
        ValueError: no such file or folder, or a folder without images.
    """
    paths: list[str] = []
    for name in given:
        path = pathlib.Path(name).expanduser()
        if not path.exists():
            raise ValueError(
                f"--images={name} does not exist; give image files or a folder of them."
            )
        if not path.is_dir():
            paths.append(str(path))
            continue
        inside = sorted(
            str(file)
            for file in path.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not inside:
            raise ValueError(
                f"--images={name} is a folder without an image "
                f"({' '.join(sorted(SUFFIXES))}); subfolders are not searched. Give a "
                "folder that holds some, or files."
            )
        paths += inside[:count]
    return FolderImages(pathlib.Path(), paths, np.zeros(len(paths), np.int64), ())


def first_rows(task: Any, source: Any, count: int) -> dict[str, Any]:
    """The first rows of a source as one batch, prepared as for an evaluation."""
    plan = source.rows(0, 0) if hasattr(source, "rows") else None
    size = len(source) if plan is None else len(plan)
    rows = [
        pipeline.evaluation_row(source, task, plan, size, i)
        for i in range(min(count, size))
    ]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch = jax.device_put(stacked)
    if hasattr(task, "prepare"):
        return task.prepare(batch, workdir.evaluation_key(0), train=False)
    return batch


def analyze_command(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m attn_jax analyze",
        description="Draw what a run's model attends to.",
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--step", default="latest", help="a number, latest or best")
    parser.add_argument("--params", choices=("ema", "raw"))
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument(
        "--images",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="image files or folders to look at, instead of examples of the run's data",
    )
    parser.add_argument("--out", help="folder of the figures; default WORKDIR/analysis")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE")
    # After "=" argparse takes one word; --images=A B C shall be three files as well.
    spread = [
        word
        for argument in arguments
        for word in (
            argument.split("=", 1) if argument.startswith("--images=") else [argument]
        )
    ]
    options = parser.parse_args(spread)
    try:
        files = analyze(
            options.workdir,
            options.step,
            options.params,
            examples=options.examples,
            images=options.images,
            out=options.out,
            trust=options.trust,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for file in files:
        print(file)
