"""Checkpoints from elsewhere as our modules and parameter trees, and back."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from etils import epath

from attn_jax import config, paths
from attn_jax.convert import bert, vit_export, vit_npz, vit_torch
from attn_jax.convert.tensors import Description
from attn_jax.convert.vit import (
    Size,
    check_classes,
    fit,
    grid_of,
    left_behind,
    resized,
    stride,
)
from attn_jax.models.bert import Bert
from attn_jax.models.vit import ViT
from attn_jax.restore import restore


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
    read, family = reader_of(str(path))
    if family is not None:
        config.check_fields(family, model_fields)
    if image_size is not None:
        config.check_value("image_size", image_size, Size)
        if family is Bert:
            raise ValueError(f"{path}: image_size is for a ViT, not for Bert.")
        model_fields["image_size"] = image_size
    return read(**model_fields)


def reader_of(path: str) -> tuple[Callable[..., Any], type[nn.Module] | None]:
    """What reads a checkpoint, and the module it makes; None: the run's own."""
    file, _, subtree = path.partition(".npz:")
    path = f"{file}.npz" if subtree else path
    place, local = epath.Path(path), pathlib.Path(path)
    if not place.exists():
        raise ValueError(
            f"{path} does not exist; name a run's --workdir, a folder of Hugging Face, or a "
            "ViT's .npz or .safetensors."
        )
    if local.suffix == ".npz":
        return functools.partial(vit_npz.from_npz, local, subtree=subtree), ViT
    alone = not local.with_suffix(".json").exists()
    if local.name == "model.safetensors" and alone:
        place, local = place.parent, local.parent  # a folder has more to tell
    if local.suffix == ".safetensors":
        return functools.partial(vit_torch.from_timm, local), ViT
    if not (place / "config.json").exists():
        raise ValueError(
            f"{path} has no config.json; it is neither a run's folder nor one of Hugging "
            "Face."
        )
    described = Description(place / "config.json")
    if (place / "checkpoints").exists():
        if described["model"]["cls"] == "attn_jax.models.vit:ViT":
            return functools.partial(vit_from_run, path), ViT
        return functools.partial(from_run, path), None
    if "task" in described:
        raise ValueError(
            f"{path} is a run's folder that has no checkpoints/ yet; train until it has."
        )
    if "architecture" in described:  # as timm calls it
        weights = local / "model.safetensors"
        return functools.partial(vit_torch.from_timm, weights), ViT
    family = described.get("model_type")
    if family == "vit":
        return functools.partial(vit_torch.from_hf, local), ViT
    if family == "bert":
        return functools.partial(bert.from_hf, local), Bert
    raise ValueError(
        f"{path} is neither a run's folder (there is no checkpoints/) nor a checkpoint of a "
        f"known family: its config.json says model_type={family!r}; known: 'bert', 'vit'."
    )


def from_run(
    path: str, *, image_size: Size | None = None, **fields: Any
) -> tuple[nn.Module, dict[str, Any]]:
    overrides = {f"model.{name}": value for name, value in fields.items()}
    module, variables, _ = restore(path, overrides=overrides)
    if image_size is not None:
        raise ValueError(
            f"{path}: image_size is for a ViT, not for {type(module).__name__}."
        )
    return module, variables


def vit_from_run(
    path: str, *, image_size: Size | None = None, **fields: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Fields change a run's ViT as they do a file's."""
    module, variables, _ = restore(path)
    assert isinstance(module, ViT), "as its config says"
    check_classes(fields, module.num_classes, path)
    heads = {
        "head": ("num_classes", 0),
        "pre_logits": ("representation_size", None),
        "patch_head": ("patch_outputs", 0),
    }
    gone = left_behind(fields, heads)
    params = {k: v for k, v in variables["params"].items() if k not in gone}
    positions = params.get("pos_embedding")
    grid = (1, 1) if positions is None else grid_of(module, positions.shape[1], path)
    module, params = fit(module, params, grid, fields, image_size)
    return module, {"params": params}


def load_parameters(
    path: epath.PathLike, shapes: Mapping[str, tuple[int, ...]], skip: str = ""
) -> tuple[nn.Module, dict[str, Any]]:
    """(module, parameters by name) of a checkpoint, to start another model from.

    Args:
        shapes: of the other model's parameters; a ViT's positions and patch filters are
            resized to them.
        skip: regex of the parameters to leave out.

    Raises:
        ValueError: as `load_pretrained`; the regex matches nothing.
    """
    module, variables = load_pretrained(path)
    leaves = paths.named_leaves(variables["params"])
    for name in paths.matching([skip] if skip else [], leaves, key="init_from"):
        del leaves[name]
    if isinstance(module, ViT):
        leaves = resized(module, leaves, shapes)
    return module, leaves


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
    if "params" not in variables:
        raise ValueError("variables have no 'params'; pass {'params': params}.")
    path = pathlib.Path(path)
    if format == "timm" and path.suffix != ".safetensors":
        raise ValueError(f"{path} must be FILE.safetensors; FILE.json lies beside it.")
    if format == "hf" and path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder to write to.")
    if image_size is None:
        positions = variables["params"].get("pos_embedding")
        if positions is None:
            raise ValueError(
                "positions are computed, so the model does not tell the size of its "
                "images; pass image_size."
            )
        grid = grid_of(module, positions.shape[1], "the model")
        height, width = (g * s for g, s in zip(grid, stride(module), strict=True))
        image_size = height if height == width else (height, width)
    write = vit_export.to_hf if format == "hf" else vit_export.to_timm
    write(module, variables, path, image_size)
