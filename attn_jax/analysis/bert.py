"""Figures of BERT: attention over a sentence, and predictions for masked words."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from attn_jax.analysis import attention_maps
from attn_jax.analysis.drawing import add_bar, make_figure, save_figure
from attn_jax.models.bert import Bert


def draw(
    module: Bert,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    batch: Mapping[str, Any],
    assets: Mapping[str, str],
    folder: pathlib.Path,
) -> list[pathlib.Path]:
    """Writes attention.png and, with an MLM head, filled_masks.png.

    attention.png: every head over the row with the fewest tokens; filled_masks.png: the
    five most likely words at each masked position, and the true one if the batch has it.

    Args:
        assets: holds "vocab.txt", one word piece per line in the order of the ids.
    """
    vocabulary = assets["vocab.txt"].splitlines()
    first = int(inputs["mask"].sum(axis=1).argmin()) if "mask" in inputs else 0
    row = {name: array[first : first + 1] for name, array in inputs.items()}
    length = int(row["mask"].sum()) if "mask" in row else row["token_ids"].shape[1]
    tokens = [vocabulary[i] for i in np.asarray(row["token_ids"][0, :length])]
    maps = attention_maps(module, variables, **row)
    files = [draw_heads(maps, tokens, folder / "attention.png")]
    if "mlm" in module.heads:
        true = read_true_words(batch, first)
        path = folder / "filled_masks.png"
        files.append(draw_masks(module, variables, row, vocabulary, true, path))
    return files


def read_true_words(batch: Mapping[str, Any], row: int) -> dict[int, int]:
    """{position: id of the true word} of a row; empty without labels."""
    if "mlm_labels" not in batch:
        return {}
    keys = ("mlm_positions", "mlm_labels", "mlm_valid")
    arrays = [np.asarray(batch[key][row]).tolist() for key in keys]
    return {place: word for place, word, valid in zip(*arrays, strict=True) if valid}


def draw_heads(
    maps: Mapping[str, Float[np.ndarray, "B N Q K"]],
    tokens: Sequence[str],
    path: pathlib.Path,
) -> pathlib.Path:
    """One map per head; all share one color scale."""
    heads = next(iter(maps.values())).shape[1]
    size = len(tokens)
    inches = max(2.0, 0.11 * size)
    most = 100 * max(float(weights[0].max()) for weights in maps.values())
    fig, axes = make_figure(len(maps), heads, cell=(inches, inches))
    for row, (name, weights) in enumerate(maps.items()):
        for head in range(heads):
            ax = axes[row, head]
            shares = 100 * weights[0, head, :size, :size]
            shown = ax.imshow(shares, "Blues", vmin=0, vmax=most)
            ax.set_title(f"{name.removesuffix('/attention')}, head {head}", fontsize=7)
            if head == 0:
                ax.set_yticks(range(size), tokens, fontsize=5)
            if row == len(maps) - 1:
                ax.set_xticks(range(size), tokens, fontsize=5, rotation=90)
    fig.supylabel("the token that reads", fontsize=8)
    fig.supxlabel("the token that is read", fontsize=8)
    add_bar(fig, shown, axes, "attention (%)")
    return save_figure(fig, path)


def draw_masks(
    module: Bert,
    variables: Mapping[str, Any],
    row: Mapping[str, Any],
    vocabulary: Sequence[str],
    true: Mapping[int, int],
    path: pathlib.Path,
    words: int = 5,
) -> pathlib.Path:
    """The most likely words at each mask, with six word pieces on both sides of it.

    Args:
        true: {position: id of the true word}, where it is known.
    """
    ids = np.asarray(row["token_ids"][0])
    ids = ids[: int(row["mask"].sum())] if "mask" in row else ids
    masked = np.flatnonzero(ids == list(vocabulary).index("[MASK]"))
    positions = jnp.asarray(masked, jnp.int32)[None]
    outputs: Any = module.apply(variables, **{**row, "mlm_positions": positions})
    probabilities = np.asarray(jax.nn.softmax(outputs["mlm_logits"][0]))
    fig, axes = make_figure(max(len(masked), 1), 1, cell=(7.0, 0.75))
    for number, (place, p) in enumerate(zip(masked, probabilities, strict=False), 1):
        ax = axes[number - 1, 0]
        ax.set_frame_on(False)
        before, after = ids[max(place - 6, 0) : place], ids[place + 1 : place + 7]
        pieces = [vocabulary[i] for i in before]
        pieces += [f"[MASK {number}]", *(vocabulary[i] for i in after)]
        best = np.argsort(-p)[:words]
        guesses = "   ".join(f"{vocabulary[i]} {p[i]:.1%}" for i in best)
        known = true.get(int(place))
        told = ""
        if known is not None:
            rank = int((p > p[known]).sum()) + 1
            told = f"true: {vocabulary[known]} {p[known]:.1%}, rank {rank:,}"
        colors = ("black", "tab:blue", "tab:green")
        for height, text, color in zip(
            (0.8, 0.45, 0.1), (" ".join(pieces), guesses, told), colors, strict=True
        ):
            left = 0.01 if height == 0.8 else 0.03
            ax.text(left, height, text, fontsize=7, va="center", color=color)
    return save_figure(fig, path)
