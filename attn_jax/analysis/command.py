"""`python -m attn_jax analyze`: figures of a finished run, from its folder alone."""

import argparse
import sys
from collections.abc import Sequence

from attn_jax import checkpoint
from attn_jax.analysis.figures import analyze


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
    # argparse takes one word after "="; --images=A B C means three files as well.
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
    except (ValueError, OSError, checkpoint.Damaged) as error:
        sys.exit(f"error: {error}")
    for file in files:
        print(file)
