"""Measurements of attention weights and filters, in NumPy and the dtype of the input.

Axes: B images, L blocks, N heads, T tokens, Q queries, K keys, G = Gh * Gw patches, D width,
C components, c channels. Patches are the last G tokens, row by row; `prefix` is the number
of tokens before them (class token and registers).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


def mean_attention_distance(
    weights: Float[np.ndarray, "B N T T"],
    grid: tuple[int, int],
    patch_size: float | tuple[float, float],
    *,
    prefix: int = 0,
    renormalize: bool = False,
) -> Float[np.ndarray, "B N"]:
    """Mean attention distance of each image and head, in pixels.

    The sum over keys of weight times distance between patch centers, averaged over the
    patches as queries.

    Args:
        grid: patches (down, across).
        patch_size: pixels from one patch to the next, one number or (down, across).
        renormalize: first scale the attention to patches to sum to 1. Otherwise, attention
            to the prefix counts as distance 0. (A query without any attention to patches
            has distance 0 in both cases.)

    Raises:
        ValueError: prefix and grid do not add up to the number of tokens.

    Source: ViT paper sec. 4.5 and fig. 11. The paper does not say whether it renormalizes;
    public reimplementations do not.
    """
    check_tokens(weights.shape[-1], grid, prefix)
    down, across = patch_size if isinstance(patch_size, tuple) else (patch_size,) * 2
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1)
    distance = np.hypot(
        down * np.subtract.outer(rows, rows),
        across * np.subtract.outer(columns, columns),
    ).astype(weights.dtype)
    among = weights[:, :, prefix:, prefix:]
    if renormalize:
        total = among.sum(axis=-1, keepdims=True)
        among = among / np.where(total > 0, total, 1)
    return (among * distance).sum(axis=-1).mean(axis=-1)


def attention_entropy(
    weights: Float[np.ndarray, "B N Q K"],
) -> Float[np.ndarray, "B N"]:
    """Entropy of the attention over keys in nats, averaged over queries.

    0 for attention to one key, log K for uniform attention.
    """
    logs = np.log(np.where(weights > 0, weights, 1))  # 0 log 0 = 0
    return -(weights * logs).sum(axis=-1).mean(axis=-1)


def attention_rollout(
    maps: Sequence[Float[np.ndarray, "B N Q K"]] | Float[np.ndarray, "L B N Q K"],
) -> Float[np.ndarray, "L B K K"]:
    """Attention rollout: the share of each input token in each token after every block.

    R_l = normalize(mean over heads of A_l + I) R_(l-1) with R_0 = I, where rows are
    normalized to sum to 1 and the identity represents the residual branch. Rows are tokens
    after the block, columns input tokens.

    Raises:
        ValueError: there is no map, or one is not self-attention (a pooling probe's).

    Source: Abnar and Zuidema 2020; ViT paper D.8.
    """
    rolled: list[np.ndarray] = []
    for layer, weights in enumerate(maps):
        queries, keys = weights.shape[-2:]
        if queries != keys:
            raise ValueError(
                f"map {layer} has {queries} queries and {keys} keys, but rollout needs self-"
                "attention. Leave out the maps of a pooling, and give them to `rollout_map`."
            )
        mixed = weights.mean(axis=1) + np.eye(keys, dtype=weights.dtype)
        mixed /= mixed.sum(axis=-1, keepdims=True)
        rolled.append(mixed @ rolled[-1] if rolled else mixed)
    if not rolled:
        raise ValueError(
            "rollout needs the map of each block, first to last; got none."
        )
    return np.stack(rolled)


def rollout_map(
    rollout: Float[np.ndarray, "B T T"],
    readout: Float[np.ndarray, "#B T"],
    grid: tuple[int, int],
    *,
    prefix: int = 0,
) -> Float[np.ndarray, "B Gh Gw"]:
    """The share of each patch in the input of the head.

    Args:
        rollout: after the last block.
        readout: the weight of each token in the input of the head: 1 at the class token,
            1/T each for a mean, or the weights of a pooling probe.
        grid: patches (down, across).

    Raises:
        ValueError: prefix and grid do not add up to the number of tokens.
    """
    check_tokens(rollout.shape[-1], grid, prefix)
    read = (readout[:, None] @ rollout)[:, 0]
    return read[:, prefix:].reshape(-1, *grid)


def position_similarity(
    table: Float[np.ndarray, "T D"], *, prefix: int = 0
) -> Float[np.ndarray, "G G"]:
    """Cosine between the position embeddings of any two patches.

    Source: ViT paper sec. 4.5 and fig. 7 (middle).
    """
    patches = table[prefix:]
    norms = np.linalg.norm(patches, axis=1, keepdims=True)
    unit = patches / np.where(norms > 0, norms, 1)
    return unit @ unit.T


class FilterComponents(NamedTuple):
    """Principal components of patch filters, in order of decreasing variance."""

    mean: Float[np.ndarray, "Ph Pw c"]
    components: Float[np.ndarray, "C Ph Pw c"]  # of unit norm
    explained_variance: Float[np.ndarray, " C"]  # of the D filters, D - 1 below
    explained_variance_ratio: Float[np.ndarray, " C"]  # of the total variance
    minmax: Float[np.ndarray, "C Ph Pw c"]  # each component scaled to [0, 1]


def patch_filter_pca(
    kernel: Float[np.ndarray, "Ph Pw c D"], components: int = 28
) -> FilterComponents:
    """PCA of the D filters of a patch embedding, after subtracting the mean filter.

    The sign of a component is arbitrary; here its entry of largest magnitude is positive.
    D filters have at most D - 1 components, so there may be fewer than requested.

    Source: ViT paper sec. 4.5 and fig. 7 (left).
    """
    shape, width = kernel.shape[:3], kernel.shape[-1]
    filters = kernel.reshape(-1, width).T
    mean = filters.mean(axis=0)
    _, scales, directions = np.linalg.svd(filters - mean, full_matrices=False)
    variance = scales**2 / max(width - 1, 1)
    total = variance.sum()
    count = min(components, width - 1, directions.shape[1])
    directions, variance = directions[:count], variance[:count]
    largest = np.abs(directions).argmax(axis=1)[:, None]
    directions = directions * np.sign(np.take_along_axis(directions, largest, axis=1))
    low = directions.min(axis=1, keepdims=True)
    span = directions.max(axis=1, keepdims=True) - low
    shown = (directions - low) / np.where(span > 0, span, 1)
    return FilterComponents(
        mean=mean.reshape(shape),
        components=directions.reshape(-1, *shape),
        explained_variance=variance,
        explained_variance_ratio=variance / (total if total > 0 else 1),
        minmax=shown.reshape(-1, *shape),
    )


def check_tokens(tokens: int, grid: tuple[int, int], prefix: int) -> None:
    """Raises ValueError if prefix and grid do not add up to the number of tokens."""
    if prefix + grid[0] * grid[1] != tokens:
        raise ValueError(
            f"{tokens} tokens, but {prefix=} and {grid=} make "
            f"{prefix + grid[0] * grid[1]}; prefix must count the tokens before the "
            "patches (class token, registers), grid the patches (down, across)."
        )
