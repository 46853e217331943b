"""Writes a ViT for Hugging Face transformers or timm: .safetensors beside a configuration.

The inverse of read_hf.py and read_timm.py, with the same tables of names.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from attn_jax.convert.arrays import write_arrays
from attn_jax.convert.files import write_safetensors
from attn_jax.convert.vit.fit import Size
from attn_jax.convert.vit.names import HF_GELU, TIMM_GELU, hf_entries, timm_entries
from attn_jax.data.framing import sides
from attn_jax.models.vit import ViT, sincos2d
from attn_jax.paths import named_leaves


class Images(NamedTuple):
    """Properties of the images and classes, which a model's parameters do not contain.

    Attributes:
        size: in pixels.
        mean, std: of the normalization, in units of 0..1, per channel; None: unknown.
        labels: names of the classes; None: unknown.
    """

    size: Size
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None


def to_hf(
    module: ViT, variables: Mapping[str, Any], folder: pathlib.Path, images: Images
) -> None:
    """Writes config.json and model.safetensors for the ViT classes of transformers.

    If the statistics of pixels are known, also writes preprocessor_config.json. The class is
    ViTForMaskedImageModeling if the model has a `patch_head`, ViTForImageClassification if it
    has classes, and else ViTModel.

    Raises:
        ValueError: the model has a part that transformers' ViT lacks.
    """
    rules = module.rules
    check_representable(
        "transformers' ViT",
        {
            "pool": module.pool != "cls",
            "stem": module.stem is not None,
            "pooling": module.pooling is not None,
            "attention": module.attention is not None,
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
    leaves = add_position_table(module, variables, images.size, all_tokens=True)
    arrays = write_arrays(hf_entries(module), leaves)
    outside = ("classifier.", "decoder.")
    arrays = {
        name if name.startswith(outside) else prefix + name: array
        for name, array in arrays.items()
    }
    channels = leaves["embedding/kernel"].shape[2]
    labels = images.labels or [f"LABEL_{i}" for i in range(module.num_classes)]
    config = {
        "architectures": [kind],
        "model_type": "vit",
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.num_heads,
        "intermediate_size": module.mlp_width,
        "hidden_act": find_activation(rules.gelu, HF_GELU),
        "layer_norm_eps": rules.norm_epsilon,
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": module.attention_dropout,
        "image_size": images.size,
        "patch_size": module.patch_size,
        "num_channels": channels,
        "qkv_bias": module.qkv_bias,
        "encoder_stride": sides(module.patch_size)[0],
        "pooler_act": "tanh",
        "pooler_output_size": module.width,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if not module.num_classes:
        del config["id2label"], config["label2id"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if images.mean is not None and images.std is not None:
        height, width = sides(images.size)
        processor = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": 2,  # bilinear
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": per_channel(images.mean, channels),
            "image_std": per_channel(images.std, channels),
        }
        text = json.dumps(processor, indent=1) + "\n"
        (folder / "preprocessor_config.json").write_text(text)
    write_safetensors(folder / "model.safetensors", arrays)


def to_timm(
    module: ViT, variables: Mapping[str, Any], path: pathlib.Path, images: Images
) -> None:
    """Writes NAME.safetensors and NAME.json, the arguments of timm's VisionTransformer.

    If class names or the statistics of pixels are known, NAME.json also has
    `pretrained_cfg`, an argument of `timm.create_model` instead of the class.

    The epsilon of timm's norms is 1e-6, which no argument changes. A model with a smaller one
    is written nevertheless: its norms change by less than 1e-5 (relative) if the variance is
    above .05.

    Raises:
        ValueError: the model has a part that timm's class lacks, or a larger epsilon.
    """
    check_representable(
        "timm's VisionTransformer",
        {
            "stem": module.stem is not None,
            "pooling": module.pooling is not None,
            "attention": module.attention is not None,
            "representation_size": module.representation_size is not None,
            "patch_outputs": module.patch_outputs > 0,
            "mask_token": module.mask_token,
        },
    )
    rules = module.rules
    if rules.norm_epsilon > 1e-6:
        raise ValueError(
            f"norm_epsilon={rules.norm_epsilon:g} is not timm's 1e-6, which NAME.json cannot "
            "change; export module.clone(norm_epsilon=1e-6) if the outputs may differ."
        )
    on_all = rules.position_on == "all" and module.position == "learned"
    leaves = add_position_table(module, variables, images.size, all_tokens=on_all)
    arrays = write_arrays(timm_entries(module), leaves)
    kernel = leaves["embedding/kernel"]
    arguments = {
        "img_size": images.size,
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
        "act_layer": find_activation(rules.gelu, TIMM_GELU),
    }
    if module.pool == "gap":
        arguments["fc_norm"] = rules.norm_after_pool
    known: dict[str, Any] = {}
    if images.labels is not None:
        known["label_names"] = list(images.labels)
    if images.mean is not None and images.std is not None:
        known["mean"] = per_channel(images.mean, kernel.shape[2])
        known["std"] = per_channel(images.std, kernel.shape[2])
    if known:
        arguments["pretrained_cfg"] = known
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(arguments, indent=1) + "\n")
    write_safetensors(path, arrays)


def per_channel(numbers: tuple[float, ...], channels: int) -> list[float]:
    """Expands numbers, one per channel or one for all, to one per channel.

    Raises:
        ValueError: there are neither as many numbers as channels, nor one.
    """
    if len(numbers) not in (1, channels):
        raise ValueError(
            f"mean and std have {len(numbers)} numbers, but the images have {channels} "
            "channels; pass one number, or one per channel."
        )
    return list(numbers) * (channels if len(numbers) == 1 else 1)


def find_activation(gelu: str, names: Mapping[str, str]) -> str:
    """Finds the other library's name of an activation."""
    return next(theirs for theirs, ours in names.items() if ours == gelu)


def check_representable(whose: str, parts: Mapping[str, bool]) -> None:
    if present := [name for name, has in parts.items() if has]:
        raise ValueError(
            f"{whose} has no place for this model's {', '.join(present)}. Try the other "
            "format (hf, timm); what neither can hold stays a checkpoint of this project."
        )


def add_position_table(
    module: ViT, variables: Mapping[str, Any], image_size: Size, *, all_tokens: bool
) -> dict[str, np.ndarray]:
    """Returns the parameters by name, with an explicit position table.

    Fixed positions are computed. If `all_tokens`, the table has rows for the class token, which
    are zero if the model has none.
    """
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
            f"the model has positions for {positions.shape[1]} tokens, which do not fit images "
            f"of {height}x{width}; pass the image_size that it was trained on."
        )
    none = np.zeros((1, missing, module.width), np.float32)
    return {**leaves, "pos_embedding": np.concatenate([none, positions], axis=1)}
