"""GLUE tasks from a pre-trained checkpoint, beside the same model from scratch.

    python benchmarks/pretrain_novels.py --data=novels --out=runs/novels
    python benchmarks/finetune_text.py --checkpoint=runs/novels --glue=glue --tasks=SST-2,CoLA

Trains configs/bert/glue.py:TASK,4x256 once from the checkpoint and once from random parameters,
with the checkpoint's vocabulary, for each seed, and reports the task's metric on the whole
development set after the last step. Both are trained on the same --rows rows, which seed 0
draws from the official training set, for the same --epochs and with the same rate. A run
that has ended is only evaluated again.
"""

import argparse
import concurrent.futures
import functools
import pathlib
import random
import shutil
import statistics

import commands
import report

# Folder of the task: (variant of the recipe, metric, tokens of a row).
TASKS = {
    "SST-2": ("sst2", "accuracy", 64),
    "CoLA": ("cola", "matthews", 32),
    "RTE": ("rte", "accuracy", 128),
}


def sample_rows(folder: pathlib.Path, rows: int, out: pathlib.Path) -> pathlib.Path:
    """Writes a copy of a task with `rows` of its training rows."""
    out.mkdir(parents=True, exist_ok=True)
    lines = (folder / "train.tsv").read_text().splitlines(keepends=True)
    header = [] if folder.name == "CoLA" else [lines.pop(0)]  # CoLA has none
    chosen = random.Random(0).sample(lines, min(rows, len(lines)))
    (out / "train.tsv").write_text("".join([*header, *chosen]))
    shutil.copy(folder / "dev.tsv", out)
    return out


def fine_tune(
    options: argparse.Namespace, task: str, data: pathlib.Path, start: str, seed: int
) -> tuple[float, float]:
    """Returns the metric on the development set, and the seconds of the training."""
    variant, metric, length = TASKS[task]
    checkpoint = options.checkpoint.resolve()
    workdir = options.out.resolve() / f"{variant}-{start}-{seed}"
    starts = {
        "checkpoint": f'init_from=[["{checkpoint}","",""]]',
        "scratch": f"task.vocabulary={checkpoint}",
    }
    settings = [
        starts[start],
        "model.vocab_size=8000",  # those of the novels
        "task.vocab_size=8000",
        f"task.data={data}",
        f"task.sequence_length={length}",
        f'duration="{options.epochs} epochs"',
        f'schedule.warmup="{options.epochs / 10:g} epochs"',
        f"optimizer.learning_rate={options.rate}",
        f"seed={seed}",
    ]
    commands.train(f"configs/bert/glue.py:{variant},4x256", workdir, settings)
    return (
        commands.evaluate(workdir)[f"validation/{metric}"],
        commands.count_seconds(workdir),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=pathlib.Path)
    parser.add_argument("--glue", required=True, type=pathlib.Path)
    parser.add_argument("--tasks", default="SST-2,CoLA")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=int, default=8_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at the same time")
    parser.add_argument("--out", default="runs/finetune", type=pathlib.Path)
    options = parser.parse_args()
    table = []
    for task in options.tasks.split(","):
        rows = options.out.resolve() / "data" / task
        data = sample_rows(options.glue.resolve() / task, options.rows, rows)
        for start in ("scratch", "checkpoint"):
            run = functools.partial(fine_tune, options, task, data, start)
            seeds = map(int, options.seeds.split(","))
            with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
                found = list(pool.map(run, seeds))
            values = [value for value, _ in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            minutes = statistics.mean(seconds for _, seconds in found) / 60
            table.append(
                f"| {task} | {TASKS[task][1]} | {start} | {statistics.mean(values):.2%} "
                f"| {spread:.2%} | {', '.join(f'{v:.2%}' for v in values)} "
                f"| {minutes:.1f} |"
            )
    command = (
        f"python benchmarks/finetune_text.py --checkpoint={options.checkpoint.name} "
        f"--glue={options.glue.name} --tasks={options.tasks} --seeds={options.seeds} "
        f"--rows={options.rows} --epochs={options.epochs} --rate={options.rate:g}"
    )
    report.write(
        "fine-tuned text",
        [
            "### GLUE tasks from the novels' checkpoint and from scratch",
            "",
            f"`{command}`",
            f"({report.provenance()})",
            "",
            "| task | metric | start | mean | deviation | seeds | minutes a run |",
            "|---" * 7 + "|",
            *table,
        ],
    )


if __name__ == "__main__":
    main()
