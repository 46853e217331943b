"""Exports a checkpoint with all that lies beside it: names, statistics, vocabulary, metrics."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from attn_jax.convert import (
    export,
    is_run,
    label_names,
    load_pretrained,
    load_with_task,
    pixel_statistics,
)
from attn_jax.convert.bert.write import read_pieces, write_tokenizer
from attn_jax.convert.card import write_card
from attn_jax.convert.inference import describe_row, make_inference
from attn_jax.convert.onnx import write_onnx
from attn_jax.convert.programs import write_stablehlo
from attn_jax.convert.vit.fit import Size
from attn_jax.data.vocabulary import read_vocabulary
from attn_jax.folder import expand_local
from attn_jax.models.bert import Bert
from attn_jax.restore import open_saved

PROGRAMS = {"stablehlo": write_stablehlo, "onnx": write_onnx}
# {format: the suffix of the file that is written; "": it is a folder}
SUFFIXES = {
    "hf": "",
    "timm": ".safetensors",
    "stablehlo": ".stablehlo",
    "onnx": ".onnx",
}


class Source(NamedTuple):
    """A checkpoint that is exported.

    Attributes:
        path: a run's folder, or what `load_pretrained` reads.
        task: None: it is of no run, and not needed.
        record: of the run's checkpoint; None: it is of no run.
        assets: {file name: text} of a run.
    """

    path: str
    module: nn.Module
    variables: dict[str, Any]
    task: Any
    record: Mapping[str, Any] | None
    assets: Mapping[str, str]


def export_checkpoint(
    path: str,
    format: str,
    out: str | pathlib.Path,
    *,
    step: int | str = "latest",
    params: str | None = None,
    image_size: Size | None = None,
    trust: Sequence[str] = (),
) -> None:
    """Writes a run or another checkpoint for other libraries.

    "hf" is a folder for transformers, with a model card; "timm" is FILE.safetensors with FILE.json.
    "stablehlo" and "onnx" are FILE with the parameters inside, for batches of any size; FILE.json
    names inputs, outputs, normalization and classes, and the tokenizer of a BERT lies beside.

    Args:
        path: a run's folder, or what `load_pretrained` reads.
        out: what is written: a folder for "hf", else a file with the suffix in `SUFFIXES`.
        step, params, trust: of a run, as for `restore`.
        image_size: for "hf" and "timm", see `attn_jax.convert.export`. None: that of the run.

    Raises:
        ValueError: the checkpoint cannot be read; the format has no place for a part of the model;
            `out` has another suffix; "onnx" needs a package that is not installed.
    """
    file = expand_local(out)
    if SUFFIXES[format] and file.suffix != SUFFIXES[format]:
        raise ValueError(f"{out} must be FILE{SUFFIXES[format]} for {format}.")
    if image_size is not None and format in PROGRAMS:
        raise ValueError(
            f"image_size is for hf and timm; {format} has the size of the task's images."
        )
    if is_run(path):
        run = open_saved(path, step, params, trust=trust)
        variables = {"params": run.params}
        source = Source(path, run.module, variables, run.task, run.record, run.assets)
    elif format in PROGRAMS:
        source = Source(path, *load_with_task(path), None, {})
    else:
        source = Source(path, *load_pretrained(path), None, None, {})
    if format in PROGRAMS:
        write_program(source, format, file)
    else:
        write_weights(source, format, file, image_size)


def write_weights(
    source: Source, format: str, out: pathlib.Path, image_size: Size | None
) -> None:
    """Writes what transformers or timm open, with all that the checkpoint knows."""
    module = source.module
    size = image_size or getattr(source.task, "image_size", None)
    size = tuple(size) if isinstance(size, list) else size
    mean, std = pixel_statistics(source.path) or (None, None)
    export(
        module,
        source.variables,
        out,
        format,
        image_size=size,
        labels=name_classes(source.path, count_classes(module)),
        mean=mean,
        std=std,
        vocabulary=read_vocabulary(source.path) if isinstance(module, Bert) else None,
    )
    if format == "hf":
        name = pathlib.PurePath(source.path).name
        write_card(out, name, module, source.variables, source.record)


def write_program(source: Source, format: str, out: pathlib.Path) -> None:
    """Writes StableHLO or ONNX, and beside it what the inputs and classes are."""
    record, module = source.record, source.module
    row = describe_row(source.task) if record is None else record["row"]
    inference = make_inference(module, source.variables, source.task, row)
    PROGRAMS[format](inference, out, describe_inputs(source))
    if isinstance(module, Bert):
        vocabulary = read_vocabulary(source.path)
        pieces, lower_case = read_pieces(module, vocabulary)
        if pieces is not None:
            write_tokenizer(out.parent, pieces, lower_case, module.max_positions)


def describe_inputs(source: Source) -> dict[str, Any]:
    """How a program's inputs are made from raw ones, and the names of its outputs' classes."""
    about: dict[str, Any] = {"model": type(source.module).__name__}
    statistics = pixel_statistics(source.path)
    if statistics is not None:
        mean, std = statistics
        about["normalization"] = {
            "images": "(pixels / 255 - mean) / std",
            "mean": mean,
            "std": std,
        }
    for text in source.assets.values():
        known = json.loads(text) if text.lstrip().startswith("{") else {}
        if "deviation" in known:
            about["normalization"] = {
                "features": "(features - mean) / deviation",
                "mean": known["mean"],
                "deviation": known["deviation"],
            }
        if known.get("labels"):
            about["labels"] = known["labels"]
    labels = name_classes(source.path, count_classes(source.module))
    return about | ({} if labels is None else {"labels": labels})


def count_classes(module: nn.Module) -> int:
    """The outputs that can have names: classes or tags; 0 if there are none."""
    head = getattr(module, "head", None)
    for owner, field in (
        (module, "num_classes"),
        (head, "num_classes"),
        (head, "num_tags"),
    ):
        if number := getattr(owner, field, 0):
            return number
    return 0


def name_classes(source: str, number: int) -> list[str] | None:
    """The class names of a checkpoint; outputs beyond them are called LABEL_i.

    None: the checkpoint has no names, or its model no head.
    """
    names = label_names(source)
    if not names or not number:
        return None
    return [*names, *(f"LABEL_{i}" for i in range(len(names), number))]
