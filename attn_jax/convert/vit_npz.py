"""ViT checkpoints of google-research/vision_transformer and big_vision: .npz files.

One file, keys as paths. Both name the same things; what differs is the numbering of the
parts of a block, where positions lie, and big_vision's stacked layers.
"""

import math
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from attn_jax.convert.vit import (
    Entry,
    Size,
    assemble,
    check_classes,
    fit,
    grid_of,
    left_behind,
)
from attn_jax.models.resnet import ResNetStem
from attn_jax.models.vit import ViT


def from_npz(
    path: pathlib.Path,
    *,
    subtree: str = "",
    image_size: Size | None = None,
    **fields: Any,
) -> tuple[ViT, dict[str, Any]]:
    """(module, variables) of a file, in the dialect of the code that wrote it.

    Args:
        subtree: of a file with several models, such as "img"; "" where there is one.

    Raises:
        ValueError: the file is cut short or is no ViT; its arrays do not fit together.

    Source: vision_transformer checkpoint.py; big_vision models/vit.py `load`,
    `fix_old_checkpoints`, utils.py `recover_dtype`.
    """
    arrays, dialect = read(path, subtree)
    settings = settings_of(arrays, str(path)) | {"dialect": dialect}
    check_classes(fields, settings["num_classes"], str(path))
    settings |= {
        name: fields[name]
        for name in ("num_classes", "representation_size")
        if name in fields
    }
    module = ViT(**settings)
    grid = (1, 1)  # without positions any image will do
    if "pos_embedding" in arrays:
        rows = arrays["pos_embedding"].shape[1]
        if (
            dialect == "big_vision"
            and "cls" in arrays
            and math.isqrt(rows) ** 2 != rows
        ):
            # Of its first generation, the class token's position still among them.
            module = module.clone(position_on="all")
        grid = grid_of(module, rows, str(path))
    leave = left_behind(
        fields,
        {"head/": ("num_classes", 0), "pre_logits/": ("representation_size", None)},
    )
    params = assemble(module, names(module), arrays, str(path), grid, leave)
    module, params = fit(module, params, grid, fields, image_size)
    return module, {"params": params}


