"""How full packed rows of BERT's pre-training are.

    python benchmarks/packing.py --data=novels --vocab_size=8000

Counts the tokens of the first rows of an epoch as they are drawn, and those of one sequence a
row, for rows of 128 and of 512 tokens.
"""

import argparse
import pathlib

import numpy as np
import report

from attn_jax.tasks.masked_lm import MaskedLM

ROWS = 2000  # that are drawn, spread over an epoch


def measure(task: MaskedLM) -> tuple[int, float]:
    """(rows in an epoch, share of their places that hold a token)."""
    source = task.source("train")
    rows = source.rows(0, 0) if task.packed else [(i,) for i in range(len(source))]
    chosen = np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int)
    drawn = [
        task.example(
            [source[record] for record in rows[row]], np.random.default_rng(row)
        )
        for row in chosen.tolist()
    ]
    return len(rows), float(np.mean([example["mask"].mean() for example in drawn]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="as config.task.data")
    parser.add_argument("--vocab_size", type=int, required=True)
    options = parser.parse_args()
    lines = []
    for size in (128, 512):
        for packed in (None, 8):
            task = MaskedLM(
                data=options.data,
                vocab_size=options.vocab_size,
                sequence_length=size,
                packed=packed,
            )
            rows, fill = measure(task)
            lines.append(f"| {size} | {packed or 'one'} | {rows:,} | {fill:.2%} |")
    report.write(
        "packing",
        [
            "### How full the rows of BERT's pre-training are",
            "",
            f"`python benchmarks/packing.py --data={pathlib.Path(options.data).name} "
            f"--vocab_size={options.vocab_size}`",
            f"({report.provenance()}; seed 0)",
            "",
            "| tokens in a row | sequences in a row, at most | rows in an epoch | places with a token |",
            "|---|---|---|---|",
            *lines,
        ],
    )


if __name__ == "__main__":
    main()
