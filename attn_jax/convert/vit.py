"""ViT checkpoints: what the formats share, and a model at another resolution.

The formats: vit_npz.py (vision_transformer, big_vision), vit_torch.py (transformers, timm; the
way back is vit_export.py).
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from attn_jax import paths
from attn_jax.convert.resize import resize_patch_kernel, resize_positions
from attn_jax.data.framing import sides
from attn_jax.models.vit import ViT

Size = int | tuple[int, int]


class Entry(NamedTuple):
    """Where a parameter of ours is found in a file, and how it lies there."""

    theirs: str
    # PyTorch's [out, in], of a matrix, of heads in, of heads out, or of a convolution.
    layout: Literal["same", "flat", "dense", "heads", "out", "conv", "conv1x1"] = "same"


def to_ours(
    array: np.ndarray, layout: str, shape: tuple[int, ...]
) -> np.ndarray | None:
    """The array as our parameter of that shape; None where it cannot be it."""
    if layout in ("dense", "heads", "out") and array.ndim == 2:
        array = array.T
    if layout == "heads" and (len(shape) != 3 or array.shape[0] != shape[0]):
        return None
    if layout == "out" and (len(shape) != 3 or array.shape[-1] != shape[-1]):
        return None
    if layout in ("conv", "conv1x1") and array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    # Old files keep group norms as [1, 1, 1, C]; heads are split here.
    alike = layout in ("flat", "heads", "out") or (
        [n for n in array.shape if n > 1] == [n for n in shape if n > 1]
    )
    if not alike or array.size != math.prod(shape):
        return None
    return np.asarray(array, np.float32).reshape(shape)


def to_theirs(array: np.ndarray, layout: str) -> np.ndarray:
    """The inverse of `to_ours`."""
    array = np.asarray(array, np.float32)
    if layout == "flat":
        return array.reshape(-1)
    if layout == "dense":
        return array.T
    if layout == "heads":
        return array.reshape(array.shape[0], -1).T
    if layout == "out":
        return array.reshape(-1, array.shape[-1]).T
    if layout == "conv":
        return array.transpose(3, 2, 0, 1)
    if layout == "conv1x1":
        return array.T[:, :, None, None]
    return array


def stride(module: ViT) -> tuple[int, int]:
    """Pixels an image has for each token, by rows and columns."""
    ph, pw = sides(module.patch_size)
    stages = getattr(module.stem, "stage_sizes", None)
    shrink = 1 if stages is None else 4 * 2 ** max(len(stages) - 1, 0)
    return ph * shrink, pw * shrink


def grid_of(module: ViT, rows: int, path: str) -> tuple[int, int]:
    """The grid of a square image's patches, from the rows of a position table.

    Raises:
        ValueError: they are no square.
    """
    patches = rows - (module.prefix if module.rules.position_on == "all" else 0)
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(
            f"{path}: {patches} positions are no square, so the grid of patches is "
            "unknown. Only positions of square images can be told from their number."
        )
    return side, side


def shapes_of(
    module: ViT, grid: tuple[int, int], channels: int
) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the module's parameters for images of so many patches."""
    height, width = (g * s for g, s in zip(grid, stride(module), strict=True))
    images = jnp.zeros((1, height, width, channels))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    leaves = paths.named_leaves(variables["params"])
    return {name: leaf.shape for name, leaf in leaves.items()}


