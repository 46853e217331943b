"""Checkpoints from elsewhere as our modules and parameter trees, and back."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from etils import epath

from attn_jax import paths, workdir
from attn_jax.convert import bert, vit_npz, vit_torch
from attn_jax.convert.vit import Size, fit, resized, square, stride
from attn_jax.models.vit import ViT


def load_pretrained(
    path: epath.PathLike, *, image_size: Size | None = None, **model_fields: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """(module, variables) of a checkpoint; the format is found by looking.

    Known are a run's folder (its newest checkpoint, averaged where the run keeps an
    average); ViT's .npz of google-research/vision_transformer and of big_vision, where
    `FILE.npz:img` names one of several models; folders of Hugging Face with BERT or ViT;
    timm's ViT, FILE.safetensors or a folder of the Hub.

    Args:
        image_size: of a ViT in pixels, one side or (height, width): its positions are
            resized by the rule of its dialect. None: as it was trained.
        model_fields: top-level fields of the module to change, such as `dtype`. Of a ViT,
            another `patch_size` resizes the patch filters; `num_classes=0` and
            `representation_size=None` leave a head or what is before it behind.

    Raises:
        ValueError: the path is missing or nothing that can be read; its arrays do not make
            the model it says it is (one table of all differences); the fields ask for a
            head of other classes.
    """
    text = str(path)
    file, _, subtree = text.partition(".npz:")
    if subtree:
        text = f"{file}.npz"
    place = epath.Path(text)
    if not place.exists():
        raise ValueError(
            f"{text} does not exist; name a run's --workdir, a folder of Hugging Face, or a "
            "ViT's .npz or .safetensors."
        )
    local = pathlib.Path(text)
    if local.suffix == ".npz":
        return vit_npz.from_npz(
            local, subtree=subtree, image_size=image_size, **model_fields
        )
    if local.suffix == ".safetensors":
        return vit_torch.from_timm(local, image_size=image_size, **model_fields)
    config = place / "config.json"
    if not config.exists():
        raise ValueError(
            f"{path} has no config.json; it is neither a run's folder nor one of Hugging "
            "Face."
        )
    if (place / "checkpoints").exists():
        return from_run(path, image_size, model_fields)
    described = json.loads(config.read_text())
    family = described.get("model_type")
    if str(described.get("architecture", "")).startswith("vit_"):
        weights = local / "model.safetensors"
        return vit_torch.from_timm(weights, image_size=image_size, **model_fields)
    if family == "vit":
        return vit_torch.from_hf(local, image_size=image_size, **model_fields)
    if image_size is not None:
        raise ValueError(f"{path}: image_size is for a ViT, not for {family!r}.")
    if family == "bert":
        return bert.from_hf(local, **model_fields)
    raise ValueError(
        f"{path} is neither a run's folder (there is no checkpoints/) nor a checkpoint of a "
        f"known family: its config.json says model_type={family!r}; known: 'bert', 'vit'."
    )


def from_run(
    path: epath.PathLike, image_size: Size | None, fields: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    if image_size is None:
        overrides = {f"model.{name}": value for name, value in fields.items()}
        module, variables, _ = workdir.restore(path, overrides=overrides)
        return module, variables
    module, variables, _ = workdir.restore(path)
    if not isinstance(module, ViT):
        raise ValueError(
            f"{path}: image_size is for a ViT, not for {type(module).__name__}."
        )
    grid = grid_of(module, variables, str(path))
    module, params = fit(module, variables["params"], grid, fields, image_size)
    return module, {"params": params}


def load_parameters(
    path: epath.PathLike, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[nn.Module, dict[str, Any]]:
    """(module, parameters by name) of a checkpoint, to start another model from.

    Args:
        shapes: of the other model's parameters; a ViT's positions and patch filters are
            resized to them.
    """
    module, variables = load_pretrained(path)
    params = variables["params"]
    if isinstance(module, ViT):
        params = resized(module, params, shapes)
    return module, paths.named_leaves(params)


def grid_of(module: ViT, variables: Mapping[str, Any], path: str) -> tuple[int, int]:
    """Rows and columns of a square image's patches, from the position table."""
    positions = variables["params"].get("pos_embedding")
    if positions is None:
        return (1, 1)
    prefix = module.prefix if module.rules.position_on == "all" else 0
    return square(positions.shape[1] - prefix, path)


def export(
    module: nn.Module,
    variables: Mapping[str, Any],
    path: epath.PathLike,
    format: str,
    *,
    image_size: Size | None = None,
) -> None:
    """Writes a ViT so that transformers or timm load it and give the same numbers.

    Args:
        path: a folder for "hf"; FILE.safetensors for "timm", with FILE.json beside it, the
            arguments of timm's VisionTransformer.
        image_size: in pixels; needed where the model does not tell, since its positions
            are computed or its images are not square.

    Raises:
        ValueError: not a ViT, or one with a part for which the other library has no place.
    """
    if not isinstance(module, ViT):
        raise ValueError(f"only a ViT can be exported, not {type(module).__name__}.")
    if format not in ("hf", "timm"):
        raise ValueError(f"{format=} must be 'hf' or 'timm'.")
    if image_size is None:
        if "pos_embedding" not in variables["params"]:
            raise ValueError(
                "positions are computed, so the model does not tell the size of its "
                "images; pass image_size."
            )
        grid = grid_of(module, variables, "the model")
        height, width = (g * s for g, s in zip(grid, stride(module), strict=True))
        image_size = height if height == width else (height, width)
    write = vit_torch.to_hf if format == "hf" else vit_torch.to_timm
    write(module, variables, pathlib.Path(path), image_size)
