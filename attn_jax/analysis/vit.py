"""Figures of the Vision Transformer: its attention to patches, positions and filters.

Axes: B images, H W pixels, L blocks, N heads, T tokens, G = Gh * Gw patches; the patches are
the last G tokens.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float

from attn_jax.analysis import attention_maps, readings
from attn_jax.analysis.drawing import (
    add_bar,
    make_chart,
    make_figure,
    save_figure,
    show_caption,
    show_image,
)
from attn_jax.data import images as image_lib
from attn_jax.models.vit import PatchEmbedding, ViT, sincos2d

IMAGE_FILES = True  # `analyze --images` works
CELL = (1.6, 1.9)  # inches of an image and two lines above it
SHARE = "share of a patch (%)"

Maps = Mapping[str, Float[np.ndarray, "B N Q K"]]
Arrays = Mapping[str, np.ndarray]


def draw(
    module: ViT,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    batch: Mapping[str, Any],
    assets: Mapping[str, str],
    folder: pathlib.Path,
) -> list[pathlib.Path]:
    """Writes the figures, and analysis.npz with the numbers behind them (see `measure`).

    The maps of a picture share one color scale.

    attention.png: each image with the attention of each block to its patches;
    heads.png: for one image, each head of the last block and of a pooling;
    rollout.png: each image with the attention rollout through all blocks;
    distance.png: mean attention distance of each head of each block;
    position.png: similarity of the position embeddings, if there are any;
    filters.png: principal components of the patch filters, if they read pixels.
    """
    del assets
    captions = batch.get("captions", [""] * len(inputs["images"]))
    # Only the images, because the inputs of a task may also corrupt patches.
    inputs = {"images": inputs["images"]}
    maps = attention_maps(module, variables, **inputs)
    arrays = measure(module, variables, inputs, maps)
    files = [
        draw_attention(module, maps, arrays, captions, folder / "attention.png"),
        draw_heads(maps, arrays, captions[0], folder / "heads.png"),
        draw_rollout(arrays, captions, folder / "rollout.png"),
        draw_distance(arrays, folder / "distance.png"),
    ]
    if "posemb_similarity" in arrays:
        files.append(draw_position(arrays, folder / "position.png"))
    if "pca_components" in arrays:
        files.append(draw_filters(arrays, folder / "filters.png"))
    # Any, because a type checker cannot rule out that a key is an option of savez.
    named: dict[str, Any] = dict(arrays)
    np.savez(folder / "analysis.npz", **named)
    return [*files, folder / "analysis.npz"]


def measure(
    module: ViT, variables: Mapping[str, Any], inputs: Mapping[str, Any], maps: Maps
) -> dict[str, np.ndarray]:
    """All measurements, by their names in analysis.npz; lengths are in input pixels.

    `images` [B, H, W, c]; `grid` [2], patches down and across; `attention_to_patches`
    [L, B, N, Gh, Gw], per head, see `average_over_queries`; `pooling_to_patches` [B, N, Gh, Gw]
    if a pooling attends; `mean_attention_distance` and
    `mean_attention_distance_renormalized` [L, N], `.._per_image` [B, L, N];
    `uniform_attention_distance` [], of a head that attends uniformly;
    `attention_entropy_nats` [L, N]; `rollout` [L, B, T, T]; `rollout_map` [B, Gh, Gw];
    `posemb_similarity` [G, G]; `pca_*`, the fields of `readings.FilterComponents`.
    """
    images = np.asarray(inputs["images"])
    grid = compute_grid(module, variables, inputs)
    # Not `patch_size`, because a stem reduces the image before patches are taken.
    pixels = (images.shape[1] / grid[0], images.shape[2] / grid[1])
    blocks = [weights for path, weights in maps.items() if is_block(path)]
    tokens = blocks[0].shape[-1]
    prefix = tokens - grid[0] * grid[1]

    def distance(weights: np.ndarray, renormalize: bool = False) -> np.ndarray:
        return readings.mean_attention_distance(
            weights, grid, pixels, prefix=prefix, renormalize=renormalize
        )

    near = np.stack([distance(weights) for weights in blocks], axis=1)
    renormalized = np.stack([distance(weights, True) for weights in blocks], axis=1)
    entropy = np.stack([readings.attention_entropy(w) for w in blocks])
    uniform = np.full((1, 1, tokens, tokens), 1 / tokens, near.dtype)
    rollout = readings.attention_rollout(blocks)
    read = readout_shares(module, maps, tokens, grid)
    over = {
        path: average_over_queries(module, path, w, grid) for path, w in maps.items()
    }
    arrays = {
        "images": images,
        "grid": np.array(grid),
        "attention_to_patches": np.stack(
            [weights for path, weights in over.items() if is_block(path)]
        ),
        "mean_attention_distance": near.mean(axis=0),
        "mean_attention_distance_renormalized": renormalized.mean(axis=0),
        "mean_attention_distance_per_image": near,
        "uniform_attention_distance": distance(uniform)[0, 0],
        "attention_entropy_nats": entropy.mean(axis=1),
        "rollout": rollout,
        "rollout_map": readings.rollout_map(rollout[-1], read, grid, prefix=prefix),
    }
    if pooling := [path for path in maps if not is_block(path)]:
        arrays["pooling_to_patches"] = over[pooling[0]]
    params = variables["params"]
    table = position_table(module, params, grid)
    if table is not None:
        arrays["posemb_similarity"] = readings.position_similarity(table)
    kernel = np.asarray(params["embedding"]["kernel"])
    if module.stem is None and kernel.shape[2] in (1, 3):  # else they are not images
        pca = readings.patch_filter_pca(kernel)
        arrays |= {f"pca_{name}": array for name, array in pca._asdict().items()}
    return arrays


def compute_grid(
    module: nn.Module, variables: Mapping[str, Any], inputs: Mapping[str, Any]
) -> tuple[int, int]:
    """The grid of the patch embedding's output (down, across), by shape evaluation.

    The embedding is that of a ViT, or of the one ViT inside the module.

    The size of the image does not determine it if a stem rounds up or patches are not
    square.
    """
    _, seen = jax.eval_shape(
        lambda variables, inputs: module.apply(
            variables,
            **inputs,
            mutable=["intermediates"],
            capture_intermediates=lambda part, _: isinstance(part, PatchEmbedding),
        ),
        variables,
        dict(inputs),
    )
    [embedded] = [  # beside what modules sow
        leaf
        for path, leaf in jax.tree.leaves_with_path(seen["intermediates"])
        if jax.tree_util.DictKey("__call__") in path
    ]
    return embedded.shape[1], embedded.shape[2]


def is_block(path: str) -> bool:
    """True for self-attention of a block, False for a pooling."""
    return path.startswith("block_")


def average_over_queries(
    module: ViT,
    path: str,
    weights: Float[np.ndarray, "B N Q K"],
    grid: tuple[int, int],
) -> Float[np.ndarray, "B N Gh Gw"]:
    """Attention of each head to each patch.

    In a block: from the class token if it is pooled, else averaged over the patches as
    queries. In a pooling: averaged over its probes.
    """
    patches = grid[0] * grid[1]
    if not is_block(path):
        over = weights.mean(axis=2)
    elif module.pool == "cls":
        over = weights[:, :, 0]
    else:
        over = weights[:, :, -patches:].mean(axis=2)
    return over[..., -patches:].reshape(*over.shape[:2], *grid)


def readout_shares(
    module: ViT, maps: Maps, tokens: int, grid: tuple[int, int]
) -> Float[np.ndarray, "#B T"]:
    """The weight of each token in the input of the head.

    The attention of a pooling (averaged over heads and probes), else 1 at the class token,
    or equal weights for all patches.
    """
    dtype = next(iter(maps.values())).dtype
    for path, weights in maps.items():
        if not is_block(path):
            shares = weights.mean(axis=(1, 2))
            # A pooling may read the patches only.
            return np.pad(shares, ((0, 0), (tokens - shares.shape[1], 0)))
    shares = np.zeros((1, tokens), dtype)
    if module.pool == "cls":
        shares[:, 0] = 1
    else:
        patches = grid[0] * grid[1]
        shares[:, -patches:] = 1 / patches
    return shares


def position_table(
    module: ViT, params: Mapping[str, Any], grid: tuple[int, int]
) -> Float[np.ndarray, "G D"] | None:
    """The position embedding of each patch; None if the model has none."""
    if "pos_embedding" in params:
        table = np.asarray(params["pos_embedding"])
    elif module.position == "sincos2d":
        table = np.asarray(sincos2d(*grid, module.width))
    else:
        return None
    return table.reshape(-1, table.shape[-1])[-grid[0] * grid[1] :]


def draw_attention(
    module: ViT,
    maps: Maps,
    arrays: Arrays,
    captions: Sequence[str],
    path: pathlib.Path,
) -> pathlib.Path:
    images, grid = arrays["images"], (int(arrays["grid"][0]), int(arrays["grid"][1]))
    fig, axes = make_figure(len(images), 1 + len(maps), cell=CELL)
    over = [
        average_over_queries(module, at, w, grid).mean(axis=1) for at, w in maps.items()
    ]
    most = max(float(weights.max()) for weights in over)
    titles = [at.removesuffix("/attention") for at in maps]
    for row, image in enumerate(images):
        show_image(axes[row, 0], image)
        show_caption(axes[row, 0], captions[row])
        for ax, title, weights in zip(axes[row, 1:], titles, over, strict=True):
            named = title if row == 0 else ""
            shown = draw_over_image(ax, image, weights[row], named, most)
    add_bar(fig, shown, axes, SHARE)
    fig.suptitle("attention to patches, mean over heads", fontsize=9)
    return save_figure(fig, path)


def draw_heads(
    maps: Maps, arrays: Arrays, caption: str, path: pathlib.Path
) -> pathlib.Path:
    image = arrays["images"][0]
    last = [at.removesuffix("/attention") for at in maps if is_block(at)][-1]
    panels = {
        f"{last}, head {head}": weights
        for head, weights in enumerate(arrays["attention_to_patches"][-1][0])
    }
    for head, weights in enumerate(arrays.get("pooling_to_patches", [[]])[0]):
        panels[f"pooling, head {head}"] = weights
    most = max(float(weights.max()) for weights in panels.values())
    columns = min(1 + len(panels), 7)
    fig, axes = make_figure(-(-(1 + len(panels)) // columns), columns, cell=CELL)
    for ax in axes.flat[1 + len(panels) :]:
        ax.set_frame_on(False)
    show_image(axes.flat[0], image)
    show_caption(axes.flat[0], caption)
    for ax, (title, weights) in zip(axes.flat[1:], panels.items(), strict=False):
        shown = draw_over_image(ax, image, weights, title, most)
    add_bar(fig, shown, axes, SHARE)
    fig.suptitle("attention to patches by head", fontsize=9)
    return save_figure(fig, path)


def draw_rollout(
    arrays: Arrays, captions: Sequence[str], path: pathlib.Path
) -> pathlib.Path:
    images, shares = arrays["images"], arrays["rollout_map"]
    fig, axes = make_figure(len(images), 2, cell=(2.2, 2.2))
    for row, image in enumerate(images):
        show_image(axes[row, 0], image)
        show_caption(axes[row, 0], captions[row])
        # Interpolated, because flat squares would hide the outlines of the image.
        smooth = image_lib.resize(shares[row][..., None], image.shape[:2], "bicubic")
        title = "rollout" if row == 0 else ""
        shown = draw_over_image(
            axes[row, 1], image, smooth[..., 0], title, float(shares.max())
        )
    add_bar(fig, shown, axes, SHARE)
    fig.suptitle("what the head reads, through all blocks", fontsize=9)
    return save_figure(fig, path)


def draw_distance(arrays: Arrays, path: pathlib.Path) -> pathlib.Path:
    distance, images = arrays["mean_attention_distance"], arrays["images"]
    layers, heads = distance.shape
    fig, axes = make_chart((max(3.5, 1.5 + 0.3 * layers), 3.2))
    axes.plot(
        np.repeat(np.arange(layers), heads), distance.ravel(), "o", alpha=0.6, ms=5
    )
    uniform = float(arrays["uniform_attention_distance"])
    axes.axhline(uniform, color="gray", ls="--", lw=1, label="uniform attention")
    axes.legend(fontsize=7)
    axes.set_xticks(range(0, layers, -(-layers // 16)))
    axes.set_xlim(-0.5, layers - 0.5)
    axes.set_ylim(0, 1.1 * max(uniform, distance.max()))
    axes.set_xlabel("block")
    axes.set_ylabel("mean attention distance (pixels)")
    height, width = images.shape[1:3]
    count = f"{len(images)} image{'s' if len(images) > 1 else ''}"
    axes.set_title(f"one dot per head, {count} of {height}x{width} pixels", fontsize=9)
    return save_figure(fig, path)


def draw_position(arrays: Arrays, path: pathlib.Path) -> pathlib.Path:
    """Gh x Gw tiles with a gap between them, each a map of Gh x Gw."""
    rows, columns = (int(n) for n in arrays["grid"])
    tiles = arrays["posemb_similarity"].reshape(rows, columns, rows, columns)
    tiles = np.pad(tiles, ((0, 0),) * 2 + ((0, 1),) * 2, constant_values=np.nan)
    mosaic = tiles.transpose(0, 2, 1, 3).reshape(rows * (rows + 1), -1)[:-1, :-1]
    widest = max(mosaic.shape)
    fig, axes = make_chart(
        (1.6 + 4.5 * mosaic.shape[1] / widest, 1.0 + 4.5 * mosaic.shape[0] / widest)
    )
    shown = axes.imshow(mosaic, "viridis", vmin=-1, vmax=1, interpolation="nearest")
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
        labels = np.arange(0, count, -(-count // 16))
        axis.set_ticks(labels * (count + 1) + (count - 1) / 2, labels)
    axes.set_xlabel("patch column")
    axes.set_ylabel("patch row")
    axes.set_title(
        "one tile per patch: its position embedding and all others", fontsize=9
    )
    fig.colorbar(shown, ax=axes, shrink=0.8).set_label("cosine similarity")
    return save_figure(fig, path)


def draw_filters(arrays: Arrays, path: pathlib.Path) -> pathlib.Path:
    shown, ratio = arrays["pca_minmax"], arrays["pca_explained_variance_ratio"]
    columns = min(len(shown), 7)
    fig, axes = make_figure(-(-len(shown) // columns), columns, cell=(1.0, 1.15))
    for ax in axes.flat[len(shown) :]:
        ax.set_frame_on(False)
    for ax, component, share in zip(axes.flat, shown, ratio, strict=False):
        show_image(ax, 2 * component - 1, f"{share:.1%}")
    height, width = shown.shape[1:3]
    fig.suptitle(
        f"patch filters, {height}x{width} pixels: principal components\n"
        "and their share of the variance",
        fontsize=9,
    )
    return save_figure(fig, path)


def draw_over_image(
    axes: Any,
    image: Float[np.ndarray, "H W c"],
    weights: Float[np.ndarray, "h w"],
    title: str,
    most: float,
) -> Any:
    """Draws shares of any resolution over the image, in percent; `most` is the end of the scale."""
    height, width = image.shape[:2]
    show_image(axes, image, title)
    # Translucent, so that the image stays visible.
    return axes.imshow(
        100 * weights,
        cmap="inferno",
        vmin=0,
        vmax=100 * most,
        alpha=0.7,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