def assemble(
    module: ViT,
    entries: Mapping[str, Entry],
    arrays: Mapping[str, np.ndarray],
    path: str,
    grid: tuple[int, int],
    leave: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Our parameter tree; every array of the file is used or named in `leave`.

    Raises:
        ValueError: one table of all that is missing, unknown or of another shape.
    """
    channels = channels_of(module, entries, arrays)
    found, used, rows = {}, set(), []
    for name, shape in shapes_of(module, grid, channels).items():
        theirs, layout = entries[name]
        used.add(theirs)
        array = arrays.get(theirs)
        if array is None:
            rows.append((theirs, "missing", f"{name} {list(shape)}"))
            continue
        if not jnp.issubdtype(array.dtype, jnp.floating):
            rows.append((theirs, str(array.dtype), "floating point"))
            continue
        value = to_ours(array, layout, shape)
        if value is None:
            rows.append((theirs, str(list(array.shape)), f"{name} {list(shape)}"))
        else:
            found[name] = value
    rows += [
        (name, str(list(array.shape)), "no such parameter")
        for name, array in sorted(arrays.items())
        if name not in used and not name.startswith(leave or ("\0",))
    ]
    if rows:
        raise ValueError(difference(path, rows))
    return unflatten_dict(found, sep="/")


def channels_of(
    module: ViT, entries: Mapping[str, Entry], arrays: Mapping[str, np.ndarray]
) -> int:
    """Of the images, as the first kernel reads them."""
    first = "embedding/kernel" if module.stem is None else "stem/conv_root/kernel"
    theirs, layout = entries[first]
    kernel = arrays.get(theirs)
    if kernel is None or kernel.ndim != 4:
        return 3  # as good as any: the table of differences will name this kernel
    return kernel.shape[1 if layout == "conv" else 2]


def left_behind(
    fields: Mapping[str, Any], parts: Mapping[str, tuple[str, Any]]
) -> tuple[str, ...]:
    """Prefixes of arrays that the caller does not want: {prefix: (field, value without)}."""
    absent = object()
    return tuple(
        prefix
        for prefix, (field, without) in parts.items()
        if fields.get(field, absent) == without
    )


def difference(path: str, rows: list[tuple[str, str, str]]) -> str:
    """The message: one table of all arrays that do not fit."""
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    lines = [
        f"  {key:<{widths[0]}}  {file:<{widths[1]}}  {model}"
        for key, file, model in [("key", "in the file", "in the model"), *rows]
    ]
    remedy = "correct the fields that were passed, or the file's configuration"
    if all(model == "floating point" for _, _, model in rows):
        remedy = "save a quantised model in full precision first"
    return (
        f"{path} and the model differ in {len(rows)} arrays; {remedy}:\n"
        + "\n".join(lines)
    )


def check_classes(fields: Mapping[str, Any], found: int, path: str) -> None:
    wanted = fields.get("num_classes", found)
    if wanted not in (0, found):
        raise ValueError(
            f"{path} has a head of {found} classes, but num_classes={wanted}. Pass "
            "num_classes=0 to load it without a head; to train a new one, set "
            "config.init_from=[[PATH, '', 'head/.*']], which leaves the head as "
            "initialised."
        )


def fit(
    module: ViT,
    params: Mapping[str, Any],
    grid: tuple[int, int],
    fields: Mapping[str, Any],
    image_size: Size | None,
) -> tuple[ViT, dict[str, Any]]:
    """(module, params) for images and patches of another size, where `fields` asks for it.

    The filters are resized so that they respond alike, then the positions, by the module's
    dialect; images keep their size in pixels unless `image_size` is given. Positions move
    between "all" tokens and "patches" without a change of the function.
    """
    params = dict(params)
    old_stride = stride(module)
    pixels = tuple(g * s for g, s in zip(grid, old_stride, strict=True))
    module, before = module.clone(**fields), module
    params["embedding"] = with_patches(params["embedding"], sides(module.patch_size))
    rows, columns = stride(module)
    if image_size is None and "pos_embedding" not in params:
        pixels = rows, columns  # images of any size will do
    height, width = pixels if image_size is None else sides(image_size)
    if height % rows or width % columns:
        raise ValueError(
            f"an image of {height}x{width} does not divide into patches of "
            f"{rows}x{columns}; pass another image_size or patch_size."
        )
    grid_now = height // rows, width // columns
    if "pos_embedding" in params:
        params = with_positions(before, module, params, grid, grid_now)
    first = params["embedding"] if module.stem is None else params["stem"]["conv_root"]
    expected = shapes_of(module, grid_now, first["kernel"].shape[2])
    ours = {name: leaf.shape for name, leaf in paths.named_leaves(params).items()}
    if different := [
        (name, str(list(ours.get(name, ()))), str(list(expected.get(name, ()))))
        for name in sorted(expected | ours)
        if ours.get(name) != expected.get(name)
    ]:
        raise ValueError(difference("the checkpoint", different))
    return module, params


def with_patches(embedding: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    kernel = np.asarray(embedding["kernel"])
    return {**embedding, "kernel": resize_patch_kernel(kernel, size)}


def with_positions(
    before: ViT,
    module: ViT,
    params: dict[str, Any],
    grid: tuple[int, int],
    grid_now: tuple[int, int],
) -> dict[str, Any]:
    positions = resize_positions(
        params["pos_embedding"], grid, grid_now, module.dialect
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


def resized(
    module: ViT,
    leaves: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Parameters by name, patch filters and positions at the size they have in `shapes`,
    which are another such module's.

    Raises:
        ValueError: positions of images that are not square.
    """
    leaves = dict(leaves)
    kernel = leaves.get("embedding/kernel")
    patch = shapes.get("embedding/kernel", ())
    if kernel is not None and len(patch) == 4:  # else there is no patch embedding
        leaves["embedding/kernel"] = resize_patch_kernel(np.asarray(kernel), patch[:2])
    positions, wanted = leaves.get("pos_embedding"), shapes.get("pos_embedding")
    registers = shapes.get("registers", (1, 0, 0))[1]
    # Where other tokens precede the patches it is a table of another kind.
    alike = module.prefix == ("cls" in shapes) + registers
    if positions is None or wanted is None or wanted == positions.shape or not alike:
        return leaves
    old, new = (
        grid_of(module, rows, "config.init_from")
        for rows in (positions.shape[1], wanted[1])
    )
    leaves["pos_embedding"] = resize_positions(
        np.asarray(positions), old, new, module.dialect
    )
    return leaves
