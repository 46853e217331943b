"""ViT against ResNet at 1 %, 10 % and 100 % of MNIST: accuracy against the number of images.

    python benchmarks/data_scaling.py --data=mnist.npz --seeds=0

The question of the ViT paper's section 4.3, at a size that two cores can answer. All runs of a
recipe have the same number of steps, batch size, crop and learning-rate schedule, so only the
number of different images differs. Each is evaluated once, on the test images, at the end.
The runs are folders under --out: after an interruption, the same command goes on, and trains
nothing twice.
"""

import argparse
import pathlib
import statistics

import commands
import report
from matplotlib.figure import Figure

FIGURE = report.ROOT / "docs" / "figures" / "data_scaling.png"
RECIPES = {"ViT": "configs/vit/mnist.py:base", "ResNet": "configs/vit/resnet.py:mnist"}


def run(
    name: str, examples: int, seed: int, options: argparse.Namespace
) -> tuple[float, float]:
    """Trains one run; returns (test accuracy, seconds of training)."""
    workdir = options.out.resolve() / f"{name}-{examples}-{seed}"
    settings = [
        f"task.data={options.data}",
        "task.holdout=0",  # nothing is chosen, so nothing is held out
        f"task.examples={examples}",
        f'duration="{options.steps} steps"',
        f'schedule.warmup="{options.steps // 10} steps"',
        'evals={"test": {"split": "test", "batch_size": 500, "every": null}}',
        "keep_best=null",
        f'checkpoint_every="{options.steps // 4} steps"',
        "task.label_smoothing=0.1",
        "ema_decay=0.999",
        f"seed={seed}",
    ]
    commands.train(RECIPES[name], workdir, settings)
    accuracy = commands.evaluate(workdir)["test/accuracy"]
    return accuracy, commands.count_seconds(workdir)


def draw(table: dict[str, dict[int, list[float]]]) -> None:
    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, row in table.items():
        sizes = list(row)
        axes.plot(
            sizes, [statistics.mean(row[n]) for n in sizes], marker="o", label=name
        )
        for size, values in row.items():
            axes.plot([size] * len(values), values, ".", color="gray", ms=3)
    axes.set_xscale("log")
    axes.set_xlabel("training images")
    axes.set_ylabel("test accuracy")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--sizes", default="600,6000,60000")
    parser.add_argument("--out", default="runs/data_scaling", type=pathlib.Path)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    table: dict[str, dict[int, list[float]]] = {name: {} for name in RECIPES}
    rows = []
    for size in sizes:
        for name in RECIPES:
            runs = [run(name, size, seed, options) for seed in seeds]
            table[name][size] = [accuracy for accuracy, _ in runs]
            accuracies = ", ".join(f"{accuracy:.2%}" for accuracy, _ in runs)
            seconds = ", ".join(f"{seconds:.0f}" for _, seconds in runs)
            rows.append(f"| {size:,} | {name} | {accuracies} | {seconds} |")
    draw(table)
    command = (
        f"python benchmarks/data_scaling.py --data={pathlib.Path(options.data).name}"
    )
    command += f" --seeds={options.seeds} --steps={options.steps}"
    if options.sizes != parser.get_default("sizes"):
        command += f" --sizes={options.sizes}"
    report.write(
        "data scaling",
        [
            "### ViT against ResNet, by the number of training images (MNIST)",
            "",
            f"`{command}`",
            f"({report.provenance()})",
            "",
            f"{options.steps:,} steps of 128 images each; averaged parameters at the last step.",
            "",
            f"| training images | model | test accuracy, seeds {options.seeds} | seconds |",
            "|---" * 4 + "|",
            *rows,
            "",
            f"![test accuracy by training images](figures/{FIGURE.name})",
        ],
    )


if __name__ == "__main__":
    main()
