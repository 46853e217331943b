"""ViT checkpoints of Hugging Face transformers and of timm, both ways: .safetensors.

Linear layers lie as [out, in], convolutions as [out, in, h, w]; timm keeps query, key and
value in one matrix, split here into `qkv.0`, `qkv.1`, `qkv.2` on the way in.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from attn_jax.convert.tensors import read_safetensors, write_safetensors
from attn_jax.convert.vit import (
    Entry,
    Size,
    assemble,
    check_classes,
    fit,
    left_behind,
    to_theirs,
)
from attn_jax.data.framing import sides
from attn_jax.models.vit import DIALECTS, ViT, sincos2d
from attn_jax.paths import named_leaves

HF_GELU = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
TIMM_GELU = {None: "erf", "gelu": "erf", "gelu_tanh": "tanh"}
# timm's names of architectures hide the heads; by width, as its constructors have them.
TIMM_HEADS = {
    192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16,
}  # fmt: skip


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
    path = folder / "model.safetensors"
    if not path.exists():
        raise ValueError(
            f"{folder} has no model.safetensors; a pickled pytorch_model.bin cannot be "
            "read safely. Save the model with safe_serialization=True."
        )
    config = json.loads((folder / "config.json").read_text())
    arrays = {n.removeprefix("vit."): a for n, a in read_safetensors(path).items()}
    activation = config.get("hidden_act", "gelu")
    if activation not in HF_GELU:
        raise ValueError(
            f"{path}: hidden_act={activation!r} is none of {', '.join(HF_GELU)}."
        )
    head, decoder = arrays.get("classifier.bias"), arrays.get("decoder.0.bias")
    if head is not None:  # ViTForImageClassification reads the token, past any pooler
        arrays = {n: a for n, a in arrays.items() if not n.startswith("pooler.")}
    classes = 0 if head is None else len(head)
    check_classes(fields, classes, str(path))
    settings = {
        "num_classes": classes,
        "patch_size": as_field(config["patch_size"]),
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "mlp_width": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "representation_size": (
            config["hidden_size"] if "pooler.dense.weight" in arrays else None
        ),
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
        parts = np.split(array, 3 if match[2] == "qkv" else 2)
        for i, part in enumerate(parts, start=3 - len(parts)):
            arrays[f"{match[1]}qkv.{i}.{match[3]}"] = part
    if "patch_embed.proj.weight" not in arrays:
        raise ValueError(
            f"{path} lacks patch_embed.proj.weight; it is no checkpoint of timm's "
            "VisionTransformer."
        )
    settings = timm_settings(arrays, json.loads(sidecar.read_text()), sidecar)
    size = settings.pop("image_size")
    check_classes(fields, settings["num_classes"], str(path))
    return finish(settings, arrays, timm_names, str(path), size, image_size, fields)


def timm_settings(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], sidecar: pathlib.Path
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
    heads = arguments.get("num_heads")
    if heads is None and "architecture" in config:
        heads = TIMM_HEADS.get(width)
    if heads is None:
        raise ValueError(
            f"{sidecar} has no num_heads, and no width of timm's table; add it."
        )
    activation = arguments.get("act_layer")
    if activation not in TIMM_GELU:
        raise ValueError(
            f"{sidecar}: act_layer={activation!r} is none of 'gelu', 'gelu_tanh'."
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
        "num_heads": heads,
        "pool": pools[pooling],
        "class_token": "cls_token" in arrays,
        "registers": 0 if registers is None else registers.shape[1],
        "position_on": "patches" if positions == rows * columns else "all",
        "norm_after_pool": "fc_norm.weight" in arrays,
        "dialect": "timm",
        "gelu": TIMM_GELU[activation],
        "pre_norm": "norm_pre.weight" in arrays,
        "layer_scale": None if scale is None else arguments.get("init_values", 1e-5),
        "qkv_bias": "blocks.0.attn.qkv.0.bias" in arrays,
        "qk_norm": "blocks.0.attn.q_norm.weight" in arrays,
        "image_size": as_field(size),
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
    if isinstance(size, int):
        return size
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


def to_hf(
    module: ViT, variables: Mapping[str, Any], folder: pathlib.Path, image_size: Size
) -> None:
    """Writes config.json and model.safetensors that transformers' ViT classes load.

    ViTForMaskedImageModeling where the model has a `patch_head`, else
    ViTForImageClassification where it has classes, else ViTModel.

    Raises:
        ValueError: the model has a part that transformers' ViT lacks.
    """
    rules = module.rules
    refuse(
        "transformers' ViT",
        {
            "pool": module.pool != "cls",
            "stem": module.stem is not None,
            "pooling": module.pooling is not None,
            "registers": module.registers > 0,
            "pre_norm": module.pre_norm,
            "layer_scale": module.layer_scale is not None,
            "qk_norm": module.qk_norm,
            "representation_size": module.representation_size is not None
            and (
                bool(module.num_classes) or module.representation_size != module.width
            ),
        },
    )
    if module.patch_outputs:
        kind, prefix = "ViTForMaskedImageModeling", "vit."
    elif module.num_classes:
        kind, prefix = "ViTForImageClassification", "vit."
    else:
        kind, prefix = "ViTModel", ""
    leaves = with_table(module, variables, image_size, all_tokens=True)
    arrays = renamed(leaves, hf_names(module))
    outside = ("classifier.", "decoder.")
    arrays = {
        name if name.startswith(outside) else prefix + name: array
        for name, array in arrays.items()
    }
    channels = leaves["embedding/kernel"].shape[2]
    config = {
        "architectures": [kind],
        "model_type": "vit",
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.num_heads,
        "intermediate_size": module.mlp_width,
        "hidden_act": "gelu" if rules.gelu == "erf" else "gelu_pytorch_tanh",
        "layer_norm_eps": rules.norm_epsilon,
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": module.attention_dropout,
        "image_size": image_size,
        "patch_size": module.patch_size,
        "num_channels": channels,
        "qkv_bias": module.qkv_bias,
        "encoder_stride": sides(module.patch_size)[0],
        "pooler_act": "tanh",
        "pooler_output_size": module.width,
        "id2label": {str(i): f"LABEL_{i}" for i in range(module.num_classes)},
        "label2id": {f"LABEL_{i}": i for i in range(module.num_classes)},
    }
    if not module.num_classes:
        del config["id2label"], config["label2id"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_safetensors(folder / "model.safetensors", arrays)


def to_timm(
    module: ViT, variables: Mapping[str, Any], path: pathlib.Path, image_size: Size
) -> None:
    """Writes NAME.safetensors and NAME.json, the arguments of timm's VisionTransformer.

    Raises:
        ValueError: the model has a part that timm's class lacks, or norms that are not its.
    """
    refuse(
        "timm's VisionTransformer",
        {
            "stem": module.stem is not None,
            "pooling": module.pooling is not None,
            "representation_size": module.representation_size is not None,
            "patch_outputs": module.patch_outputs > 0,
            "mask_token": module.mask_token,
        },
    )
    rules = module.rules
    on_all = rules.position_on == "all" and module.position == "learned"
    leaves = with_table(module, variables, image_size, all_tokens=on_all)
    arrays = renamed(leaves, timm_names(module))
    for name in [n for n in arrays if ".qkv.1." in n]:
        candidates = [name.replace(".qkv.1.", f".qkv.{i}.") for i in range(3)]
        parts = [part for part in candidates if part in arrays]
        fused = name.replace(".qkv.1.", ".qkv." if len(parts) == 3 else ".kv.")
        arrays[fused] = np.concatenate([arrays.pop(part) for part in parts])
    kernel = leaves["embedding/kernel"]
    arguments = {
        "img_size": image_size,
        "patch_size": module.patch_size,
        "in_chans": kernel.shape[2],
        "num_classes": module.num_classes,
        "global_pool": {"cls": "token", "gap": "avg", "map": "map"}[module.pool],
        "embed_dim": module.width,
        "depth": module.depth,
        "num_heads": module.num_heads,
        "mlp_ratio": module.mlp_width / module.width,
        "qkv_bias": module.qkv_bias,
        "qk_norm": module.qk_norm,
        "init_values": module.layer_scale,
        "class_token": module.prefix > module.registers,
        "reg_tokens": module.registers,
        "no_embed_class": not on_all,
        "pre_norm": module.pre_norm,
        "act_layer": "gelu" if rules.gelu == "erf" else "gelu_tanh",
    }
    if module.pool == "gap":
        arguments["fc_norm"] = rules.norm_after_pool
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(arguments, indent=1) + "\n")
    write_safetensors(path, arrays)


def refuse(whose: str, parts: Mapping[str, bool]) -> None:
    if present := [name for name, has in parts.items() if has]:
        raise ValueError(
            f"{whose} has no place for this model's {', '.join(present)}; such a model "
            "can only be kept as a checkpoint of this project."
        )


def with_table(
    module: ViT, variables: Mapping[str, Any], image_size: Size, *, all_tokens: bool
) -> dict[str, np.ndarray]:
    """The parameters by name; a fixed position table, or one without rows for the class
    token where `all_tokens` have one, is written out."""
    leaves = {n: np.asarray(a) for n, a in named_leaves(variables["params"]).items()}
    height, width = sides(image_size)
    rows, columns = sides(module.patch_size)
    grid = height // rows, width // columns
    positions = leaves.get("pos_embedding")
    if positions is None:
        positions = np.asarray(sincos2d(*grid, module.width))
    missing = grid[0] * grid[1] + (module.prefix if all_tokens else 0)
    missing -= positions.shape[1]
    if missing and missing != module.prefix:
        raise ValueError(
            f"the model has positions for {positions.shape[1]} tokens, which is no image of "
            f"{height}x{width}; pass the image_size that it was trained on."
        )
    none = np.zeros((1, missing, module.width), np.float32)
    return {**leaves, "pos_embedding": np.concatenate([none, positions], axis=1)}


def renamed(
    leaves: Mapping[str, np.ndarray], names: Mapping[str, Entry]
) -> dict[str, np.ndarray]:
    return {
        names[name].theirs: to_theirs(leaf, names[name].layout)
        for name, leaf in leaves.items()
    }
