"""What a recipe reaches, and how long it trains, over seeds, as a user would run it.

    python benchmarks/accuracy.py --config=configs/vit/digits.py --seeds=0,1,2
    python benchmarks/accuracy.py --config=configs/vit/mnist.py --seeds=0 \
        --set task.data=mnist.npz
    python benchmarks/accuracy.py --config=configs/hopfield/digit_bags.py \
        --metrics=test/auc,test/accuracy

Each seed is a run of train.py in a folder of its own under --out, then `evaluate`, of the
best checkpoint where the recipe ranks them, else of the last; a run that is there already is
only evaluated, its time read from its log.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import report


def run(
    config: str, settings: list[str], seed: int, workdir: pathlib.Path
) -> dict[str, float]:
    """What `evaluate` prints, and `seconds` of the training."""
    command = [sys.executable, str(report.ROOT / "train.py"), f"--config={config}"]
    command += [f"--workdir={workdir}", f"--config.seed={seed}"]
    command += [f"--config.{setting}" for setting in settings]
    subprocess.run(command, check=True, stdout=sys.stderr)
    ranked = json.loads((workdir / "config.json").read_text())["keep_best"]
    evaluate = [sys.executable, "-m", "attn_jax", "evaluate", f"--workdir={workdir}"]
    evaluate += [f"--step={'best' if ranked else 'latest'}"]
    output = subprocess.run(evaluate, check=True, capture_output=True, text=True).stdout
    results = json.loads(output.splitlines()[-1])
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return results | {"seconds": max(json.loads(line)["seconds"] for line in lines)}


def shown(metric: str, value: float) -> str:
    """Losses as they are, shares in percent."""
    return f"{value:.3f}" if "loss" in metric else f"{value:.2%}"


def numbers_of(assets: pathlib.Path) -> list[str]:
    """The numbers that the task says of its data, such as a corpus's entropy."""
    return [
        f"{name.replace('_', ' ')} {value:,.3f}".removesuffix(".000")
        for file in sorted(assets.glob("*.json"))
        for name, value in json.loads(file.read_text()).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--metrics", default="test/accuracy", metavar="NAME/METRIC,...")
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
    mean = shown(first, statistics.mean(row[first] for row in rows))
    command = f"python benchmarks/accuracy.py --config={options.config}"
    command += f" --seeds={options.seeds}{report.settings(options.set)}"
    if options.metrics != parser.get_default("metrics"):
        command += f" --metrics={options.metrics}"
    about = numbers_of(options.out / f"{name}-{seeds[0]}" / "assets")
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
                f"| {seed} | {' | '.join(shown(m, row[m]) for m in metrics)} | "
                f"{row['step']:,} | {row['seconds']:.0f} |"
                for seed, row in zip(seeds, rows, strict=True)
            ),
        ],
    )


if __name__ == "__main__":
    main()
