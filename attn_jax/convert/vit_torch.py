"""ViT checkpoints of Hugging Face transformers and of timm: .safetensors.

Linear layers lie as [out, in], convolutions as [out, in, h, w]; timm keeps query, key and
value in one matrix, split here into `qkv.0`, `qkv.1`, `qkv.2` on the way in.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from attn_jax.convert.files import (
    Description,
    read_hugging_face,
    read_safetensors,
)
from attn_jax.convert.vit import (
    Entry,
    Size,
    assemble,
    check_classes,
    fit,
    left_behind,
)
from attn_jax.data.framing import sides
from attn_jax.models.vit import DIALECTS, ViT

# Names of activations -> ours; the first of each is the one we write.
HF_GELU = {
    "gelu": "erf",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "quick_gelu": "quick",
}
TIMM_GELU = {"gelu": "erf", "gelu_tanh": "tanh", "quick_gelu": "quick"}

# timm's architectures with the blocks of this project's ViT. Not among them: parallel blocks,
# norms after the branch, gated MLPs, differential attention, stems of convolutions.
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


def from_hf(
    folder: pathlib.Path,
    *,
    image_size: Size | None = None,
    **fields: Any,
) -> tuple[ViT, dict[str, Any]]:
    """(module, variables) of a folder with config.json and model.safetensors.

    ViTModel, ViTForImageClassification and ViTForMaskedImageModeling are told apart by
    their arrays; of the last, `patch_logits` are the pixels of a patch, channel by channel.

    Raises:
        ValueError: a file is missing or damaged; the two do not belong together.

    Source: transformers modeling_vit.py, configuration_vit.py.
    """
    path, config, arrays = read_hugging_face(folder)
    arrays = {name.removeprefix("vit."): array for name, array in arrays.items()}
    activation = config.get("hidden_act", "gelu")
    if activation not in HF_GELU:
        raise ValueError(
            f"{path}: hidden_act={activation!r} is none of {', '.join(HF_GELU)}."
        )
    head, decoder = arrays.get("classifier.bias"), arrays.get("decoder.0.bias")
    if head is not None:  # ViTForImageClassification reads the token, past any pooler
        arrays = {n: a for n, a in arrays.items() if not n.startswith("pooler.")}
    pooler = arrays.get("pooler.dense.bias")
    wanted = fields.get("representation_size", 1) is not None
    if pooler is not None and wanted and config.get("pooler_act", "tanh") != "tanh":
        raise ValueError(
            f"{path}: pooler_act={config['pooler_act']!r}, but the layer before a head has "
            "tanh here; pass representation_size=None to leave it out."
        )
    classes = 0 if head is None else len(head)
    check_classes(fields, classes, str(path))
    settings = {
        "num_classes": classes,
        "patch_size": as_field(config["patch_size"]),
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "mlp_width": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "representation_size": None if pooler is None else len(pooler),
        "dialect": "hf",
        "gelu": HF_GELU[activation],
        "norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "qkv_bias": config.get("qkv_bias", True),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
        "mask_token": "embeddings.mask_token" in arrays,
        "patch_outputs": 0 if decoder is None else len(decoder),
    }
    return finish(
        settings, arrays, hf_names, str(path), config["image_size"], image_size, fields
    )


def from_timm(
    path: pathlib.Path,
    *,
    image_size: Size | None = None,
    **fields: Any,
) -> tuple[ViT, dict[str, Any]]:
    """(module, variables) of a .safetensors file of timm's VisionTransformer.

    Beside it lies NAME.json, the constructor's arguments, or config.json as on the Hub:
    the fused matrix of query, key and value hides the number of heads.

    Raises:
        ValueError: a file is missing or damaged; the two do not belong together; the
            model has a part that is not the ViT's.

    Source: timm models/vision_transformer.py.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        sidecar = path.with_name("config.json")
    if not sidecar.exists():
        raise ValueError(
            f"{path} needs {path.stem}.json or config.json beside it: the arguments of "
            "timm's VisionTransformer, or the Hub's config. The file hides the heads."
        )
    arrays = {}
    for name, array in read_safetensors(path).items():
        match = re.fullmatch(r"(.*\.)(qkv|kv)\.(weight|bias)", name)
        if match is None:
            arrays[name] = array
            continue
        parts = np.array_split(array, 3 if match[2] == "qkv" else 2)
        for i, part in enumerate(parts, start=3 - len(parts)):
            arrays[f"{match[1]}qkv.{i}.{match[3]}"] = part
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
    settings = timm_settings(arrays, Description(sidecar), sidecar, fields)
    size = settings.pop("image_size")
    check_classes(fields, settings["num_classes"], str(path))
    return finish(settings, arrays, timm_names, str(path), size, image_size, fields)


