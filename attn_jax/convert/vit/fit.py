"""Fits the positions and patch filters of a ViT to another resolution or patch size.

A `Grid` is the number of patches of an image, (rows, columns). It is computed from the size of
the images in pixels, since the length of a position table does not determine it: 16 positions are
a grid of 4 x 4 or of 2 x 8.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import paths
from attn_jax.bounds import Pixels
from attn_jax.convert.arrays import (
    Arrays,
    Entries,
    describe_differences,
    parameter_shapes,
    read_parameters,
)
from attn_jax.convert.vit.resize import resize_patch_kernel, resize_positions
from attn_jax.data.framing import sides
from attn_jax.models.vit import ViT

Size = Pixels | tuple[Pixels, Pixels]
Grid = tuple[int, int]


class Checkpoint(NamedTuple):
    """A module with its parameters, and the grid of a ViT's position table, if it has one."""

    module: Any
    params: dict[str, Any]
    grid: Grid | None


def token_stride(module: ViT) -> tuple[int, int]:
    """Returns the pixels per token, by rows and columns."""
    ph, pw = sides(module.patch_size)
    shrink = stem_stride(module)
    return ph * shrink, pw * shrink


def stem_stride(module: ViT) -> int:
    """Returns the factor by which the stem shrinks an image."""
    stages = getattr(module.stem, "stage_sizes", None)
    return 1 if stages is None else 4 * 2 ** max(len(stages) - 1, 0)


def divide_into_patches(size: Size, stride: tuple[int, int]) -> Grid:
    """Returns the grid of an image of `size` pixels.

    Raises:
        ValueError: the stride does not divide the size.
    """
    height, width = sides(size)
    rows, columns = stride
    if height % rows or width % columns:
        raise ValueError(
            f"an image of {height}x{width} does not divide into patches of "
            f"{rows}x{columns}; pass another image_size or patch_size."
        )
    return height // rows, width // columns


def square_grid(patches: int, source: str, remedy: str) -> Grid:
    """Returns the grid of a square image of that many patches.

    Raises:
        ValueError: the number is no square.
    """
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(
            f"{source}: {patches} positions are not those of a square image, so the grid of "
            f"patches is unknown. {remedy}"
        )
    return side, side


def grid_of_table(
    module: ViT, rows: int, trained_size: Size | None, source: str
) -> Grid:
    """Returns the grid of a position table.

    Args:
        rows: of the table, including those of the class token and registers.
        trained_size: of the images in pixels; None: they were square.

    Raises:
        ValueError: images of that size have another number of patches.
    """
    patches = rows - (module.prefix if module.rules.position_on == "all" else 0)
    if trained_size is None:
        remedy = "Pass trained_size=(height, width), the size of its training images."
        return square_grid(patches, source, remedy)
    grid = divide_into_patches(trained_size, token_stride(module))
    if math.prod(grid) != patches:
        height, width = sides(trained_size)
        raise ValueError(
            f"{source} has positions for {patches} patches, but images of {height}x{width} "
            f"have {grid[0]}x{grid[1]}. Pass the size of its training images."
        )
    return grid


def vit_shapes(module: ViT, grid: Grid, channels: int) -> dict[str, tuple[int, ...]]:
    """Returns {name: shape} of the module's parameters for images of that grid."""
    height, width = (g * s for g, s in zip(grid, token_stride(module), strict=True))
    images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    return parameter_shapes(module, images)


def read_vit_parameters(
    module: ViT,
    entries: Entries,
    arrays: Arrays,
    source: str,
    grid: Grid,
    ignore: Iterable[str] = (),
) -> dict[str, Any]:
    """Reads our parameter tree; every array is used, or `ignore` has a prefix of its name."""
    first = "embedding/kernel" if module.stem is None else "stem/conv_root/kernel"
    entry = entries[first]
    kernel = arrays.get(entry.name)
    channels = (
        3  # without the kernel, the table of differences will report it as missing
    )
    if kernel is not None and kernel.ndim == 4:
        channels = kernel.shape[1 if entry.layout == "conv" else 2]
    shapes = vit_shapes(module, grid, channels)
    return read_parameters(entries, shapes, arrays, source, ignore=ignore)


def find_dropped(
    fields: Mapping[str, Any], parts: Mapping[str, tuple[str, Any]]
) -> tuple[str, ...]:
    """Finds the prefixes of arrays that the caller's fields leave out.

    Args:
        parts: {prefix: (field, the value of the field that leaves this part out)}.
    """
    absent = object()
    return tuple(
        prefix
        for prefix, (field, without) in parts.items()
        if fields.get(field, absent) == without
    )


def check_classes(fields: Mapping[str, Any], found: int, path: str) -> None:
    """Raises ValueError if the fields ask for a head of another number of classes."""
    wanted = fields.get("num_classes", found)
    if wanted not in (0, found):
        raise ValueError(
            f"{path} has a head of {found} classes, but num_classes={wanted}. Pass "
            "num_classes=0 to load it without a head; to train a new one, set "
            "config.init_from=[[PATH, '', 'head/.*']], which leaves the head as "
            "initialized."
        )


