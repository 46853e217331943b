"""Measures a recipe's metrics and training time over seeds, as a user would run it.

    python benchmarks/accuracy.py --config=configs/vit/digits.py --seeds=0,1,2
    python benchmarks/accuracy.py --config=configs/vit/mnist.py --seeds=0 \
        --set task.data=mnist.npz
    python benchmarks/accuracy.py --config=configs/hopfield/digit_bags.py \
        --metrics=test/auc,test/accuracy
    python benchmarks/accuracy.py --config=configs/slot_attention/tetrominoes.py:small \
        --seeds=0,1,2,3,4 --metrics=test/fg_ari,test/mbo --fail_below=0.95

Each seed is a run of train.py in a folder of its own under --out, then `evaluate` of the best
checkpoint if the recipe ranks them, else of the last. A run that has ended is only evaluated
again, and its time is read from its log. Several seeds are summed up by their mean and sample
deviation; all of them count, also those that failed (`--fail_below`, of the first metric) and
those whose slots are stripes (`stripes` of the evaluation).
"""

import argparse
import json
import pathlib
import statistics

import commands
import report


def run(
    config: str, settings: list[str], seed: int, workdir: pathlib.Path
) -> dict[str, float]:
    """Trains one seed; returns what `evaluate` prints, and `seconds` of the training."""
    commands.train(config, workdir, [f"seed={seed}", *settings])
    ranked = json.loads((workdir / "config.json").read_text())["keep_best"]
    results = commands.evaluate(workdir, "best" if ranked else "latest")
    return results | {"seconds": commands.count_seconds(workdir)}


def format_metric(metric: str, value: float) -> str:
    """Formats a loss as a number, any other metric in percent."""
    return f"{value:.3f}" if "loss" in metric else f"{value:.2%}"


def read_numbers(assets: pathlib.Path) -> list[str]:
    """Reads the numbers in the task's assets, such as a corpus's entropy."""
    return [
        f"{name.replace('_', ' ')} {value:,.3f}".removesuffix(".000")
        for file in sorted(assets.glob("*.json"))
        for name, value in json.loads(file.read_text()).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def summarize(rows: list[dict[str, float]], metrics: list[str]) -> list[str]:
    """The rows "mean" and "deviation" of the table; none of a single seed."""
    if len(rows) < 2:
        return []
    lines = []
    for name, function in (("mean", statistics.mean), ("deviation", statistics.stdev)):
        values = (format_metric(m, function(row[m] for row in rows)) for m in metrics)
        lines.append(f"| {name} | {' | '.join(values)} | | |")
    return lines


def describe_failures(
    rows: dict[int, dict[str, float]], metric: str, least: float | None
) -> list[str]:
    """A line on the seeds that failed, and one on those whose slots are stripes.

    Args:
        rows: {seed: its metrics}.
        least: a seed below it has failed; None: failures are not counted.
    """

    def line(what: str, seeds: list[int]) -> str:
        which = f" ({', '.join(map(str, seeds))})" if seeds else ""
        return f"{what}: {len(seeds)} of {len(rows)} seeds{which}."

    lines = []
    if least is not None:
        failed = [seed for seed, row in rows.items() if not row[metric] >= least]
        lines.append(line(f"Failed, {metric} below {least:.0%}", failed))
    flag = f"{metric.rpartition('/')[0]}/stripes"
    if all(flag in row for row in rows.values()):
        lines.append(line("Stripes", [seed for seed, row in rows.items() if row[flag]]))
    return lines and ["", *lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--metrics", default="test/accuracy", metavar="NAME/METRIC,...")
    parser.add_argument(
        "--fail_below", type=float, help="count seeds whose first metric is below it"
    )
    parser.add_argument("--out", default="runs/accuracy", type=pathlib.Path)
    options = parser.parse_args()
    file, _, variant = options.config.partition(":")
    name = "-".join(filter(None, [pathlib.Path(file).stem, variant]))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    metrics = options.metrics.split(",")
    rows = [
        run(options.config, options.set, seed, options.out / f"{name}-{seed}")
        for seed in seeds
    ]
    first = metrics[0]
    mean = format_metric(first, statistics.mean(row[first] for row in rows))
    command = f"python benchmarks/accuracy.py --config={options.config}"
    command += f" --seeds={options.seeds}{report.settings(options.set)}"
    if options.metrics != parser.get_default("metrics"):
        command += f" --metrics={options.metrics}"
    if options.fail_below is not None:
        command += f" --fail_below={options.fail_below:g}"
    about = read_numbers(options.out / f"{name}-{seeds[0]}" / "assets")
    report.write(
        f"accuracy {name}",
        [
            f"### {name}: {'mean ' if len(seeds) > 1 else ''}{first} {mean}",
            "",
            f"`{command}`",
            f"({report.provenance()})",
            *([f"Data: {', '.join(about)}."] if about else []),
            "",
            f"| seed | {' | '.join(metrics)} | step | training, seconds |",
            "|---" * (len(metrics) + 3) + "|",
            *(
                f"| {seed} | {' | '.join(format_metric(m, row[m]) for m in metrics)} | "
                f"{row['step']:,} | {row['seconds']:.0f} |"
                for seed, row in zip(seeds, rows, strict=True)
            ),
            *summarize(rows, metrics),
            *describe_failures(
                dict(zip(seeds, rows, strict=True)), first, options.fail_below
            ),
        ],
    )


if __name__ == "__main__":
    main()
