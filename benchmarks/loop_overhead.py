"""Time of a step inside the loop against the bare jitted step on the same kind of batch.

    python benchmarks/loop_overhead.py --set task.data=cifar10.zip

Both run in one process, in turn; the ratio is of the medians. Loop: train.py's own
`train`, reading, augmenting, logging (no evaluation, no checkpoint in the window).
Bare: the same jitted update on one batch that lies on the device already.
"""

import argparse
import functools
import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

import jax
import report

sys.path.insert(0, str(report.ROOT))

import train
from attn_jax import config as config_lib
from attn_jax import optim, schedules, sharding, step
from attn_jax.data import pipeline


def loop_seconds(config, steps: int) -> float:
    """Median seconds a step over windows of the loop, the first left out."""
    folder = tempfile.mkdtemp()
    train.train(config, folder)
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    shutil.rmtree(folder)
    rates = [json.loads(line).get("examples_per_second") for line in lines]
    return statistics.median(config.batch_size / rate for rate in rates[1:] if rate)


def bare_seconds(config, steps: int) -> float:
    """Median seconds of the jitted update on one batch."""
    mesh = sharding.make_mesh(config.mesh)
    placement = sharding.batch_sharding(mesh)
    rows = pipeline.rows_of_process(placement, config.batch_size)
    task, model = config_lib.build(config.task), config_lib.build(config.model)
    source = task.source("train")
    batch = next(
        pipeline.training_batches(
            source, task, seed=0, batch_size=config.batch_size, rows=rows
        )
    )
    batch = pipeline.place(batch, placement, config.batch_size, rows)
    key = jax.random.key(0)
    params = jax.jit(functools.partial(step.init_params, model, task))(batch, key)
    schedule = schedules.make_schedule(
        config.schedule, total_steps=10**6, to_steps=lambda text: 0
    )
    optimizer = optim.make_optimizer(config, params, schedule)
    state = step.init_state(params, optimizer, key, None)
    update = jax.jit(
        functools.partial(
            step.train_step,
            model=model,
            task=task,
            optimizer=optimizer,
            micro_batches=config.micro_batches,
        ),
        donate_argnums=0,
    )
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
        (bare_seconds(config, options.steps), loop_seconds(config, options.steps))
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