def fit_checkpoint(
    loaded: Checkpoint, fields: Mapping[str, Any], image_size: Size | None
) -> Checkpoint:
    """Applies `fields`, and fits a checkpoint to images and patches of another size.

    The patch filters are resized so that their responses stay the same, and the positions by
    the rule of the module's dialect. Images keep their size in pixels unless `image_size` is
    given. A change of `position_on` does not change the function.
    """
    before, params, grid = loaded.module, dict(loaded.params), loaded.grid
    module = before.clone(**fields)
    stride = token_stride(module)
    embedding = params["embedding"]
    kernel = resize_patch_kernel(
        np.asarray(embedding["kernel"]), sides(module.patch_size)
    )
    params["embedding"] = {**embedding, "kernel": kernel}
    new_grid: Grid | None = None
    if grid is not None:
        if image_size is None:
            height, width = (
                g * s for g, s in zip(grid, token_stride(before), strict=True)
            )
            image_size = height, width
        new_grid = divide_into_patches(image_size, stride)
        params = fit_positions(before, module, params, grid, new_grid)
    else:  # computed positions fit images of any size that the patches divide
        divide_into_patches(stride if image_size is None else image_size, stride)
    first = params["embedding"] if module.stem is None else params["stem"]["conv_root"]
    expected = vit_shapes(module, new_grid or (1, 1), first["kernel"].shape[2])
    ours = {name: leaf.shape for name, leaf in paths.named_leaves(params).items()}
    if different := [
        (name, str(list(ours.get(name, ()))), str(list(expected.get(name, ()))))
        for name in sorted(expected | ours)
        if ours.get(name) != expected.get(name)
    ]:
        remedy = "correct the fields that were passed"
        raise ValueError(describe_differences("the checkpoint", different, remedy))
    return Checkpoint(module, params, new_grid)


def fit_positions(
    before: ViT,
    module: ViT,
    params: dict[str, Any],
    grid: Grid,
    new_grid: Grid,
) -> dict[str, Any]:
    """Resizes the positions to the new grid, for the tokens of `module.position_on`."""
    positions = resize_positions(
        np.asarray(params["pos_embedding"]), grid, new_grid, module.dialect
    )
    on_all = before.rules.position_on == "all", module.rules.position_on == "all"
    if on_all == (True, False) and module.prefix:
        first = positions[:, : module.prefix]
        split = module.prefix - module.registers
        if split:
            params["cls"] = params["cls"] + first[:, :split]
        if module.registers:
            params["registers"] = params["registers"] + first[:, split:]
        positions = positions[:, module.prefix :]
    if on_all == (False, True) and module.prefix:
        none = np.zeros((1, module.prefix, positions.shape[-1]), np.float32)
        positions = np.concatenate([none, positions], axis=1)
    return {**params, "pos_embedding": positions}


def fit_leaves(
    loaded: Checkpoint,
    leaves: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    image_size: Size | None,
) -> dict[str, Any]:
    """Fits patch filters and positions, among parameters by name, to another ViT.

    Args:
        leaves: parameters of `loaded`, or some of them.
        shapes: {name: shape} of the other ViT's parameters.
        image_size: of the other ViT's images in pixels; None: they are square.

    Raises:
        ValueError: the other ViT's position table is not for images of `image_size`.
    """
    module, leaves = loaded.module, dict(leaves)
    kernel, patch = leaves.get("embedding/kernel"), shapes.get("embedding/kernel", ())
    if len(patch) != 4:  # the other model has no patch embedding
        return leaves
    if kernel is not None:
        leaves["embedding/kernel"] = resize_patch_kernel(np.asarray(kernel), patch[:2])
    positions, wanted = leaves.get("pos_embedding"), shapes.get("pos_embedding")
    registers = shapes.get("registers", (1, 0, 0))[1]
    prefix = ("cls" in shapes) + registers
    # With other tokens before the patches, the tables do not correspond.
    if positions is None or wanted is None or module.prefix != prefix:
        return leaves
    before_patches = positions.shape[1] - math.prod(loaded.grid or (0, 0))
    if image_size is None:
        remedy = "Pass image_size."
        grid = square_grid(wanted[1] - before_patches, "the model", remedy)
    else:
        factor = stem_stride(module)
        grid = divide_into_patches(image_size, (patch[0] * factor, patch[1] * factor))
        height, width = sides(image_size)
        if wanted[1] - math.prod(grid) not in (0, prefix):
            raise ValueError(
                f"the model has positions for {wanted[1]} tokens, which do not fit images of "
                f"{height}x{width}. Add pos_embedding to the skip regex of "
                "config.init_from to leave them as initialized."
            )
    # Nor do they if only one of them has rows for the class token.
    if wanted[1] - math.prod(grid) == before_patches and loaded.grid is not None:
        leaves["pos_embedding"] = resize_positions(
            np.asarray(positions), loaded.grid, grid, module.dialect
        )
    return leaves
