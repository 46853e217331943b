"""Reads ViT checkpoints of google-research/vision_transformer and big_vision: .npz files.

In both, the names of arrays are paths. They differ in the numbering of the parts of a block,
the place of the positions, and big_vision's stacked layers.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from attn_jax.convert.arrays import bias_length, check_depth, require_shape
from attn_jax.convert.files import read_npz
from attn_jax.convert.vit.fit import (
    Checkpoint,
    Size,
    check_classes,
    divide_into_patches,
    find_dropped,
    fit_checkpoint,
    grid_of_table,
    read_vit_parameters,
    token_stride,
)
from attn_jax.convert.vit.names import npz_entries
from attn_jax.models.resnet import ResNetStem
from attn_jax.models.vit import ViT


def from_npz(
    path: pathlib.Path,
    *,
    subtree: str = "",
    image_size: Size | None = None,
    trained_size: Size | None = None,
    **fields: Any,
) -> Checkpoint:
    """Reads a file's model, in the dialect of the code that wrote it.

    Args:
        subtree: the model to read if the file has several, such as "img"; else "".
        trained_size: of the training images in pixels, which the file does not contain. None:
            square, as for all published files.

    Raises:
        ValueError: the file is cut short or is no ViT; its arrays do not fit together.

    Source: vision_transformer checkpoint.py; big_vision models/vit.py `load`,
    `fix_old_checkpoints`, utils.py `recover_dtype`.
    """
    arrays, dialect = read_arrays(path, subtree)
    settings = read_settings(arrays, str(path)) | {"dialect": dialect}
    check_classes(fields, settings["num_classes"], str(path))
    settings |= {
        name: fields[name]
        for name in ("num_classes", "representation_size")
        if name in fields
    }
    module = ViT(**settings)
    grid = None
    if "pos_embedding" in arrays:
        rows = arrays["pos_embedding"].shape[1]
        if dialect == "big_vision" and "cls" in arrays:
            patches = math.isqrt(rows) ** 2
            if trained_size is not None:
                patches = math.prod(
                    divide_into_patches(trained_size, token_stride(module))
                )
            # The first generation has the position of the class token in the table.
            if rows != patches:
                module = module.clone(position_on="all")
        grid = grid_of_table(module, rows, trained_size, str(path))
    ignore = find_dropped(
        fields,
        {"head/": ("num_classes", 0), "pre_logits/": ("representation_size", None)},
    )
    entries = npz_entries(module)
    params = read_vit_parameters(
        module, entries, arrays, str(path), grid or (1, 1), ignore
    )
    return fit_checkpoint(Checkpoint(module, params, grid), fields, image_size)


def read_arrays(
    path: pathlib.Path, subtree: str = ""
) -> tuple[dict[str, np.ndarray], str]:
    """Reads (arrays by today's names of big_vision, dialect of the code that wrote them)."""
    arrays = read_npz(path)
    end = f"{subtree}/embedding/kernel" if subtree else "embedding/kernel"
    roots = [name.removesuffix("embedding/kernel") for name in arrays]
    roots = [
        root
        for root, name in zip(roots, arrays, strict=True)
        if (name == end or name.endswith(f"/{end}")) and arrays[name].ndim == 4
    ]
    if len(roots) != 1:
        found = ", ".join(roots) or "none"
        raise ValueError(
            f"{path} must hold one ViT, that is one embedding/kernel [h, w, c, D]; found "
            f"under: {found}. If there are several, choose one by PATH.npz:SUBTREE; if there "
            "is none, the checkpoint is of another family."
        )
    arrays = {
        name.removeprefix(roots[0]): recover_dtype(array)
        for name, array in arrays.items()
        if name.startswith(roots[0])
    }
    google = any("posembed_input/" in name for name in arrays)
    positions = any(name.endswith("pos_embedding") for name in arrays)
    if not positions and any("/MlpBlock_3/" in name for name in arrays):
        raise ValueError(
            f"{path} lacks Transformer/posembed_input/pos_embedding, which models with such "
            "names have; it is cut short. Fetch it again."
        )
    dialect = "google" if google else "big_vision"
    return unstack_layers(rename_to_modern(arrays)), dialect


def recover_dtype(array: np.ndarray) -> np.ndarray:
    """Restores bfloat16, which NumPy stores as a nameless type of two bytes."""
    return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array


def rename_to_modern(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames arrays to today's names; older code numbered all parts of a block together."""
    rules = [
        ("MultiHeadDotProductAttention_1/", "MultiHeadDotProductAttention_0/"),
        ("LayerNorm_2/", "LayerNorm_1/"),
        ("MlpBlock_3/", "MlpBlock_0/"),
        ("Transformer/posembed_input/pos_embedding", "pos_embedding"),
        ("Transformer/posembed_encoder/pos_embedding", "pos_embedding"),
        ("posembed_input/pos_embedding", "pos_embedding"),
        # In older files the pooling head has no scope of its own.
        (
            r"^(probe$|MlpBlock_\d|MultiHeadDotProductAttention_\d|LayerNorm_\d)",
            r"MAPHead_0/\1",
        ),
    ]
    result = {}
    for name, array in arrays.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        result[name] = array
    return result


def unstack_layers(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits the arrays of a scanned model, which stacks all layers, to one per layer."""
    stacked = "Transformer/encoderblock/"
    result = {}
    for name, array in arrays.items():
        if name.startswith(stacked) and array.ndim:
            part = name.removeprefix(stacked)
            for i, layer in enumerate(array):
                result[f"Transformer/encoderblock_{i}/{part}"] = layer
        else:
            result[name] = array
    return result


def read_settings(arrays: Mapping[str, np.ndarray], path: str) -> dict[str, Any]:
    """Reads the module's fields from the arrays."""
    first = "Transformer/encoderblock_0"
    query = f"{first}/MultiHeadDotProductAttention_0/query/kernel"
    num_heads = require_shape(arrays, query, 3, path)[1]
    dense = f"{first}/MlpBlock_0/Dense_0/kernel"
    mlp_width = require_shape(arrays, dense, 2, path)[1]
    blocks = {
        int(found[1])
        for name in arrays
        if (found := re.match(r"Transformer/encoderblock_(\d{1,9})/", name))
    }
    depth = check_depth(max(blocks) + 1, arrays, path)
    kernel = arrays["embedding/kernel"]
    pool = "cls" if "cls" in arrays else "gap"
    pool = "map" if "MAPHead_0/probe" in arrays else pool
    learned = "pos_embedding" in arrays
    if learned:
        require_shape(arrays, "pos_embedding", 3, path)
    stem = None
    if "conv_root/kernel" in arrays:
        root = require_shape(arrays, "conv_root/kernel", 4, path)
        stem = ResNetStem(count_stage_sizes(arrays, path), root[-1])
    return {
        "num_classes": bias_length(arrays, "head/bias", path),
        "patch_size": (
            kernel.shape[0] if kernel.shape[0] == kernel.shape[1] else kernel.shape[:2]
        ),
        "width": kernel.shape[-1],
        "depth": depth,
        "mlp_width": mlp_width,
        "num_heads": num_heads,
        "pool": pool,
        "stem": stem,
        "class_token": "cls" in arrays if pool != "cls" else None,
        "position": "learned" if learned else "sincos2d",
        "representation_size": bias_length(arrays, "pre_logits/bias", path) or None,
    }


def count_stage_sizes(arrays: Mapping[str, np.ndarray], path: str) -> tuple[int, ...]:
    """Counts the blocks in each stage of a hybrid's stem."""
    units = {
        (int(found[1]), int(found[2]))
        for name in arrays
        if (found := re.match(r"block(\d{1,9})/unit(\d{1,9})/", name))
    }
    stages = check_depth(max((stage for stage, _ in units), default=0), arrays, path)
    return tuple(
        check_depth(
            max((unit for other, unit in units if other == stage), default=0),
            arrays,
            path,
        )
        for stage in range(1, stages + 1)
    )
