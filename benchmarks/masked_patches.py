"""Compares pre-training by masked patches with training from scratch.

    python benchmarks/masked_patches.py --set task.data=cifar10.zip --seeds=0,1 \
        --pretrain_steps=9000 --finetune_steps=4500

For each seed: configs/vit/masked_patches.py for P steps, then configs/vit/finetune.py for F
steps; and the latter from scratch, with the same settings, for F steps (equal fine-tuning)
and for P + F steps (equal total). Steps of both kinds have as many images and nearly the same
cost. Every run is a folder of its own under --out: after an interruption, the same command
goes on, and trains nothing twice.
"""

import argparse
import json
import pathlib
import statistics
from typing import NamedTuple

import commands
import report
from matplotlib.figure import Figure

FIGURE = report.ROOT / "docs" / "figures" / "masked_patches.png"
# Parameters of a masked-patch model that a classifier lacks.
SKIP = "patch_head/.*|mask_token"
ARMS = ("pre-trained", "scratch, equal fine-tuning", "scratch, equal total")


class Run(NamedTuple):
    """A finished run of the classifier, and its pre-training."""

    results: dict[str, float]  # at its best validation accuracy
    curve: list[tuple[int, float]]  # (step, validation accuracy)
    seconds: float
    batch_size: int
    steps: int
    earlier_steps: int = 0
    earlier_seconds: float = 0.0


def run_classifier(
    workdir: pathlib.Path, recipe: str, settings: list[str], steps: int
) -> Run:
    """Trains a classifier for `steps`, and evaluates its best checkpoint."""
    commands.train(recipe, workdir, [*settings, f'duration="{steps} steps"'])
    key = "validation/accuracy"
    records = commands.read_records(workdir)
    return Run(
        results=commands.evaluate(workdir, "best"),
        curve=[(record["step"], record[key]) for record in records if key in record],
        seconds=commands.count_seconds(workdir),
        batch_size=json.loads((workdir / "config.json").read_text())["batch_size"],
        steps=steps,
    )


def run_arms(seed: int, options: argparse.Namespace) -> dict[str, Run]:
    """Trains the three arms of a seed."""
    out = options.out.resolve() / str(seed)
    common = [f"seed={seed}", *options.set]
    pretrain = f"configs/vit/masked_patches.py:{options.variant}"
    finetune = f"configs/vit/finetune.py:{options.variant}"
    before, after = options.pretrain_steps, options.finetune_steps
    # The same cadence for all: 20 points up to the end of fine-tuning.
    every = f'evals.validation.every="{max(after // 20, 1)} steps"'
    masked = out / "masked"
    commands.train(pretrain, masked, [*common, f'duration="{before} steps"'])
    start = f"init_from={json.dumps([[str(masked), '', SKIP]])}"
    tuned = run_classifier(out / "tuned", finetune, [*common, every, start], after)
    short = run_classifier(out / "scratch_short", finetune, [*common, every], after)
    long = run_classifier(
        out / "scratch_long", finetune, [*common, every], before + after
    )
    tuned = tuned._replace(
        earlier_steps=before, earlier_seconds=commands.count_seconds(masked)
    )
    return dict(zip(ARMS, (tuned, short, long), strict=True))


def draw(runs: dict[int, dict[str, Run]]) -> None:
    """Plots validation accuracy against classification steps and against all examples."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    shown = set()
    for arms in runs.values():
        for number, (arm, run) in enumerate(arms.items()):
            steps, accuracies = zip(*run.curve, strict=True)
            examples = [(run.earlier_steps + s) * run.batch_size / 1e6 for s in steps]
            for axes, x in zip(panels, (steps, examples), strict=True):
                label = None if arm in shown else arm
                axes.plot(x, accuracies, color=f"C{number}", lw=1.2, label=label)
            shown.add(arm)
    panels[0].set_xlabel("steps with labels")
    panels[1].set_xlabel("examples in all, millions")
    panels[0].set_ylabel("validation accuracy")
    panels[0].legend(frameon=False, fontsize=9)
    for axes in panels:
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def make_row(seed: int, arm: str, run: Run) -> str:
    results = (run.results[f"{split}/accuracy"] for split in ("validation", "test"))
    spent = f"{run.seconds:.0f}"
    if run.earlier_steps:
        spent = f"{run.earlier_seconds:.0f} + {spent}"
    columns = [f"{seed}", arm, f"{run.earlier_steps:,}", f"{run.steps:,}"]
    columns += [*map("{:.2%}".format, results), f"{run.results['step']:,}", spent]
    return f"| {' | '.join(columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--variant", default="cifar10", help="of both recipes")
    parser.add_argument("--pretrain_steps", type=int, required=True)
    parser.add_argument("--finetune_steps", type=int, required=True)
    parser.add_argument("--out", default="runs/masked_patches", type=pathlib.Path)
    options = parser.parse_args()
    runs = {
        int(seed): run_arms(int(seed), options) for seed in options.seeds.split(",")
    }
    means = {
        arm: statistics.mean(
            arms[arm].results["test/accuracy"] for arms in runs.values()
        )
        for arm in ARMS
    }
    draw(runs)
    command = f"python benchmarks/masked_patches.py{report.settings(options.set)}"
    command += f" --seeds={options.seeds} --pretrain_steps={options.pretrain_steps}"
    command += f" --finetune_steps={options.finetune_steps}"
    if options.variant != parser.get_default("variant"):
        command += f" --variant={options.variant}"
    header = "seed | run | steps without labels | with labels | validation | test"
    report.write(
        "masked patches",
        [
            "### masked patches, then labels: mean test accuracy "
            + ", ".join(f"{mean:.2%} ({arm})" for arm, mean in means.items()),
            "",
            f"`{command}`",
            f"({report.provenance()})",
            "",
            "The runs differ only in their initial weights and duration; accuracies are "
            "those of the best checkpoint on validation images, seconds include the "
            "validations.",
            "",
            f"| {header} | best step | training, seconds |",
            "|---" * 8 + "|",
            *(
                make_row(seed, arm, run)
                for seed, arms in runs.items()
                for arm, run in arms.items()
            ),
            "",
            f"![validation accuracy of each run](figures/{FIGURE.name})",
        ],
    )


if __name__ == "__main__":
    main()
