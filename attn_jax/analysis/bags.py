"""Figures of bag classifiers: attention to the instances, and pattern completion."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from matplotlib.ticker import MaxNLocator

from attn_jax.analysis import attention_maps
from attn_jax.analysis.drawing import label_row, make_figure, save_figure, show_image
from attn_jax.models.bags import BagClassifier, FlatPooling, MeanPooling
from attn_jax.models.hopfield import retrieve

SHOWN = 16  # instances of a bag, those of the largest weights
BETAS = (0.02, 0.3, 3.0)  # from an average of all patterns to a single one


def draw(
    module: BagClassifier,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    batch: Mapping[str, Any],
    assets: Mapping[str, str],
    folder: pathlib.Path,
) -> list[pathlib.Path]:
    """Writes association.png and completion.png.

    association.png: the instances of each bag, sorted by the association weight of the pooling, up to
    `SHOWN` (not for one that has none, such as the mean); completion.png: patterns retrieved from
    their upper half. Of bags of feature vectors there is only association.png, with the
    weights as bars.

    Raises:
        ValueError: nothing can be drawn of such a pooling over feature vectors.
    """
    del assets
    instances, mask = np.asarray(inputs["instances"]), np.asarray(inputs["mask"])
    files = []
    pooling = module.pooling
    flat = isinstance(pooling, FlatPooling) and pooling.hopfield is None
    if not isinstance(pooling, MeanPooling) and not flat:
        maps = attention_maps(module, variables, **inputs)
        # An encoder may attend, too, but not to the instances.
        pooled = next(maps[path] for path in maps if path.startswith("pooling"))
        weights = pooled.mean(axis=(1, 2))  # over heads and queries
        outputs: Any = module.apply(variables, **inputs)
        captions = describe_bags(outputs["logits"], batch)
        path = folder / "association.png"
        if instances.ndim == 3:
            return [draw_weights(mask, weights, captions, path)]
        files.append(draw_bags(instances, mask, weights, captions, path))
    elif instances.ndim == 3:
        raise ValueError(
            f"{type(pooling).__name__} weighs no instance by itself, so of feature "
            "vectors there is nothing to draw."
        )
    return [*files, draw_completion(instances, mask, folder / "completion.png")]


def describe_bags(logits: Float[Array, " B"], batch: Mapping[str, Any]) -> list[str]:
    """The true label of each bag, the probability that it is positive, and its name."""
    chances = np.asarray(jax.nn.sigmoid(logits))
    names = batch.get("captions", [""] * len(chances))
    found = []
    for label, chance, name in zip(batch["labels"], chances, names, strict=True):
        told = f"true: {'positive' if label else 'negative'}\npositive: {chance:.0%}"
        found.append(f"{told}\n{name}" if name else told)
    return found


def draw_weights(
    mask: Bool[np.ndarray, "B N"],
    weights: Float[np.ndarray, "B N"],
    captions: Sequence[str],
    path: pathlib.Path,
) -> pathlib.Path:
    """A bar for each instance of a bag, by its number in the file."""
    fig, axes = make_figure(len(mask), 1, cell=(4.0, 1.2))
    for ax, real, row, caption in zip(axes[:, 0], mask, weights, captions, strict=True):
        count = int(real.sum())
        ax.bar(range(count), 100 * row[:count])
        ax.set_xticks(range(count), range(count), fontsize=6)
        ax.set_ylim(0, 100 * weights.max())  # the same for all bags
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.tick_params(axis="y", labelsize=6)
        ax.set_title(caption.replace("\n", ", "), fontsize=7)
    axes[-1, 0].set_xlabel("instance of the bag", fontsize=7)
    fig.supylabel("association weight (%)", fontsize=7)
    return save_figure(fig, path)


def draw_bags(
    instances: Float[np.ndarray, "B N H W C"],
    mask: Bool[np.ndarray, "B N"],
    weights: Float[np.ndarray, "B N"],
    captions: Sequence[str],
    path: pathlib.Path,
) -> pathlib.Path:
    columns = min(int(mask.sum(axis=1).max()), SHOWN)
    fig, axes = make_figure(len(instances), columns, cell=(0.75, 0.95))
    for ax in axes.flat:
        ax.set_frame_on(False)
    for row, (bag, real) in enumerate(zip(instances, mask, strict=True)):
        order = np.argsort(-np.where(real, weights[row], -1))[: int(real.sum())]
        for ax, i in zip(axes[row], order, strict=False):
            show_image(ax, bag[i], f"{weights[row, i]:.0%}")
        label_row(axes[row, 0], captions[row])
    fig.suptitle("instances by their association weight", fontsize=9)
    return save_figure(fig, path)


def draw_completion(
    instances: Float[np.ndarray, "B N H W C"],
    mask: Bool[np.ndarray, "B N"],
    path: pathlib.Path,
) -> pathlib.Path:
    """Stores all instances and retrieves one per bag from its upper half (paper fig. 1)."""
    shape = instances.shape[2:]
    stored = jnp.asarray(instances[mask].reshape(int(mask.sum()), -1))
    wholes = instances[:, 0]
    halves = wholes.copy()
    halves[:, shape[0] // 2 :] = 0  # mid-gray: unknown
    state = jnp.asarray(halves.reshape(len(halves), -1))
    columns = {"pattern": wholes, "state": halves}
    for beta in BETAS:
        found = retrieve(stored, state, beta=beta, steps=1)
        columns[f"beta {beta:g}"] = np.asarray(found).reshape(wholes.shape)
    fig, axes = make_figure(len(wholes), len(columns), cell=(1.1, 1.1))
    for column, (title, images) in enumerate(columns.items()):
        for row, image in enumerate(images):
            show_image(axes[row, column], image, title if row == 0 else "")
    return save_figure(fig, path)
