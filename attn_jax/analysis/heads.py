"""Reads attention heads as Hopfield networks: over how many patterns does each of them average?

For a query, k is the least number of entries of its weights whose sum is 90 %. The median of k over
queries and examples puts a head into a class, relative to the number N of entries that compete:

    I    k > N/2     very large metastable state: an average over nearly everything
    II   k > N/8     large metastable state
    III  k > N/32    medium metastable state
    IV   k <= N/32   small metastable state, or a single pattern

Source: Ramsauer et al. 2021, sec. 4 and A.5.1. The paper does not say how padding counts: here padded
queries and keys are left out, and N is each example's own number of tokens.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from attn_jax.analysis.drawing import make_chart, make_figure, save_figure

MASS = 0.9
CUTS = (1 / 2, 1 / 8, 1 / 32)
CLASSES = ("I", "II", "III", "IV")
COLORS = ("tab:red", "tab:orange", "tab:green", "tab:blue")


class Heads(NamedTuple):
    """What a layer's heads do; R rows are the unpadded queries of all examples.

    Attributes:
        counts: k.
        shares: k / N, in (0, 1].
        jacobian: Frobenius norm of the derivative of the softmax; 0 for a head that retrieves
            a single pattern, which hardly learns any more.
    """

    counts: Int[np.ndarray, "N R"]
    shares: Float[np.ndarray, "N R"]
    jacobian: Float[np.ndarray, "N R"]

    @property
    def classes(self) -> list[str]:
        """The class of each head, by the median of its shares."""
        return [CLASSES[i] for i in classify_shares(np.median(self.shares, axis=1))]


def count_entries(
    weights: Float[np.ndarray, "*B K"], mass: float = MASS
) -> Int[np.ndarray, "*B"]:
    """k: the least number of entries whose sum reaches `mass`."""
    largest_first = -np.sort(-weights.astype(np.float64), axis=-1)
    below = np.cumsum(largest_first, axis=-1) < mass
    return np.minimum(below.sum(axis=-1) + 1, weights.shape[-1])


def measure_jacobian(
    weights: Float[np.ndarray, "*B K"],
) -> Float[np.ndarray, "*B"]:
    """|diag p - p p^T|_F of weights p, without the matrix."""
    p = weights.astype(np.float64)
    square = (p**2).sum(axis=-1)
    # Near a single pattern the terms cancel up to rounding.
    return np.sqrt(np.maximum(square - 2 * (p**3).sum(axis=-1) + square**2, 0))


def classify_shares(shares: Float[np.ndarray, "*N"]) -> Int[np.ndarray, "*N"]:
    """0 to 3, for the classes I to IV, of k / N."""
    below = [np.asarray(shares) <= cut for cut in CUTS]
    return np.sum(below, axis=0)


def measure_heads(
    weights: Float[np.ndarray, "B N Q K"],
    queries: Bool[np.ndarray, "B Q"] | None = None,
    keys: Bool[np.ndarray, "B K"] | None = None,
) -> Heads:
    """Measures a layer's heads.

    Args:
        queries, keys: False for padding.

    Raises:
        ValueError: an example has no query or no key.
    """
    parts = []
    for number, example in enumerate(weights):
        query = slice(None) if queries is None else queries[number]
        key = slice(None) if keys is None else keys[number]
        p = example[:, query][:, :, key]
        if not p.size:
            raise ValueError(f"example {number} has only padding; leave it out.")
        counts = count_entries(p)
        parts.append((counts, counts / p.shape[-1], measure_jacobian(p)))
    return Heads(*(np.concatenate(part, axis=1) for part in zip(*parts, strict=True)))


def measure_maps(
    maps: Mapping[str, Float[np.ndarray, "B N Q K"]],
    mask: Bool[np.ndarray, "B T"] | None = None,
) -> dict[str, Heads]:
    """Measures the heads of every layer of `attn_jax.analysis.attention_maps`.

    Where queries compete for keys (Slot Attention), the roles are exchanged: k is the number of slots
    that share an input.

    Args:
        mask: False for padding; for self-attention over T tokens.
    """
    found = {}
    for layer, weights in maps.items():
        if not np.allclose(weights.sum(axis=-1), 1, atol=1e-3):
            weights = np.swapaxes(weights, -2, -1)
        queries, keys = (
            mask if mask is not None and mask.shape[1] == size else None
            for size in weights.shape[-2:]
        )
        found[layer] = measure_heads(weights, queries, keys)
    return found


def describe_heads(found: Mapping[str, Heads]) -> dict[str, list[dict]]:
    """{layer: [{median of k, of k / N, of the Jacobian's norm, class} of each head]}."""
    return {
        layer: [
            {
                "median_k": float(np.median(heads.counts[head])),
                "median_share": float(np.median(heads.shares[head])),
                "median_jacobian": float(np.median(heads.jacobian[head])),
                "class": name,
            }
            for head, name in enumerate(heads.classes)
        ]
        for layer, heads in found.items()
    }


def draw_heads(found: Mapping[str, Heads], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes heads.png and heads.json.

    heads.png: the distribution of k / N of every head, a row for each layer, its heads ordered by the
    median, in the color of the class.
    """
    columns = max(len(heads.shares) for heads in found.values())
    fig, axes = make_figure(len(found), columns, cell=(0.9, 1.3))
    for row, (layer, heads) in zip(axes, found.items(), strict=True):
        medians = np.median(heads.shares, axis=1)
        order = np.argsort(-medians, kind="stable")
        for ax, head in zip(row, order, strict=False):
            color = COLORS[CLASSES.index(heads.classes[head])]
            [body] = ax.violinplot(heads.shares[head], showextrema=False)["bodies"]
            body.set_facecolor(color)
            ax.text(1, medians[head], f"{medians[head]:.2f}", ha="center", fontsize=6)
            ax.set_ylim(0, 1.05)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(f"head {head}", fontsize=6, color=color)
        for ax in row[len(order) :]:
            ax.set_visible(False)
        row[0].set_ylabel(layer.removesuffix("/attention"), fontsize=6)
    picture = save_figure(fig, folder / "heads.png")
    table = folder / "heads.json"
    table.write_text(json.dumps(describe_heads(found), indent=1) + "\n")
    return [picture, table]


def draw_training(
    found: Mapping[int, Mapping[str, Heads]], folder: pathlib.Path
) -> list[pathlib.Path]:
    """Writes heads_by_step.png and heads_by_step.json, of {step: heads of every layer}.

    heads_by_step.png: the median of k / N over the queries of all heads of a layer against the step,
    with dashed lines between the classes I to IV.
    """
    steps = sorted(found)
    fig, ax = make_chart((6.0, 4.0))
    for layer in found[steps[0]]:
        medians = [np.median(found[step][layer].shares) for step in steps]
        name = layer.removesuffix("/attention")
        ax.plot(steps, medians, marker="o", label=name)
    for cut in CUTS:
        ax.axhline(cut, color="gray", linestyle="--", linewidth=0.7)
    ax.set_yscale("log", base=2)
    ax.set_xlabel("step")
    ax.set_ylabel(f"share of the entries with {MASS:.0%} of the weight")
    ax.legend(fontsize=6)
    picture = save_figure(fig, folder / "heads_by_step.png")
    table = folder / "heads_by_step.json"
    described = {str(step): describe_heads(found[step]) for step in steps}
    table.write_text(json.dumps(described, indent=1) + "\n")
    return [picture, table]
