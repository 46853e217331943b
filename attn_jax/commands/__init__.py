"""What the commands share: common flags, and joining the cluster."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax

from attn_jax import config, runtime


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
    add_step_arguments(parser, default="latest")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that select a checkpoint of a run, or one of another library."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="folder of a run")
    source.add_argument(
        "--from",
        dest="checkpoint",
        metavar="CHECKPOINT",
        help="a file or folder of another library, as load_pretrained reads",
    )
    add_step_arguments(parser)


def add_step_arguments(
    parser: argparse.ArgumentParser, default: str | None = None
) -> None:
    """Adds the flags that select one of a run's checkpoints, and its parameters."""
    parser.add_argument(
        "--step", default=default, help="of a run: a number, latest (default) or best"
    )
    parser.add_argument(
        "--params", choices=("ema", "raw"), help="of a run; default: ema if kept"
    )


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--set`, which changes the saved config of a run; see `parse_settings`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a model.*, task.* or evals.* key of the run's config; repeatable",
    )


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """{key: value} of texts KEY=VALUE; a prefix "config." is left out."""
    overrides = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting} must read --set KEY=VALUE.")
        overrides[key.removeprefix("config.")] = config.parse(text)
    return overrides


def check_run_flags(options: argparse.Namespace, source: str) -> None:
    """Raises ValueError if a flag is given that means something only for a run's folder.

    Args:
        source: what was given instead.
    """
    given = [
        f"--{name}={value}"
        for name in ("step", "params")
        if (value := getattr(options, name, None)) is not None
    ]
    given += [f"--trust={package}" for package in options.trust]
    if given:
        verb, rest = ("are", "them") if len(given) > 1 else ("is", "it")
        raise ValueError(
            f"{', '.join(given)} {verb} for a run's folder, which {source} is not; leave "
            f"{rest} out."
        )


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
