"""Reads ViT checkpoints of timm: .safetensors beside a JSON file."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from attn_jax.convert.arrays import bias_length, require_shape
from attn_jax.convert.description import Description, as_size, shorten
from attn_jax.convert.files import read_safetensors
from attn_jax.convert.vit.build import build_checkpoint
from attn_jax.convert.vit.fit import Checkpoint, Size, check_classes
from attn_jax.convert.vit.names import TIMM_GELU, timm_entries
from attn_jax.data.framing import sides

# timm's architectures whose blocks are those of our ViT. Excluded are parallel blocks, norms
# after the branch, gated MLPs, differential attention, and convolutional stems.
TIMM_PLAIN = re.compile(
    "(vit|deit3?|flexivit)_"
    "(tiny|xsmall|small|wee|little|mediumd?|betwixt|base|so150m2?|large|so400m|huge"
    "|giant|giantopt|gigantic)"
    r"(_(patch\d+|plus|36x1|reg\d|gap|map|clip|quickgelu|siglip|dinov2|tipsv2|miil|\d+))*"
)
TIMM_TANH = re.compile(
    "vit_((base_patch32|giantopt_patch16|so400m_patch16)_siglip.*"
    "|large_patch16_siglip_(gap_)?512)"
)


def find_sidecar(path: pathlib.Path) -> pathlib.Path:
    """Finds the JSON file that describes a .safetensors file.

    Raises:
        ValueError: there is no such JSON file.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        sidecar = path.with_name("config.json")
    if not sidecar.exists():
        raise ValueError(
            f"{path} needs {path.stem}.json or config.json beside it: the arguments of "
            "timm's VisionTransformer, or the Hub's config. The arrays do not show the "
            "number of heads."
        )
    return sidecar


def from_timm(
    path: pathlib.Path,
    *,
    image_size: Size | None = None,
    **fields: Any,
) -> Checkpoint:
    """Reads the model of a .safetensors file of timm's VisionTransformer.

    Beside it must be NAME.json, the constructor's arguments, or config.json of the Hub, since
    the fused matrix of query, key and value does not show the number of heads.

    Raises:
        ValueError: a file is missing or damaged; the two files do not belong together; the
            model has a part that our ViT lacks.

    Source: timm models/vision_transformer.py.
    """
    sidecar = find_sidecar(path)
    arrays = read_safetensors(path)
    needed = {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.bias": 1}
    if lacking := [
        name
        for name, dimensions in needed.items()
        if name not in arrays or arrays[name].ndim != dimensions
    ]:
        raise ValueError(
            f"{path} lacks {', '.join(lacking)}; it is no checkpoint of timm's "
            "VisionTransformer with plain blocks."
        )
    settings = read_timm_settings(arrays, Description(sidecar), sidecar, fields)
    size = settings.pop("image_size")
    check_classes(fields, settings["num_classes"], str(path))
    return build_checkpoint(
        settings, arrays, timm_entries, str(path), size, image_size, fields
    )


def read_timm_settings(
    arrays: Mapping[str, np.ndarray],
    config: Description,
    sidecar: pathlib.Path,
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """Reads the module's fields from the arrays, and from the JSON what they do not show."""
    source = str(sidecar.parent)
    hub, given = (
        config.section("pretrained_cfg"),
        {**config, **config.section("model_args")},
    )
    arguments = config.with_values({k: v for k, v in given.items() if v is not None})
    blocks = [
        int(found[1])
        for name in arrays
        if (found := re.match(r"blocks\.(\d{1,9})\.", name))
    ]
    width, _, ph, pw = arrays["patch_embed.proj.weight"].shape
    # Unsupported options that no array shows.
    changed = [
        name
        for name, usual in (
            ("norm_layer", "layernorm"),
            ("block_fn", None),
            ("pool_include_prefix", False),
        )
        if arguments.get(name, usual) != usual
    ]
    if changed:
        raise ValueError(
            f"{sidecar}: {', '.join(changed)} is set to a value that our ViT does not support."
        )
    hidden: dict[str, Any] = {
        "num_heads": 12,
        "act_layer": "gelu",
    }  # as the constructor's defaults
    if "architecture" in config:
        hidden = derive_timm_options(config["architecture"], width, sidecar, fields)
    gelu = TIMM_GELU[arguments.choice("act_layer", TIMM_GELU, hidden["act_layer"])]
    size = arguments.get("img_size")
    if size is None:
        channels_first = hub.get("input_size", (3, 224, 224))
        size = channels_first[1:] if isinstance(channels_first, list | tuple) else None
    size = as_size(size, f"{sidecar}: img_size=")
    rows, columns = (n // p for n, p in zip(sides(size), (ph, pw), strict=True))
    pools = {"token": "cls", "avg": "gap", "map": "map"}
    pool = arguments.choice(
        "global_pool", pools, hub.choice("global_pool", pools, "token")
    )
    registers = 0
    if "reg_token" in arrays:
        registers = require_shape(arrays, "reg_token", 3, source)[1]
    positions = arrays["pos_embed"].shape[1]
    layer_scale = None
    if "blocks.0.ls1.gamma" in arrays:
        layer_scale = arguments.number("init_values", 1e-5)
    return {
        "num_classes": bias_length(arrays, "head.bias", source),
        "patch_size": ph if ph == pw else (ph, pw),
        "width": width,
        "depth": 1 + max(blocks),
        "mlp_width": len(arrays["blocks.0.mlp.fc1.bias"]),
        "num_heads": arguments.count("num_heads", hidden["num_heads"]),
        "pool": pools[pool],
        "class_token": "cls_token" in arrays,
        "registers": registers,
        "position_on": "patches" if positions == rows * columns else "all",
        "norm_after_pool": "fc_norm.weight" in arrays,
        "dialect": "timm",
        "gelu": gelu,
        "norm_epsilon": hidden.get("norm_epsilon", 1e-6),
        "pre_norm": "norm_pre.weight" in arrays,
        "layer_scale": layer_scale,
        "qkv_bias": "blocks.0.attn.qkv.bias" in arrays,
        "qk_norm": "blocks.0.attn.q_norm.weight" in arrays,
        "image_size": size,
    }


def derive_timm_options(
    name: Any, width: int, sidecar: pathlib.Path, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Derives options of an architecture that only timm's source shows, from its name.

    `make parity` checks them against every ViT that timm registers.
    """
    if not isinstance(name, str):
        raise ValueError(f"{sidecar}: architecture={shorten(name)} must be a string.")
    name = name.partition(".")[0]  # a tag of the training follows
    plain = TIMM_PLAIN.fullmatch(name) is not None
    needed = ("num_heads", "gelu", "norm_epsilon")
    if not plain and any(n not in fields for n in needed):
        raise ValueError(
            f"{sidecar}: heads, GELU and epsilon of timm's {name!r} are not in the file. If "
            f"its blocks are plain ones, pass {', '.join(needed)} as "
            f"timm.create_model({name!r}) shows them."
        )
    # With one exception, heads have 64 channels up to width 1,024; above it there are 16.
    heads = 16 if "base_patch16_gap" in name else min(width // 64, 16)
    activation = "gelu_tanh" if TIMM_TANH.fullmatch(name) else "gelu"
    return {
        "num_heads": heads if plain else fields["num_heads"],
        "act_layer": "quick_gelu" if "quickgelu" in name else activation,
        "norm_epsilon": 1e-5 if "_clip" in name else 1e-6,
    }
