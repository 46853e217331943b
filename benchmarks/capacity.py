"""Capacity of the associative memories: recall of random patterns against how many are stored.

    python benchmarks/capacity.py

Patterns are random bits, and there is a recall for each of up to --probes of them. The binary network
starts at the pattern and visits its bits until it rests; the share of bits that are still right falls at
0.14 patterns a bit, more sharply in larger networks. The dense networks and the modern one, all of
--bits bits, start at the pattern or with a tenth of its bits flipped, and visit each bit once (the modern
network: one update, of which the signs count); a recall counts if every bit is right.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import report
from matplotlib.figure import Figure

sys.path.insert(0, str(report.ROOT))

from attn_jax.models.hopfield import binary, dense, retrieve, theory

FIGURE = report.ROOT / "docs" / "figures" / "capacity.png"
SIZES = (100, 200, 400)  # bits of the binary network
LOADS = (0.02, 0.05, 0.08, 0.1, 0.12, 0.138, 0.16, 0.18, 0.2, 0.25, 0.3, 0.4)
SWEEPS = 20  # of the binary network, enough to rest
FLIPPED = 0.1  # of the bits

Recall = Callable[[jax.Array, jax.Array], jax.Array]  # (patterns, states) -> states


def recall_dense(
    interaction: dense.Interaction, patterns: jax.Array, states: jax.Array
) -> jax.Array:
    bits = jnp.arange(patterns.shape[1])
    return dense.update_dense(patterns, states, bits, interaction)


def recall_modern(patterns: jax.Array, states: jax.Array) -> jax.Array:
    return jnp.sign(retrieve(patterns, states, beta=1.0))


NETWORKS: dict[str, Recall] = {
    **{
        f"$z^{degree}$": functools.partial(recall_dense, dense.Polynomial(degree))
        for degree in (2, 3, 4, 5)
    },
    "exp(z)": functools.partial(recall_dense, dense.Exponential()),
    "modern, beta 1": recall_modern,
}


def predict_capacities(bits: int) -> dict[str, tuple[float, float | None]]:
    """Patterns that the theory promises: all fixed points, and reached from flipped bits.

    Polynomials: bits^(n-1) / (2 (2n-3)!! ln bits) (Krotov and Hopfield 2016); exp: 2^(bits/2), and
    exp(bits I(1 - 2 rho) / 2) for a share rho of flipped bits (Demircigil et al. 2017).
    """
    found: dict[str, tuple[float, float | None]] = {}
    for degree in (2, 3, 4, 5):
        odd = math.prod(range(1, 2 * degree - 2, 2))
        found[f"$z^{degree}$"] = (
            bits ** (degree - 1) / (2 * odd * math.log(bits)),
            None,
        )
    a = 1 - 2 * FLIPPED
    rate = ((1 + a) * math.log(1 + a) + (1 - a) * math.log(1 - a)) / 2
    found["exp(z)"] = 2 ** (bits / 2), math.exp(bits * rate / 2)
    return found


def draw_patterns(rng: np.random.Generator, count: int, bits: int) -> jax.Array:
    return jnp.asarray(rng.choice([-1.0, 1.0], (count, bits)), jnp.float32)


def flip(rng: np.random.Generator, states: jax.Array, share: float) -> jax.Array:
    """The states with this share of the bits of each flipped, at random places."""
    count = round(share * states.shape[1])
    order = rng.permuted(np.tile(np.arange(states.shape[1]), (len(states), 1)), axis=1)
    return states * jnp.asarray(np.where(order < count, -1.0, 1.0), states.dtype)


def measure_binary(rng: np.random.Generator, probes: int) -> dict[int, list[float]]:
    """{bits: the share of right bits at each of LOADS}."""

    @jax.jit
    def rest(weights: jax.Array, states: jax.Array, order: jax.Array) -> jax.Array:
        return binary.update_asynchronously(weights, states, order)

    found: dict[int, list[float]] = {}
    for bits in SIZES:
        for load in LOADS:
            patterns = draw_patterns(rng, round(load * bits), bits)
            weights, states = binary.hebbian_weights(patterns), patterns[:probes]
            sweeps = np.concatenate([rng.permutation(bits) for _ in range(SWEEPS)])
            states = rest(weights, states, jnp.asarray(sweeps))
            right = float((states == patterns[:probes]).mean())
            found.setdefault(bits, []).append(right)
    return found


def measure_networks(
    rng: np.random.Generator, bits: int, counts: list[int], probes: int
) -> dict[str, np.ndarray]:
    """{network: share of patterns that are recalled without an error [2, counts]}.

    The first row is that of starts at the pattern, the second of starts with flipped bits.
    """
    found = {name: np.zeros((2, len(counts))) for name in NETWORKS}
    for column, count in enumerate(counts):
        patterns = draw_patterns(rng, count, bits)
        probe = patterns[:probes]
        states = jnp.concatenate([probe, flip(rng, probe, FLIPPED)])
        for name, recall in NETWORKS.items():
            recalled = jax.jit(recall)(patterns, states).reshape(2, *probe.shape)
            whole = (recalled == probe[None]).all(axis=-1)
            found[name][:, column] = whole.mean(axis=-1)
    return found


def draw(
    binary_found: dict[int, list[float]],
    found: dict[str, np.ndarray],
    bits: int,
    counts: list[int],
) -> None:
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, *others = figure.subplots(1, 3)
    for size, right in binary_found.items():
        left.plot(LOADS, right, marker="o", ms=3, label=f"{size} bits")
    left.axvline(0.138, color="gray", ls="--", lw=1)
    left.text(0.145, 0.99, "0.138", color="gray", fontsize=8)
    left.set_xlabel("patterns / bits")
    left.set_ylabel("right bits")
    left.set_title("binary network", fontsize=10)
    left.legend(frameon=False)
    promised = predict_capacities(bits)
    titles = f"{bits} bits, from the pattern", "from a tenth of the bits flipped"
    for row, (axes, title) in enumerate(zip(others, titles, strict=True)):
        for number, (name, share) in enumerate(found.items()):
            color = f"C{number}"
            axes.plot(counts, share[row], marker="o", ms=3, color=color, label=name)
            if (limit := promised.get(name, (None, None))[row]) is not None:
                axes.axvline(limit, color=color, ls="--", lw=1)
        axes.set_xscale("log")
        axes.set_xlabel("patterns (dashed: theory)")
        axes.set_ylabel("recalled without an error")
        axes.set_title(title, fontsize=10)
    others[1].legend(frameon=False, fontsize=8)
    for axes in (left, *others):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def find_capacity(counts: list[int], share: np.ndarray) -> int:
    """The last number of patterns up to which at least half are recalled; 0 if there is none."""
    below = np.flatnonzero(share < 0.5)
    good = counts[: below[0]] if len(below) else counts
    return good[-1] if good else 0


def tabulate(
    binary_found: dict[int, list[float]],
    found: dict[str, np.ndarray],
    bits: int,
    counts: list[int],
) -> list[str]:
    lines = [
        f"| patterns / bits | {' | '.join(f'{load:g}' for load in LOADS)} |",
        "|---" * (len(LOADS) + 1) + "|",
    ]
    for size, right in binary_found.items():
        cells = " | ".join(f"{share:.1%}" for share in right)
        lines.append(f"| binary, {size} bits: right bits | {cells} |")
    modern = theory.random_capacity(bits, 0.001, scale=math.sqrt(bits / (bits - 1)))
    lines += [
        "",
        f"| {bits} bits | half are recalled up to | theory | with flipped bits up to | theory |",
        "|---" * 5 + "|",
    ]
    promised = predict_capacities(bits)
    promised["modern, beta 1"] = modern.patterns, None
    for name, shares in found.items():
        cells = []
        for share, limit in zip(shares, promised[name], strict=True):
            capacity = find_capacity(counts, share)
            more = " or more" if capacity == counts[-1] else ""
            cells.append(f"{capacity:,}{more}" if capacity else f"below {counts[0]}")
            cells.append(
                "" if limit is None else f"{limit:,.0f}" if limit >= 1 else "none"
            )
        lines.append(f"| {name.strip('$')} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=20)
    parser.add_argument("--largest", type=int, default=2**12, help="patterns")
    parser.add_argument("--probes", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    counts = [2**k for k in range(1, options.largest.bit_length())]
    binary_found = measure_binary(rng, options.probes)
    found = measure_networks(rng, options.bits, counts, options.probes)
    draw(binary_found, found, options.bits, counts)
    command = "python benchmarks/capacity.py" + "".join(
        f" --{flag}={value}"
        for flag, value in vars(options).items()
        if value != parser.get_default(flag)
    )
    report.write(
        "capacity",
        [
            "### Capacity: recall against the number of stored patterns",
            "",
            f"`{command}` ({report.provenance()}; seed {options.seed}, up to {options.probes} "
            "recalls a point)",
            "",
            *tabulate(binary_found, found, options.bits, counts),
            "",
            f"![recall against load](figures/{FIGURE.name})",
        ],
    )


if __name__ == "__main__":
    main()
