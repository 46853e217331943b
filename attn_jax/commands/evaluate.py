"""`python -m attn_jax evaluate`: the evaluations of a run, from its folder alone."""

import argparse
import json
from collections.abc import Sequence

from attn_jax import commands, evaluate


def main(arguments: Sequence[str]) -> None:
    """Prints one JSON object, the last line on stdout."""
    parser = commands.make_parser("evaluate", "Evaluate a run from its folder.")
    commands.add_checkpoint_arguments(parser)
    commands.add_set_argument(parser)
    commands.parse_and_run(parser, run, arguments)


def run(options: argparse.Namespace) -> list[str]:
    overrides = commands.parse_settings(options.set)
    results = evaluate(
        options.workdir, options.step, options.params, overrides, trust=options.trust
    )
    return [json.dumps(results)]
