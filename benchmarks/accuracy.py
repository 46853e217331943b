"""Test accuracy and training time of a recipe over seeds, as a user would run it.

    python benchmarks/accuracy.py --config=configs/vit/digits.py --seeds=0,1,2
    python benchmarks/accuracy.py --config=configs/vit/mnist.py --seeds=0 \
        --set task.data=mnist.npz

Each seed is a run of train.py in a folder of its own under --out, then `evaluate
--step=best`; a run that is there already is only evaluated, its time read from its log.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import report


def run(config: str, settings: list[str], seed: int, workdir: pathlib.Path) -> dict:
    """{"accuracy", "seconds" of the training, "step" of the best checkpoint}."""
    command = [sys.executable, str(report.ROOT / "train.py"), f"--config={config}"]
    command += [f"--workdir={workdir}", f"--config.seed={seed}"]
    command += [f"--config.{setting}" for setting in settings]
    subprocess.run(command, check=True, stdout=sys.stderr)
    evaluate = [sys.executable, "-m", "attn_jax", "evaluate", f"--workdir={workdir}"]
    output = subprocess.run(
        [*evaluate, "--step=best"], check=True, capture_output=True, text=True
    ).stdout
    results = json.loads(output.splitlines()[-1])
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {
        "accuracy": results["test/accuracy"],
        "step": results["step"],
        "seconds": max(json.loads(line)["seconds"] for line in lines),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", default="runs/accuracy", type=pathlib.Path)
    options = parser.parse_args()
    name = pathlib.Path(options.config.partition(":")[0]).stem
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows = [
        run(options.config, options.set, seed, options.out / f"{name}-{seed}")
        for seed in seeds
    ]
    mean = statistics.mean(row["accuracy"] for row in rows)
    command = f"python benchmarks/accuracy.py --config={options.config}"
    report.write(
        f"accuracy {name}",
        [
            f"### {name}: mean test accuracy {mean:.2%}",
            "",
            f"`{command} --seeds={options.seeds}{report.settings(options.set)}`",
            f"({report.provenance()})",
            "",
            "| seed | test accuracy | best step | training, seconds |",
            "|---|---|---|---|",
            *(
                f"| {seed} | {row['accuracy']:.2%} | {row['step']:,} | "
                f"{row['seconds']:.0f} |"
                for seed, row in zip(seeds, rows, strict=True)
            ),
        ],
    )


if __name__ == "__main__":
    main()
