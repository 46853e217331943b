"""Is a resumed run bit-equal to one that was never stopped, and is a second run equal to the first?

    python benchmarks/exact_restart.py                  (on a GPU; a CPU gives equality in every row)

Trains a recipe with a checkpoint half-way, to its end (A). A copy of the folder without its last
checkpoint is resumed (B); the same command trains in a new folder (C). The rows differ in what XLA
may choose anew in every process: with the compilation cache, programs are compiled once; without
it, kernels are chosen by timing in every process. Reports how many arrays of the last checkpoint (parameters,
optimizer state, averages) differ from A, and the seconds of a step.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import commands
import report

NO_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
# name: (environment, settings)
MODES = {
    "as it comes": ({}, []),
    "without the compilation cache": (NO_CACHE, []),
    "without cache, deterministic=True": (NO_CACHE, ["deterministic=True"]),
    "without cache, --xla_gpu_autotune_level=0": (
        {**NO_CACHE, "XLA_FLAGS": "--xla_gpu_autotune_level=0"},
        [],
    ),
    "without cache, both": (
        {**NO_CACHE, "XLA_FLAGS": "--xla_gpu_autotune_level=0"},
        ["deterministic=True"],
    ),
}


def train(options: argparse.Namespace, mode: str, workdir: pathlib.Path) -> None:
    environment, settings = MODES[mode]
    settings = [
        f'duration="{options.steps} steps"',
        f'checkpoint_every="{options.steps // 2} steps"',
        f"model.dtype={options.dtype}",
        'schedule.warmup="2 steps"',
        'log_every="1 steps"',
        *settings,
    ]
    cache = {"XDG_CACHE_HOME": str(workdir.parent / "cache")}
    command = [sys.executable, str(report.ROOT / "train.py"), f"--workdir={workdir}"]
    command += [f"--config={report.ROOT / options.recipe}"]
    command += [f"--config.{setting}" for setting in settings]
    subprocess.run(
        command,
        check=True,
        env={**os.environ, **cache, **environment},
        stdout=sys.stderr,
    )


def read_leaves(workdir: pathlib.Path, step: int) -> dict[str, int]:
    record = workdir / "checkpoints" / str(step) / "record" / "metadata"
    leaves = json.loads(record.read_text())["leaves"]
    return {name: leaf["digest"] for name, leaf in leaves.items()}


def try_mode(options: argparse.Namespace, mode: str, folder: pathlib.Path) -> str:
    runs = {name: folder / name for name in "ABC"}
    train(options, mode, runs["A"])
    shutil.copytree(runs["A"], runs["B"])
    shutil.rmtree(runs["B"] / "checkpoints" / str(options.steps))
    train(options, mode, runs["B"])
    train(options, mode, runs["C"])
    leaves = {name: read_leaves(run, options.steps) for name, run in runs.items()}
    differ = [
        sum(leaves["A"][leaf] != leaves[name][leaf] for leaf in leaves["A"])
        for name in "BC"
    ]
    rates = [
        record["examples_per_second"]
        for record in commands.read_records(runs["C"])
        if "examples_per_second" in record
    ]
    half = rates[len(rates) // 2 :]  # the first steps are those after the compilation
    return (
        f"| {mode} | {differ[0]} of {len(leaves['A'])} | {differ[1]} of {len(leaves['A'])} "
        f"| {statistics.median(half):,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="configs/bert/pretrain_stdlib.py")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=1, help="rows at the same time")
    parser.add_argument("--modes", type=int, default=len(MODES), help="the first rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        modes = list(MODES)[: options.modes]
        folders = [pathlib.Path(root) / str(n) for n in range(len(modes))]
        for folder in folders:
            folder.mkdir()
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            rows = list(pool.map(lambda m, f: try_mode(options, m, f), modes, folders))
    beside = f", {options.jobs} rows at the same time" if options.jobs > 1 else ""
    report.write(
        "exact restart",
        [
            "### Bit-equal restarts",
            "",
            f"`python benchmarks/exact_restart.py --recipe={options.recipe} --steps={options.steps} "
            f"--dtype={options.dtype}` ({report.provenance()}{beside}).",
            "",
            "| | arrays that differ after resuming | in a second run | examples/s |",
            "|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
