"""Figures of BERT: attention over a sentence, and predictions for masked words."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from attn_jax.analysis import attention_maps
from attn_jax.analysis.drawing import make_figure, save_figure
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
    five most likely words at each masked position.

    Args:
        assets: holds "vocab.txt", one word piece per line in the order of the ids.
    """
    del batch
    vocabulary = assets["vocab.txt"].splitlines()
    first = int(inputs["mask"].sum(axis=1).argmin()) if "mask" in inputs else 0
    row = {name: array[first : first + 1] for name, array in inputs.items()}
    length = int(row["mask"].sum()) if "mask" in row else row["token_ids"].shape[1]
    tokens = [vocabulary[i] for i in np.asarray(row["token_ids"][0, :length])]
    maps = attention_maps(module, variables, **row)
    files = [draw_heads(maps, tokens, folder / "attention.png")]
    if "mlm" in module.heads:
        path = folder / "filled_masks.png"
        files.append(draw_masks(module, variables, row, vocabulary, path))
    return files


def draw_heads(
    maps: Mapping[str, Float[np.ndarray, "B N Q K"]],
    tokens: Sequence[str],
    path: pathlib.Path,
) -> pathlib.Path:
    heads = next(iter(maps.values())).shape[1]
    size = len(tokens)
    inches = max(2.0, 0.11 * size)
    fig, axes = make_figure(len(maps), heads, cell=(inches, inches))
    for row, (name, weights) in enumerate(maps.items()):
        for head in range(heads):
            ax = axes[row, head]
            ax.imshow(weights[0, head, :size, :size], "Blues", vmin=0)
            ax.set_title(f"{name.removesuffix('/attention')}, head {head}", fontsize=7)
            if head == 0:
                ax.set_yticks(range(size), tokens, fontsize=5)
            if row == len(maps) - 1:
                ax.set_xticks(range(size), tokens, fontsize=5, rotation=90)
    return save_figure(fig, path)


def draw_masks(
    module: Bert,
    variables: Mapping[str, Any],
    row: Mapping[str, Any],
    vocabulary: Sequence[str],
    path: pathlib.Path,
    words: int = 5,
) -> pathlib.Path:
    ids = np.asarray(row["token_ids"][0])
    ids = ids[: int(row["mask"].sum())] if "mask" in row else ids
    masked = np.flatnonzero(ids == list(vocabulary).index("[MASK]"))
    positions = jnp.asarray(masked, jnp.int32)[None]
    outputs: Any = module.apply(variables, **{**row, "mlm_positions": positions})
    probabilities = np.asarray(jax.nn.softmax(outputs["mlm_logits"][0]))
    fig, axes = make_figure(max(len(masked), 1), 1, cell=(7.0, 0.75))
    for ax, place, p in zip(axes[:, 0], masked, probabilities, strict=False):
        best = np.argsort(-p)[:words]
        around = [vocabulary[i] for i in ids[max(place - 6, 0) : place + 7]]
        guesses = "   ".join(f"{vocabulary[i]} {p[i]:.0%}" for i in best)
        ax.text(0.01, 0.7, " ".join(around), fontsize=7, va="center")
        ax.text(0.03, 0.25, guesses, fontsize=7, va="center", color="tab:blue")
        ax.set_frame_on(False)
    return save_figure(fig, path)
