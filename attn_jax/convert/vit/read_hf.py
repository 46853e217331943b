"""Reads ViT checkpoints of Hugging Face transformers: .safetensors and config.json."""

import pathlib
from typing import Any

from attn_jax.convert.arrays import bias_length
from attn_jax.convert.description import shorten
from attn_jax.convert.files import read_hugging_face
from attn_jax.convert.vit.build import build_checkpoint
from attn_jax.convert.vit.fit import Checkpoint, Size, check_classes
from attn_jax.convert.vit.names import HF_GELU, hf_entries


def from_hf(
    folder: pathlib.Path,
    *,
    image_size: Size | None = None,
    **fields: Any,
) -> Checkpoint:
    """Reads the model of a folder with config.json and model.safetensors.

    The arrays determine whether it is a ViTModel, ViTForImageClassification or
    ViTForMaskedImageModeling; `patch_logits` of the last are the pixels of a patch, channel by
    channel.

    Raises:
        ValueError: a file is missing or damaged; the two files do not belong together.

    Source: transformers modeling_vit.py, configuration_vit.py.
    """
    path, config, arrays = read_hugging_face(folder)
    arrays = {name.removeprefix("vit."): array for name, array in arrays.items()}
    activation = config.choice("hidden_act", HF_GELU, "gelu")
    classes = bias_length(arrays, "classifier.bias", str(path))
    decoder = bias_length(arrays, "decoder.0.bias", str(path))
    if classes:  # ViTForImageClassification does not use the pooler
        arrays = {n: a for n, a in arrays.items() if not n.startswith("pooler.")}
    pooler = bias_length(arrays, "pooler.dense.bias", str(path)) or None
    wanted = fields.get("representation_size", 1) is not None
    if pooler is not None and wanted and config.get("pooler_act", "tanh") != "tanh":
        raise ValueError(
            f"{path}: pooler_act={shorten(config['pooler_act'])} is not supported, only 'tanh'; "
            "pass representation_size=None to leave out the pooler."
        )
    check_classes(fields, classes, str(path))
    settings = {
        "num_classes": classes,
        "patch_size": config.size("patch_size"),
        "width": config.count("hidden_size"),
        "depth": config.count("num_hidden_layers"),
        "mlp_width": config.count("intermediate_size"),
        "num_heads": config.count("num_attention_heads"),
        "representation_size": pooler,
        "dialect": "hf",
        "gelu": HF_GELU[activation],
        "norm_epsilon": config.number("layer_norm_eps", 1e-12),
        "qkv_bias": config.flag("qkv_bias", True),
        "dropout": config.number("hidden_dropout_prob", 0.0, 1),
        "attention_dropout": config.number("attention_probs_dropout_prob", 0.0, 1),
        "mask_token": "embeddings.mask_token" in arrays,
        "patch_outputs": decoder,
    }
    size = config.size("image_size")
    return build_checkpoint(
        settings, arrays, hf_entries, str(path), size, image_size, fields
    )