def read(path: pathlib.Path, subtree: str = "") -> tuple[dict[str, np.ndarray], str]:
    """The arrays under today's big_vision names, and the dialect of who wrote them."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no whole .npz file. Fetch it again.")
    try:
        # NumPy leaves a path's file open where it is no archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} is no whole .npz file: {error}. Fetch it again."
        ) from error
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
            f"{path} should hold one ViT, that is one embedding/kernel [h, w, c, D]; found "
            f"under: {found}. It is a checkpoint of another family, or name one with "
            "PATH.npz:SUBTREE."
        )
    arrays = {
        name.removeprefix(roots[0]): recovered(array)
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
    return unstacked(renamed(arrays)), dialect


def recovered(array: np.ndarray) -> np.ndarray:
    """NumPy stores bfloat16 as two bytes without a name."""
    return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array


def renamed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Old names to today's: parts once were numbered together, in the order of a block."""
    rules = [
        ("MultiHeadDotProductAttention_1/", "MultiHeadDotProductAttention_0/"),
        ("LayerNorm_2/", "LayerNorm_1/"),
        ("MlpBlock_3/", "MlpBlock_0/"),
        ("Transformer/posembed_input/pos_embedding", "pos_embedding"),
        ("Transformer/posembed_encoder/pos_embedding", "pos_embedding"),
        ("posembed_input/pos_embedding", "pos_embedding"),
        # The pooling head once had no scope of its own.
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


def unstacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Layers that were scanned, one array for all, as one array each."""
    stacked = "Transformer/encoderblock/"
    result = {}
    for name, array in arrays.items():
        if name.startswith(stacked):
            part = name.removeprefix(stacked)
            for i, layer in enumerate(array):
                result[f"Transformer/encoderblock_{i}/{part}"] = layer
        else:
            result[name] = array
    return result


def settings_of(arrays: Mapping[str, np.ndarray], path: str) -> dict[str, Any]:
    """The module's fields, read off the arrays."""
    first = "Transformer/encoderblock_0"
    query = f"{first}/MultiHeadDotProductAttention_0/query/kernel"
    for needed in (f"{first}/MlpBlock_0/Dense_0/kernel", query):
        if needed not in arrays:
            raise ValueError(
                f"{path} lacks {needed}; it is cut short or no ViT's checkpoint."
            )
    blocks = {
        int(found[1])
        for name in arrays
        if (found := re.match(r"Transformer/encoderblock_(\d+)/", name))
    }
    kernel = arrays["embedding/kernel"]
    pool = "cls" if "cls" in arrays else "gap"
    pool = "map" if "MAPHead_0/probe" in arrays else pool
    positions = arrays.get("pos_embedding")
    if positions is not None and positions.ndim != 3:
        raise ValueError(
            f"{path}: positions are {list(positions.shape)}, not [1, tokens, width]. "
            "Fetch it again."
        )
    pre_logits = arrays.get("pre_logits/bias")
    stem = None
    if "conv_root/kernel" in arrays:
        stem = ResNetStem(stage_sizes(arrays), arrays["conv_root/kernel"].shape[-1])
    return {
        "num_classes": len(arrays["head/bias"]) if "head/bias" in arrays else 0,
        "patch_size": (
            kernel.shape[0] if kernel.shape[0] == kernel.shape[1] else kernel.shape[:2]
        ),
        "width": kernel.shape[-1],
        "depth": max(blocks) + 1,
        "mlp_width": arrays[f"{first}/MlpBlock_0/Dense_0/kernel"].shape[-1],
        "num_heads": arrays[query].shape[1],
        "pool": pool,
        "stem": stem,
        "class_token": "cls" in arrays if pool != "cls" else None,
        "position": "sincos2d" if positions is None else "learned",
        "representation_size": None if pre_logits is None else len(pre_logits),
    }


def stage_sizes(arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    units = {
        (int(found[1]), int(found[2]))
        for name in arrays
        if (found := re.match(r"block(\d+)/unit(\d+)/", name))
    }
    stages = max((stage for stage, _ in units), default=0)
    return tuple(
        max(unit for other, unit in units if other == stage)
        for stage in range(1, stages + 1)
    )


def names(module: ViT) -> dict[str, Entry]:
    """{our name: theirs} of everything such a module may have."""
    table = {
        "cls": "cls",
        "pos_embedding": "pos_embedding",
        "attention_pooling/probe": "MAPHead_0/probe",
    }

    def modules(*pairs: tuple[str, str]) -> None:
        for ours, theirs in pairs:
            for leaf in ("kernel", "bias", "scale"):
                table[f"{ours}/{leaf}"] = f"{theirs}/{leaf}"

    def attention_and_mlp(ours: str, theirs: str) -> None:
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        for part in ("query", "key", "value", "out"):
            modules((f"{ours}/attention/{part}", f"{attention}/{part}"))
        for i in (1, 2):
            modules((f"{ours}/mlp/dense_{i}", f"{theirs}/MlpBlock_0/Dense_{i - 1}"))

    modules(
        ("embedding", "embedding"),
        ("encoder_norm", "Transformer/encoder_norm"),
        ("pre_logits", "pre_logits"),
        ("head", "head"),
        ("attention_pooling/norm", "MAPHead_0/LayerNorm_0"),
    )
    attention_and_mlp("attention_pooling", "MAPHead_0")
    for i in range(module.depth):
        theirs = f"Transformer/encoderblock_{i}"
        attention_and_mlp(f"block_{i}", theirs)
        modules(
            *((f"block_{i}/norm_{n}", f"{theirs}/LayerNorm_{n - 1}") for n in (1, 2))
        )
    if module.stem is not None:
        for root in ("conv_root", "gn_root"):
            modules((f"stem/{root}", root))
        for stage, size in enumerate(module.stem.stage_sizes):
            for unit in range(size):
                for part in ("conv1", "conv2", "conv3", "conv_proj"):
                    norm = part.replace("conv", "gn")
                    theirs = f"block{stage + 1}/unit{unit + 1}"
                    ours = f"stem/stage_{stage}_unit_{unit}"
                    modules(*((f"{ours}/{p}", f"{theirs}/{p}") for p in (part, norm)))
    return {ours: Entry(theirs) for ours, theirs in table.items()}
