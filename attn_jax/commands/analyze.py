"""`python -m attn_jax analyze`: figures of a finished run, from its folder alone."""

import argparse
import json
from collections.abc import Sequence

from attn_jax import commands
from attn_jax.analysis.figures import analyze
from attn_jax.analysis.generalization import draw_generalization
from attn_jax.analysis.replacing import measure_replacement, parse_heads


def main(arguments: Sequence[str]) -> None:
    """Prints the path of every figure, or the effect of `--replace`."""
    parser = commands.make_parser("analyze", "Draw what a run's model attends to.")
    commands.add_checkpoint_arguments(parser)
    parser.add_argument(
        "--examples", type=int, default=4, help="how many to draw; default 4"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="image files or folders to look at, instead of examples of the run's data",
    )
    parser.add_argument(
        "--text", help="a sentence to look at, instead of examples of the run's data"
    )
    parser.add_argument(
        "--heads",
        action="store_true",
        help="instead of the figures, over how many tokens each head averages: heads.png, "
        "heads.json; with --step=all, over all checkpoints that the run kept",
    )
    parser.add_argument(
        "--replace",
        metavar="LAYER.HEAD,...",
        help="instead of the figures, the evaluations with these heads averaging uniformly, "
        "and without: one JSON object; 0.0,0.1 are two heads of block 0",
    )
    parser.add_argument(
        "--objects",
        metavar="N,...",
        help="of slots, instead of the figures, FG-ARI on new images with so many objects, after "
        "each of --iterations: generalization.png, generalization.json",
    )
    parser.add_argument(
        "--iterations", type=int, default=5, help="with --objects; default 5"
    )
    commands.add_set_argument(parser)
    parser.add_argument(
        "--by",
        choices=("average", "gaussian"),
        help="with --replace: an average over the tokens (default), or Gaussian weights over "
        "their positions, fitted to the head in 64 training examples",
    )
    parser.add_argument("--out", help="folder of the figures; default WORKDIR/analysis")
    # argparse takes only one word after "=", but --images=A B C should mean three files.
    words: list[str] = []
    for argument in arguments:
        one = not argument.startswith("--images=")
        words += [argument] if one else argument.split("=", 1)
    commands.parse_and_run(parser, run, words)


def run(options: argparse.Namespace) -> list[str]:
    if options.replace is not None:
        heads = parse_heads(options.replace)
        effect = measure_replacement(
            options.workdir,
            options.step,
            options.params,
            heads,
            by=options.by or "average",
            trust=options.trust,
        )
        return [json.dumps(effect)]
    if options.by is not None:
        raise ValueError(f"--by={options.by} needs --replace; name the heads there.")
    if options.objects is not None:
        files = draw_generalization(
            options.workdir,
            options.step,
            options.params,
            objects=parse_numbers(options.objects),
            iterations=options.iterations,
            out=options.out,
            overrides=commands.parse_settings(options.set),
            trust=options.trust,
        )
        return [str(file) for file in files]
    files = analyze(
        options.workdir,
        options.step,
        options.params,
        examples=options.examples,
        images=options.images,
        text=options.text,
        heads=options.heads,
        out=options.out,
        overrides=commands.parse_settings(options.set),
        trust=options.trust,
    )
    return [str(file) for file in files]


def parse_numbers(text: str) -> list[int]:
    """The whole numbers of a list such as 2,3,4.

    Raises:
        ValueError: it is no such list.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--objects={text} must be numbers, such as --objects=2,3,4."
        ) from error
