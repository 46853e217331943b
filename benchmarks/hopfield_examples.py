"""Trains the networks of two official examples, bit patterns and latch sequences.

    python benchmarks/hopfield_examples.py bit_patterns --seeds=0,1,2
    python benchmarks/hopfield_examples.py latch --set duration="3 epochs"

Each variant and seed is a run of train.py in a folder of its own under --out; a run that has ended
is only read. Of bit patterns the table has the test accuracy after the last epoch and the training
accuracy (with dropout) of the last 1,000 steps, beside the original's figures; of latch sequences the epoch from which on every test sequence is told rightly.
"""

import argparse
import pathlib
import statistics

import commands
import report

# (training, test) accuracy of the last epoch of 250, from the coordinates of the curves in
# ml-jku/hopfield-layers f56f929, examples/bit_pattern/resources; a single run each.
FIGURES = {
    "base": (0.880, 0.846),
    "pooling": (0.800, 0.836),
    "lookup": (0.861, 0.848),
    "base_default": (0.723, 0.564),
    "pooling_default": (0.608, 0.578),
    "lookup_default": (0.588, 0.521),
}
NAMES = {
    "base": "Hopfield",
    "pooling": "HopfieldPooling",
    "lookup": "HopfieldLayer",
}


def name_variant(variant: str) -> str:
    kind, _, default = variant.partition("_")
    return f"{NAMES[kind]}, {'defaults' if default else 'adapted'}"


def read_run(workdir: pathlib.Path) -> tuple[float, list[tuple[int, float]], float]:
    """(mean training accuracy of the last 1,000 steps, [(step, test accuracy)], seconds)."""
    records = commands.read_records(workdir)
    start = records[-1]["step"] - 1000
    late = [r for r in records if "train/accuracy" in r and r["step"] > start]
    trained = statistics.mean(record["train/accuracy"] for record in late)
    tested = [(r["step"], r["test/accuracy"]) for r in records if "test/accuracy" in r]
    return trained, tested, commands.count_seconds(workdir)


def find_solved(tested: list[tuple[int, float]]) -> int | None:
    """The number of the first evaluation after which accuracy stays 1; None: it does not."""
    wrong = [i for i, (_, accuracy) in enumerate(tested, 1) if accuracy < 1]
    solved = max(wrong, default=0) + 1
    return solved if solved <= len(tested) else None


def tabulate(recipe: str, runs: dict[str, list]) -> list[str]:
    """The rows of the table; `runs` holds the results of `read_run` for each seed."""
    if recipe == "latch":
        lines = ["| network | epoch from which on all are right |", "|---|---|"]
        for variant, results in runs.items():
            solved = (find_solved(tested) for _, tested, _ in results)
            shown = ", ".join("none" if n is None else str(n) for n in solved)
            lines.append(f"| {name_variant(variant)} | {shown} |")
        return lines
    lines = [
        "| network | training, original | test, original | training | test | test of each seed "
        "| seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, results in runs.items():
        trained = statistics.mean(result[0] for result in results)
        tested = [result[1][-1][1] for result in results]
        seconds = statistics.mean(result[2] for result in results)
        theirs = " | ".join(f"{accuracy:.1%}" for accuracy in FIGURES[variant])
        each = ", ".join(f"{accuracy:.1%}" for accuracy in tested)
        lines.append(
            f"| {name_variant(variant)} | {theirs} | {trained:.1%} "
            f"| {statistics.mean(tested):.1%} | {each} | {seconds:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=("bit_patterns", "latch"))
    parser.add_argument("--variants", default=",".join(FIGURES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", default="runs/hopfield_examples", type=pathlib.Path)
    options = parser.parse_args()
    seeds = options.seeds.split(",")
    runs: dict[str, list] = {}
    for variant in options.variants.split(","):
        for seed in seeds:
            workdir = options.out / f"{options.recipe}-{variant}-{seed}"
            recipe = f"configs/hopfield/{options.recipe}.py:{variant}"
            commands.train(recipe, workdir, [f"seed={seed}", *options.set])
            runs.setdefault(variant, []).append(read_run(workdir))
    command = f"python benchmarks/hopfield_examples.py {options.recipe}"
    for flag in ("variants", "seeds"):
        if (value := getattr(options, flag)) != parser.get_default(flag):
            command += f" --{flag}={value}"
    command += "".join(f' --set "{setting}"' for setting in options.set)
    report.write(
        f"hopfield example {options.recipe}",
        [
            f"### {options.recipe}: the networks of the official example",
            "",
            f"`{command}`",
            f"({report.provenance()}; seeds {', '.join(seeds)})",
            "",
            *tabulate(options.recipe, runs),
        ],
    )


if __name__ == "__main__":
    main()
