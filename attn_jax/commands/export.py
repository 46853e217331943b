"""`python -m attn_jax export`: a run or another checkpoint, as files that others open."""

import argparse
import pathlib
from collections.abc import Sequence

import jax

from attn_jax import commands
from attn_jax.convert import is_run
from attn_jax.convert.checkpoints import SUFFIXES, export_checkpoint
from attn_jax.convert.description import as_size
from attn_jax.folder import expand_local


def main(arguments: Sequence[str]) -> None:
    """Prints the path that was written."""
    parser = commands.make_parser("export", "Write a model so that others open it.")
    commands.add_source_arguments(parser)
    parser.add_argument(
        "--to",
        required=True,
        choices=tuple(SUFFIXES),
        help="hf: a ViT or BERT for transformers; timm: a ViT; stablehlo, onnx: any model as a "
        "program with its parameters, for jax.export and ONNX Runtime",
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="folder for hf, else a file; default WORKDIR/export/FORMAT",
    )
    parser.add_argument(
        "--image_size",
        nargs="+",
        type=int,
        metavar="PIXELS",
        help="for hf and timm: one side, or height and width; needed if the model does not "
        "determine it",
    )
    commands.parse_and_run(parser, run, arguments)


def run(options: argparse.Namespace) -> list[str]:
    sides = options.image_size
    if sides is not None and len(sides) > 2:
        raise ValueError(f"--image_size takes one or two numbers, not {len(sides)}.")
    size = (
        sides if sides is None else as_size(sides * (3 - len(sides)), "--image_size: ")
    )
    path = options.workdir or options.checkpoint
    if not is_run(path):
        commands.check_run_flags(options, path)
    out = choose_out(options)
    if jax.process_index() == 0:
        export_checkpoint(
            path,
            options.to,
            out,
            step=options.step or "latest",
            params=options.params,
            image_size=size,
            trust=options.trust,
        )
    return [str(out)]


def choose_out(options: argparse.Namespace) -> pathlib.Path:
    """The path to write to: --out, or one below the run's folder.

    Raises:
        ValueError: there is neither --out nor a local folder of a run.
    """
    if options.out is not None:
        return expand_local(options.out)
    if options.workdir is None or "://" in options.workdir:
        raise ValueError(
            f"give --out=PATH, what to write; {options.checkpoint or options.workdir} is no local "
            "folder of a run."
        )
    folder = expand_local(options.workdir) / "export" / options.to
    suffix = SUFFIXES[options.to]
    return folder / f"model{suffix}" if suffix else folder
