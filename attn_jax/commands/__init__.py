"""What the commands share: common flags, and joining the cluster."""

import argparse
from collections.abc import Callable, Sequence

import jax

from attn_jax import runtime


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of `python -m attn_jax NAME`, with the flags of all commands."""
    parser = argparse.ArgumentParser(
        prog=f"python -m attn_jax {name}", description=description, allow_abbrev=False
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package whose classes the saved config may name; repeatable",
    )
    parser.add_argument("--coordinator", help="host:port of process 0, if not detected")
    parser.add_argument(
        "--num_processes", type=int, help="with --coordinator: how many"
    )
    parser.add_argument(
        "--process_id", type=int, help="with --coordinator: which one this is"
    )
    parser.add_argument(
        "--traceback",
        action="store_true",
        help="show the traceback of an error, and the messages of libraries",
    )
    return parser


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that select a checkpoint of a run."""
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--step", default="latest", help="a number, latest or best")
    parser.add_argument("--params", choices=("ema", "raw"), help="default: ema if kept")


def parse_and_run(
    parser: argparse.ArgumentParser,
    function: Callable[[argparse.Namespace], Sequence[str]],
    arguments: Sequence[str],
) -> None:
    """Parses, joins the cluster, calls `function`; process 0 prints the lines it returns."""
    options = parser.parse_args(arguments)
    runtime.start_distributed(
        options.coordinator, options.num_processes, options.process_id
    )
    lines = function(options)
    if jax.process_index() == 0:
        for line in lines:
            print(line)
