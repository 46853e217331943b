"""The ablations of Slot Attention: one table beside the paper's numbers.

    python benchmarks/ablations.py --steps=5000
    python benchmarks/ablations.py --steps=5000 --only=no_gru,sum --no_table    # a part of them

Each ablation is a run of tetrominoes.py:small (`configs/slot_attention/tetrominoes.py`) with one
seed, in a folder of its own under --out, then an evaluation of the test split. A run that is there
is only evaluated again, so parts may run side by side before the table is made. Warm-up and
half-life of the rate are shortened with the steps.

The paper's numbers are ARI without the background on CLEVR6, most of them read off its figures.
"""

import argparse
import pathlib
import sys

import accuracy
import report

RECIPE = "configs/slot_attention/tetrominoes.py:small"
PAPER = {  # percent
    "": 98.9,
    "sum": 25.3,
    "sum_norm": 99.0,
    "epsilon_in_divisor": 98.7,
    "softmax_over_inputs": 61.6,
    "learned_slots": 97.6,
    "no_gru": 85.1,
    "no_mlp": 98.7,
    "no_norms": 98.7,
    "soft_kmeans": 75.5,
    "no_positions": 91.3,
    "no_decay": 98.2,
    "no_warmup": 92.1,
    "temperature_1": 92.1,
    "1 iteration": 85.2,
    "2 iterations": 98.0,
    "5 iterations": 92.2,
}


def list_settings(ablation: str, steps: int) -> tuple[str, list[str]]:
    """The recipe of an ablation, and what --set changes in it."""
    settings = [f"duration={steps} steps", f"checkpoint_every={steps // 5} steps"]
    settings += [f"evals.validation.every={steps // 5} steps"]
    warmup = 0 if ablation == "no_warmup" else steps // 20
    settings += [f"schedule.warmup={warmup} steps"]
    if ablation != "no_decay":
        settings += [f"schedule.half_life={steps * 7 // 20} steps"]
    recipe = RECIPE
    if ablation.endswith(("iteration", "iterations")):
        settings += [f"model.iterations={ablation.split()[0]}"]
    elif ablation not in ("", "no_warmup"):
        recipe += f",{ablation}"
    return recipe, settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="names, with commas between; '' is the recipe")
    parser.add_argument("--no_table", action="store_true", help="train only")
    parser.add_argument("--out", default="runs/ablations", type=pathlib.Path)
    options = parser.parse_args()
    names = list(PAPER) if options.only is None else options.only.split(",")
    if unknown := set(names) - set(PAPER):
        sys.exit(f"error: unknown {unknown}; --only takes {', '.join(PAPER)}.")
    rows = {}
    for name in names:
        folder = options.out / f"{name or 'recipe'}-{options.seed}".replace(" ", "_")
        recipe, settings = list_settings(name, options.steps)
        rows[name] = accuracy.run(recipe, settings, options.seed, folder)
    if options.no_table:
        return
    base = rows.get("", {}).get("test/fg_ari")
    report.write(
        "slot ablations",
        [
            f"### Ablations of Slot Attention: tetrominoes small, {options.steps:,} steps",
            "",
            f"`python benchmarks/ablations.py --steps={options.steps} --seed={options.seed}"
            + ("`" if options.only is None else f' --only="{options.only}"`'),
            f"({report.provenance()})",
            "",
            "| ablation | test/fg_ari | less than the recipe | mbo | squared error | stripes "
            "| paper, CLEVR6, less than its default |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {name or 'the recipe'} | {row['test/fg_ari']:.2%} "
                f"| {format_points(base, row['test/fg_ari'])} | {row['test/mbo']:.2%} "
                f"| {row['test/squared_error']:.2%} | {'yes' if row['test/stripes'] else 'no'} "
                f"| {PAPER[''] - PAPER[name]:.1f} |"
                for name, row in rows.items()
            ),
        ],
    )


def format_points(base: float | None, value: float) -> str:
    return "" if base is None else f"{100 * (base - value):.1f}"


if __name__ == "__main__":
    main()
