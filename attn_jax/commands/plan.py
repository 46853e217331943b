"""`python -m attn_jax plan`: what a run would need on devices that are not here."""

import argparse
import json
import sys
from collections.abc import Sequence

import jax

from attn_jax import config as config_lib

OVERRIDE = "--config."


def main(arguments: Sequence[str]) -> None:
    """Prints a plan for each topology; with --json one JSON object, the last line on stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m attn_jax plan",
        description="Compile a run's train step for devices that are not here, and say whether "
        "it fits, what it sends and how long a step may take. Settings of the recipe as in "
        "training: --config.key=value.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="a recipe, as for train")
    parser.add_argument(
        "--topology",
        action="append",
        default=[],
        metavar="CHIP:SHAPE",
        help="such as v5e:4x4, v5p:4x4x4, 2*v5e:16x16 for two slices; repeatable. Default: the "
        "devices that are here",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="compile a small grid of batch sizes, remat and meshes, and rank what fits",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also run a few steps on the devices that are here, on invented data",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compile with the least effort: several times faster; memory differs by up to 13 percent",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--traceback", action="store_true", help="of an error")
    settings = [text for text in arguments if text.startswith(OVERRIDE)]
    options = parser.parse_args([a for a in arguments if a not in settings])
    for line in run(options, [text.removeprefix(OVERRIDE) for text in settings]):
        print(line)


def run(options: argparse.Namespace, settings: Sequence[str]) -> list[str]:
    if options.topology and not options.measure:
        # A plan needs no device, and must not wait for one that another process holds.
        jax.config.update("jax_platforms", "cpu")
    if options.quick:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    from attn_jax.plan import measuring, report, roofline, search, topologies

    config = config_lib.load(options.config, settings)
    wanted = [topologies.open_topology(name) for name in options.topology]
    if options.measure or not wanted:
        wanted.append(topologies.open_local())
    found, lines = [], []
    for topology in wanted:
        if options.search:
            plans = search.search(config, topology, say=say)
            found += plans
            lines += [*report.compare(plans), *search.describe_best(plans), ""]
            continue
        say(f"compiling for {topology.name} ...")
        plan = report.make_plan(config, topology)
        facts = {"recipe": options.config, "settings": list(settings)} | plan.facts
        lines += report.describe(options.config, facts)
        if options.measure and topology.name == "here":
            facts["measured"] = measuring.measure(plan)
            lines += measuring.describe(facts)
        found.append(facts)
        lines.append("")
    if options.json:
        assumptions = list(roofline.ASSUMPTIONS)
        return [json.dumps({"plans": found, "assumptions": assumptions})]
    if len(found) > 1 and not options.search:
        lines += [*report.compare(found), ""]
    return [*lines, "assumptions:", *(f"  {text}" for text in roofline.ASSUMPTIONS)]


def say(text: str) -> None:
    """Progress, on stderr: compiling takes a minute or more."""
    print(text, file=sys.stderr, flush=True)
