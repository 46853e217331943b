"""Compares the time of a step inside the loop with that of the bare jitted step.

    python benchmarks/loop_overhead.py --set task.data=cifar10.zip

Both run in turn in one process; the ratio is that of the medians. Loop: `train.train`, which
reads, augments and logs (no evaluation, and no checkpoint in the measured windows). Bare: the
same jitted update on one batch that is already on the device.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

import commands
import jax
import report

sys.path.insert(0, str(report.ROOT))

import train
from attn_jax import config as config_lib
from attn_jax.run import prepare


def time_loop(config) -> float:
    """Returns the median seconds per step over windows of the loop but the first."""
    with tempfile.TemporaryDirectory() as folder:
        train.train(config, folder)
        records = commands.read_records(pathlib.Path(folder))
    rates = [record.get("examples_per_second") for record in records]
    return statistics.median(config.batch_size / rate for rate in rates[1:] if rate)


def time_bare(config, steps: int) -> float:
    """Returns the median seconds of the jitted update on one batch."""
    run = prepare(config)
    batch = run.place(next(run.read_batches()))
    state = run.init_state(run.init_params())
    update = run.make_update()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        state, sums = update(state, batch)
        jax.block_until_ready((state, sums))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/vit/cifar10.py")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    settings = [
        *options.set,
        "evals={}",
        "keep_best=null",
        "ema_decay=null",
        "log_every=10 steps",
        f"duration={options.steps} steps",
        "schedule.warmup=1 steps",
        f"checkpoint_every={options.steps} steps",
    ]
    config = config_lib.load(options.config, settings)
    pairs = [
        (time_bare(config, options.steps), time_loop(config))
        for _ in range(options.rounds)
    ]
    shown = report.settings(options.set)
    ratio = statistics.median(loop / bare for bare, loop in pairs)
    report.write(
        "loop overhead",
        [
            f"### Loop overhead: {ratio - 1:+.1%} on {options.config}, "
            f"batch {config.batch_size}",
            "",
            f"`python benchmarks/loop_overhead.py --steps={options.steps}{shown}` "
            f"({report.provenance()})",
            "",
            "| round | bare step, ms | step in the loop, ms | loop / bare |",
            "|---|---|---|---|",
            *(
                f"| {i} | {1e3 * bare:.1f} | {1e3 * loop:.1f} | {loop / bare:.3f} |"
                for i, (bare, loop) in enumerate(pairs, 1)
            ),
        ],
    )


if __name__ == "__main__":
    main()
