"""Digits completed by five associative memories, side by side.

    python benchmarks/retrieval_figure.py

Stores scikit-learn's digits as 64 black or white pixels (1 or -1), then shows each memory a digit whose
lower half is unknown (0), or one with a sixth of its pixels flipped. The figure shows what each makes of
it with --stored digits; the table, how many of 100 digits it completes without a wrong pixel, by the
number of digits that it stores.
"""

import argparse
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import report

sys.path.insert(0, str(report.ROOT))

from attn_jax.analysis.drawing import make_figure, save_figure, show_image
from attn_jax.data.arrays import open_digits
from attn_jax.models.hopfield import Entmax, binary, dense, retrieve

FIGURE = report.ROOT / "docs" / "figures" / "retrieval.png"
BETA = 0.25  # of the modern and of the sparse memory
SIDE, BITS = 8, 64
FLIPPED = 11  # pixels of a noisy digit
SWEEPS = 5  # of the binary memory and of the dense ones
UPDATES = 3  # of the modern and of the sparse one
COUNTS = (5, 10, 40, 160, 640)
ASKED = 100


def complete_binary(stored: jax.Array, states: jax.Array) -> jax.Array:
    weights = binary.hebbian_weights(stored)
    return binary.update_asynchronously(weights, states, visit_pixels())


def visit_pixels() -> jax.Array:
    return jnp.tile(jnp.arange(BITS), SWEEPS)


MEMORIES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "binary": complete_binary,
    "dense, $z^4$": lambda stored, states: dense.update_dense(
        stored, states, visit_pixels(), dense.Polynomial(4)
    ),
    "dense, exp": lambda stored, states: dense.update_dense(
        stored, states, visit_pixels(), dense.Exponential()
    ),
    "modern": lambda stored, states: retrieve(stored, states, beta=BETA, steps=UPDATES),
    "sparse": lambda stored, states: retrieve(
        stored, states, beta=BETA, steps=UPDATES, member=Entmax(1.5)
    ),
}


def read_digits() -> np.ndarray:
    """The distinct training digits as pixels of 1 or -1 [N, 64], in the order of the file."""
    images = open_digits()["train"]().images.reshape(-1, BITS)
    pixels = np.where(images > 127, 1.0, -1.0).astype(np.float32)
    return pixels[np.sort(np.unique(pixels, axis=0, return_index=True)[1])]


def spoil(wholes: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The digits with an unknown lower half, and with flipped pixels."""
    halves = wholes.copy()
    halves[:, BITS // 2 :] = 0
    noisy = wholes.copy()
    for digit in noisy:
        digit[rng.choice(BITS, FLIPPED, replace=False)] *= -1
    return {"half": halves, "noisy": noisy}


def measure(digits: np.ndarray, rng: np.random.Generator) -> dict[str, dict]:
    """{state: {memory: [share of digits without a wrong pixel at each of COUNTS]}}."""
    found: dict[str, dict] = {}
    for count in COUNTS:
        stored = digits[:count]
        for kind, states in spoil(stored[:ASKED], rng).items():
            for name, complete in MEMORIES.items():
                made = jax.jit(complete)(jnp.asarray(stored), jnp.asarray(states))
                right = (np.sign(made) == stored[:ASKED]).all(axis=1).mean()
                found.setdefault(kind, {}).setdefault(name, []).append(right)
    return found


def draw(digits: np.ndarray, count: int, rng: np.random.Generator) -> None:
    stored = digits[:count]
    shown = stored[rng.choice(count, 3, replace=False)]
    states = spoil(shown, rng)
    columns = ["stored", "state", *MEMORIES]
    figure, axes = make_figure(2 * len(shown), len(columns), cell=(1.0, 1.0))
    for block, (kind, given) in enumerate(states.items()):
        made = [c(jnp.asarray(stored), jnp.asarray(given)) for c in MEMORIES.values()]
        for column, images in enumerate([shown, given, *made]):
            for row, image in enumerate(np.asarray(images)):
                ax = axes[block * len(shown) + row, column]
                title = columns[column] if block + row == 0 else ""
                show_image(ax, image.reshape(SIDE, SIDE, 1), title)
        axes[block * len(shown), 0].set_ylabel(kind, fontsize=8)
    save_figure(figure, FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stored", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    digits = rng.permutation(read_digits())
    draw(digits, options.stored, rng)
    rows = [
        f"| {kind} | {name.replace('$', '')} | "
        + " | ".join(f"{share:.0%}" for share in shares)
        + " |"
        for kind, memories in measure(digits, rng).items()
        for name, shares in memories.items()
    ]
    report.write(
        "retrieval",
        [
            "### Digits completed from a half or from noise",
            "",
            f"`python benchmarks/retrieval_figure.py` ({report.provenance()}; seed {options.seed})",
            f"Share of up to {ASKED} digits without a wrong pixel, by the number of digits stored; beta "
            f"{BETA:g}.",
            "",
            f"| state | memory | {' | '.join(map(str, COUNTS))} |",
            "|---" * (len(COUNTS) + 2) + "|",
            *rows,
            "",
            f"![digits completed by five memories that store {options.stored}](figures/{FIGURE.name})",
        ],
    )


if __name__ == "__main__":
    main()
