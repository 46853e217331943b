"""Writes the losses of every recipe's debug run, and compares them with another commit's.

    python benchmarks/debug_losses.py --out=before.json
    python benchmarks/debug_losses.py --out=after.json --compare=before.json

A refactoring must not change a bit; use `--rtol=1e-5` for a change of rounding. Both files must
be from the same machine, as XLA generates other code for other processors. cpu_losses.json has
the losses of four recipes, for benchmarks/accelerator.py.
"""

import argparse
import json
import pathlib
import platform
import sys
import tempfile

import jax
import report

sys.path.insert(0, str(report.ROOT))

import train
from attn_jax import config as config_lib

TIMES = ("seconds", "examples_per_second", "data_wait_fraction", "mfu")


def recipes() -> list[str]:
    return [
        str(path.relative_to(report.ROOT))
        for path in sorted(report.ROOT.glob("configs/*/*.py"))
        if not path.name.startswith("_")
    ]


def debug_records(recipe: str) -> list[dict]:
    """Trains the recipe's debug variant; returns what it logs, without times."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_lib.load(
            f"{report.ROOT / recipe}:debug", ['log_every="1 steps"']
        )
        train.train(config, folder)
        lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


def difference(ours: list[dict], theirs: list[dict]) -> float:
    """Returns the largest relative difference of two runs; inf if their keys differ."""
    if len(ours) != len(theirs):
        return float("inf")
    largest = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.keys() != b.keys():
            return float("inf")
        for name in a:
            if a[name] != b[name]:
                largest = max(largest, abs(a[name] - b[name]) / max(abs(b[name]), 1e-9))
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--compare", metavar="FILE")
    parser.add_argument("--recipe", action="append", help="only these")
    parser.add_argument("--rtol", type=float, default=0.0)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 1)
    found = {recipe: debug_records(recipe) for recipe in options.recipe or recipes()}
    # One recipe trains on the documentation of this Python version.
    stored = {"python": platform.python_version(), **found}
    pathlib.Path(options.out).write_text(json.dumps(stored, indent=1) + "\n")
    if options.compare is None:
        return
    before = json.loads(pathlib.Path(options.compare).read_text())
    off = {name: difference(found[name], before[name]) for name in found}
    for name, value in off.items():
        print(f"{name}: {'identical' if value == 0 else f'{value:.2e} relative'}")
    if max(off.values()) > options.rtol:
        sys.exit("error: losses differ")


if __name__ == "__main__":
    main()