def timm_settings(
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    sidecar: pathlib.Path,
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """The module's fields; what the arrays tell is read off them."""
    hub = config.get("pretrained_cfg", {})
    arguments = {**config, **config.get("model_args", {})}
    depth = 1 + max(
        int(found[1])
        for name in arrays
        if (found := re.match(r"blocks\.(\d+)\.", name))
    )
    width, _, ph, pw = arrays["patch_embed.proj.weight"].shape
    # What leaves no trace in the arrays.
    changed = [
        name
        for name, usual in (
            ("norm_layer", "layernorm"),
            ("block_fn", None),
            ("pool_include_prefix", False),
        )
        if arguments.get(name) not in (None, usual)
    ]
    if changed:
        raise ValueError(
            f"{sidecar}: a ViT of this project has no {', '.join(changed)} as given there."
        )
    hidden = {"num_heads": 12, "act_layer": "gelu"}  # as the constructor's defaults
    if "architecture" in config:
        hidden = timm_architecture(config["architecture"], width, sidecar, fields)
    hidden |= {n: arguments[n] for n in hidden if arguments.get(n) is not None}
    if hidden["act_layer"] not in TIMM_GELU:
        raise ValueError(
            f"{sidecar}: act_layer={hidden['act_layer']!r} is none of "
            f"{', '.join(map(repr, TIMM_GELU))}."
        )
    size = arguments.get("img_size")
    if size is None:
        size = hub["input_size"][1:] if "input_size" in hub else 224
    rows, columns = (
        n // p for n, p in zip(sides(as_field(size)), (ph, pw), strict=True)
    )
    pooling = arguments.get("global_pool", hub.get("global_pool", "token"))
    pools = {"token": "cls", "avg": "gap", "map": "map"}
    if pooling not in pools:
        raise ValueError(
            f"{sidecar}: global_pool={pooling!r} is none of 'token', 'avg', 'map'."
        )
    registers = arrays.get("reg_token")
    positions = arrays["pos_embed"].shape[1]
    scale = arrays.get("blocks.0.ls1.gamma")
    return {
        "num_classes": len(arrays["head.bias"]) if "head.bias" in arrays else 0,
        "patch_size": ph if ph == pw else (ph, pw),
        "width": width,
        "depth": depth,
        "mlp_width": len(arrays["blocks.0.mlp.fc1.bias"]),
        "num_heads": hidden["num_heads"],
        "pool": pools[pooling],
        "class_token": "cls_token" in arrays,
        "registers": 0 if registers is None else registers.shape[1],
        "position_on": "patches" if positions == rows * columns else "all",
        "norm_after_pool": "fc_norm.weight" in arrays,
        "dialect": "timm",
        "gelu": TIMM_GELU[hidden["act_layer"]],
        "norm_epsilon": hidden.get("norm_epsilon", 1e-6),
        "pre_norm": "norm_pre.weight" in arrays,
        "layer_scale": None if scale is None else arguments.get("init_values", 1e-5),
        "qkv_bias": "blocks.0.attn.qkv.0.bias" in arrays,
        "qk_norm": "blocks.0.attn.q_norm.weight" in arrays,
        "image_size": as_field(size),
    }


def timm_architecture(
    name: str, width: int, sidecar: pathlib.Path, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """What only timm's source tells of an architecture on the Hub, found by its name.

    Checked against every ViT that timm registers by `make parity`.
    """
    name = name.partition(".")[0]  # what follows is the training
    plain = TIMM_PLAIN.fullmatch(name) is not None
    needed = ("num_heads", "gelu", "norm_epsilon")
    if not plain and any(n not in fields for n in needed):
        raise ValueError(
            f"{sidecar}: heads, GELU and epsilon of timm's {name!r} are known to timm alone. "
            f"If its blocks are plain ones, pass {', '.join(needed)} as "
            f"timm.create_model({name!r}) shows them."
        )
    # All have heads of 64 channels up to a width of 1,024 and 16 heads above, but for one.
    heads = 16 if "base_patch16_gap" in name else min(width // 64, 16)
    activation = "gelu_tanh" if TIMM_TANH.fullmatch(name) else "gelu"
    return {
        "num_heads": heads if plain else fields["num_heads"],
        "act_layer": "quick_gelu" if "quickgelu" in name else activation,
        "norm_epsilon": 1e-5 if "_clip" in name else 1e-6,
    }


def finish(
    settings: dict[str, Any],
    arrays: dict[str, np.ndarray],
    names: Any,
    path: str,
    trained_on: Any,
    image_size: Size | None,
    fields: Mapping[str, Any],
) -> tuple[ViT, dict[str, Any]]:
    heads = ("num_classes", "representation_size", "patch_outputs")
    settings |= {name: fields[name] for name in heads if name in fields}
    rules = DIALECTS[settings["dialect"]]
    for name, usual in rules._asdict().items():
        if settings.get(name) == usual:  # the dialect says so already
            del settings[name]
    module = ViT(**settings)
    leave = left_behind(
        fields,
        {
            "classifier.": ("num_classes", 0),
            "head.": ("num_classes", 0),
            "pooler.": ("representation_size", None),
            "decoder.": ("patch_outputs", 0),
        },
    )
    height, width = sides(as_field(trained_on))
    rows, columns = sides(module.patch_size)
    grid = height // rows, width // columns
    params = assemble(module, names(module), arrays, path, grid, leave)
    module, params = fit(module, params, grid, fields, image_size)
    return module, {"params": params}


def as_field(size: Any) -> Size:
    """JSON has lists where a field is a tuple; a square is one number."""
    if type(size) is int:
        return size
    if not isinstance(size, list | tuple) or list(map(type, size)) != [int, int]:
        raise ValueError(f"{size!r} is no size in pixels: one whole number or two.")
    return size[0] if size[0] == size[1] else (size[0], size[1])


def hf_names(module: ViT) -> dict[str, Entry]:
    names = {
        "cls": Entry("embeddings.cls_token"),
        "pos_embedding": Entry("embeddings.position_embeddings"),
        "mask_token": Entry("embeddings.mask_token"),
        **linear("embedding", "embeddings.patch_embeddings.projection", "conv"),
        **norm("encoder_norm", "layernorm"),
        **linear("pre_logits", "pooler.dense"),
        **linear("head", "classifier"),
        **linear("patch_head", "decoder.0", "conv1x1"),
    }
    for i in range(module.depth):
        ours, theirs = f"block_{i}", f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            names |= linear(
                f"{ours}/attention/{part}",
                f"{theirs}.attention.attention.{part}",
                "heads",
            )
        names |= {
            **linear(
                f"{ours}/attention/out", f"{theirs}.attention.output.dense", "out"
            ),
            **linear(f"{ours}/mlp/dense_1", f"{theirs}.intermediate.dense"),
            **linear(f"{ours}/mlp/dense_2", f"{theirs}.output.dense"),
            **norm(f"{ours}/norm_1", f"{theirs}.layernorm_before"),
            **norm(f"{ours}/norm_2", f"{theirs}.layernorm_after"),
        }
    return names


def timm_names(module: ViT) -> dict[str, Entry]:
    pool = "attention_pooling"
    names = {
        "cls": Entry("cls_token"),
        "registers": Entry("reg_token"),
        "pos_embedding": Entry("pos_embed"),
        **linear("embedding", "patch_embed.proj", "conv"),
        **norm("pre_norm", "norm_pre"),
        **norm("encoder_norm", "fc_norm" if module.rules.norm_after_pool else "norm"),
        **linear("head", "head"),
        f"{pool}/probe": Entry("attn_pool.latent"),
        **linear(f"{pool}/attention/query", "attn_pool.q", "heads"),
        **linear(f"{pool}/attention/key", "attn_pool.qkv.1", "heads"),
        **linear(f"{pool}/attention/value", "attn_pool.qkv.2", "heads"),
        **linear(f"{pool}/attention/out", "attn_pool.proj", "out"),
        **norm(f"{pool}/norm", "attn_pool.norm"),
        **linear(f"{pool}/mlp/dense_1", "attn_pool.mlp.fc1"),
        **linear(f"{pool}/mlp/dense_2", "attn_pool.mlp.fc2"),
    }
    for i in range(module.depth):
        ours, theirs = f"block_{i}", f"blocks.{i}"
        for j, part in enumerate(("query", "key", "value")):
            names |= linear(
                f"{ours}/attention/{part}", f"{theirs}.attn.qkv.{j}", "heads"
            )
        names |= {
            **linear(f"{ours}/attention/out", f"{theirs}.attn.proj", "out"),
            **norm(f"{ours}/attention/query_norm", f"{theirs}.attn.q_norm"),
            **norm(f"{ours}/attention/key_norm", f"{theirs}.attn.k_norm"),
        }
        for n in (1, 2):
            names |= {
                **linear(f"{ours}/mlp/dense_{n}", f"{theirs}.mlp.fc{n}"),
                **norm(f"{ours}/norm_{n}", f"{theirs}.norm{n}"),
                f"{ours}/scale_{n}": Entry(f"{theirs}.ls{n}.gamma"),
            }
    return names


def linear(
    ours: str,
    theirs: str,
    layout: Literal["dense", "heads", "out", "conv", "conv1x1"] = "dense",
) -> dict[str, Entry]:
    return {
        f"{ours}/kernel": Entry(f"{theirs}.weight", layout),
        f"{ours}/bias": Entry(f"{theirs}.bias", "flat"),
    }


def norm(ours: str, theirs: str) -> dict[str, Entry]:
    return {
        f"{ours}/scale": Entry(f"{theirs}.weight"),
        f"{ours}/bias": Entry(f"{theirs}.bias"),
    }
