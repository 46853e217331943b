"""ViT checkpoints of Hugging Face transformers: a folder with .safetensors and config.json."""

import pathlib
from typing import Any

from attn_jax.convert.files import read_hugging_face
from attn_jax.convert.vit.build import as_size, build_checkpoint
from attn_jax.convert.vit.fit import Checkpoint, Size, check_classes
from attn_jax.convert.vit.names import HF_GELU, hf_entries


def from_hf(
    folder: pathlib.Path,
    *,
    image_size: Size | None = None,
    **fields: Any,
) -> Checkpoint:
    """The model of a folder with config.json and model.safetensors.

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
        "patch_size": as_size(config["patch_size"]),
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
    size = as_size(config["image_size"])
    return build_checkpoint(
        settings, arrays, hf_entries, str(path), size, image_size, fields
    )
