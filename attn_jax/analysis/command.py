"""`python -m attn_jax analyze`: figures of a finished run, from its folder alone."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from attn_jax import checkpoint, workdir
from attn_jax.analysis import bert, hopfield, slot_attention, vit
from attn_jax.data import pipeline
from attn_jax.models.bert import Bert
from attn_jax.models.hopfield import BagClassifier
from attn_jax.models.slot_attention import SlotAttentionAutoEncoder
from attn_jax.models.vit import ViT


def analyze(
    directory: str,
    step: int | str = "latest",
    params: str | None = None,
    *,
    examples: int = 4,
    out: str | None = None,
    trust: Sequence[str] = (),
) -> list[pathlib.Path]:
    """Writes the figures of a run's architecture; returns their paths.

    Args:
        examples: how many of the split that was evaluated last are drawn; of text, the
            shortest of so many.
        out: folder of the figures; None: DIR/analysis.

    Raises:
        ValueError: no run, no such step, or a model without a figure.
    """
    settings = workdir.settings_of(directory, {}, trust)
    workdir.check_assets(directory)
    module, variables, task = workdir.restore(directory, step, params, trust=trust)
    split = [section.split for section in settings.evals.values()][-1:] or ["train"]
    source = task.source(split[0])
    batch = first_rows(task, source, examples)
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
    parser.add_argument("--out", help="folder of the figures; default WORKDIR/analysis")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE")
    options = parser.parse_args(arguments)
    try:
        files = analyze(
            options.workdir,
            options.step,
            options.params,
            examples=options.examples,
            out=options.out,
            trust=options.trust,
        )
    except (ValueError, checkpoint.Damaged) as error:
        sys.exit(f"error: {error}")
    for file in files:
        print(file)
