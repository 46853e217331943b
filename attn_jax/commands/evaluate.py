"""`python -m attn_jax evaluate`: the evaluations of a run, from its folder alone."""

import argparse
import json
from collections.abc import Sequence

from attn_jax import commands, config, evaluate


def main(arguments: Sequence[str]) -> None:
    """Prints one JSON object, the last line on stdout."""
    parser = commands.make_parser("evaluate", "Evaluate a run from its folder.")
    commands.add_checkpoint_arguments(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a model.*, task.* or evals.* key of the run's config; repeatable",
    )
    commands.parse_and_run(parser, run, arguments)


def run(options: argparse.Namespace) -> list[str]:
    overrides = {}
    for setting in options.set:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting} must read --set KEY=VALUE.")
        overrides[key.removeprefix("config.")] = config.parse(text)
    results = evaluate(
        options.workdir, options.step, options.params, overrides, trust=options.trust
    )
    return [json.dumps(results)]
