"""Converts foreign checkpoints to our modules and parameter trees, and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from absl import logging
from etils import epath

from attn_jax import config, paths
from attn_jax.convert.bert.names import HEAD_PARTS
from attn_jax.convert.export import check_size, export
from attn_jax.convert.formats import detect_format
from attn_jax.convert.match import explain_gelu, explain_mismatch, match_head
from attn_jax.convert.sidecars import (
    explain_statistics,
    label_names,
    pixel_statistics,
)
from attn_jax.convert.tasks import describe_task
from attn_jax.convert.vit.fit import (
    Checkpoint,
    Size,
    fit_leaves,
)
from attn_jax.models.bert import Bert
from attn_jax.models.vit import ViT
from attn_jax.restore import restore

__all__ = [
    "describe_checkpoint",
    "explain_gelu",
    "explain_mismatch",
    "explain_statistics",
    "export",
    "is_run",
    "label_names",
    "load_parameters",
    "load_pretrained",
    "load_with_task",
    "match_head",
    "pixel_statistics",
]


def load_pretrained(
    path: epath.PathLike,
    *,
    image_size: Size | None = None,
    trained_size: Size | None = None,
    trust: Sequence[str] = (),
    **model_fields: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads (module, variables) of a checkpoint, whose format is detected.

    Known formats: a run's folder (its newest checkpoint; the averaged parameters if the run
    keeps an average); a ViT's .npz of google-research/vision_transformer or big_vision, where
    `FILE.npz:img` names one of several models; a folder of Hugging Face with BERT or ViT;
    timm's ViT, as FILE.safetensors or a folder of the Hub.

    Args:
        image_size: for which a ViT's positions are resized, in pixels, one side or (height,
            width); the rule is that of its dialect. None: as it was trained.
        trained_size: of the training images of a ViT's .npz, in pixels, which the file does
            not contain. None: square, as for all published files. Runs and the other formats
            contain it.
        trust: other packages whose classes the config of a run may name.
        model_fields: top-level fields of the module to change, such as `dtype`. For a ViT,
            another `patch_size` resizes the patch filters; `num_classes=0` and
            `representation_size=None` leave out the head and the layer before it.

    Raises:
        ValueError: the path is missing or in no known format; the arrays are not those of
            the model that the file describes (one table of all differences); the fields ask
            for a head of another number of classes.
    """
    sizes = {"image_size": image_size, "trained_size": trained_size}
    module, params, _ = open_checkpoint(path, sizes, model_fields, trust)
    return module, {"params": params} if params else {}


def is_run(path: epath.PathLike) -> bool:
    """Whether a checkpoint is a run's folder; errors are those of `load_pretrained`."""
    return detect_format(str(path)).kind == "run"


def load_with_task(
    path: epath.PathLike,
) -> tuple[nn.Module, dict[str, Any], Any]:
    """Loads (module, variables, task) of a foreign checkpoint, as `restore` does of a run.

    The task reads inputs as the files beside the checkpoint say: image size, pixel statistics
    and class names, or vocabulary. It has no data.

    Raises:
        ValueError: as `load_pretrained`; the files do not say how inputs are read.
    """
    loaded = open_checkpoint(path, {}, {})
    section = describe_task(str(path), loaded)
    assets = section.pop("assets", {})
    task = config.build(section)
    return loaded.module, {"params": loaded.params}, task.bind(assets)


def describe_checkpoint(
    path: epath.PathLike, trust: Sequence[str] = ()
) -> tuple[nn.Module, Mapping[str, Any]]:
    """(module, fields of its task) of a checkpoint; of a foreign one as `load_with_task` says.

    Raises:
        ValueError: as `load_with_task`.
    """
    if is_run(path):
        module, _, task = restore(path, trust=trust)
        fields = dataclasses.fields(task)
        return module, {field.name: getattr(task, field.name) for field in fields}
    loaded = open_checkpoint(path, {}, {})
    return loaded.module, describe_task(str(path), loaded)


def open_checkpoint(
    path: epath.PathLike,
    sizes: Mapping[str, Size | None],
    fields: Mapping[str, Any],
    trust: Sequence[str] = (),
) -> Checkpoint:
    """Like `load_pretrained`, but also returns the grid of a ViT's positions."""
    found = detect_format(str(path))
    if found.family is not None:
        config.check_fields(found.family, fields)
    given = {name: size for name, size in sizes.items() if size is not None}
    for name, size in given.items():
        check_size(name, size)
        if found.family is not ViT:
            model = "a run of another model" if found.family is None else "Bert"
            raise ValueError(f"{path}: {name} is only for a ViT, not for {model}.")
    if "trained_size" in given and not found.takes_trained_size:
        raise ValueError(
            f"{path}: its configuration has the size of its training images; leave out "
            "trained_size."
        )
    options = {"trust": trust} if found.kind == "run" else {}
    return found.read(**options, **given, **fields)


def load_parameters(
    path: epath.PathLike,
    shapes: Mapping[str, tuple[int, ...]],
    skip: str = "",
    *,
    image_size: Size | None = None,
    trust: Sequence[str] = (),
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads (module, parameters by name) of a checkpoint, to initialize another model.

    Heads of a BERT that the other model lacks are left out, and a warning names them.

    Args:
        shapes: of the other model's parameters, to which a ViT's positions and patch filters
            are resized.
        skip: regex of the parameters to leave out.
        image_size: of the other model's images in pixels, for which a ViT's positions are
            resized. None: they are square.
        trust: as for `load_pretrained`.

    Raises:
        ValueError: as `load_pretrained`; the regex matches nothing; the other model's
            positions are not for images of `image_size`.
    """
    loaded = open_checkpoint(path, {}, {}, trust)
    leaves = paths.named_leaves(loaded.params)
    for name in paths.match_names([skip] if skip else [], leaves, key="init_from"):
        del leaves[name]
    if isinstance(loaded.module, ViT):
        leaves = fit_leaves(loaded, leaves, shapes, image_size)
    if isinstance(loaded.module, Bert):
        leaves = leave_out_heads(leaves, shapes, path)
    return loaded.module, leaves


def leave_out_heads(
    leaves: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    path: epath.PathLike,
) -> dict[str, Any]:
    """A BERT's parameters without those of heads that the other model lacks; they are named."""
    ours = {name.split("/")[0] for name in shapes}
    left_out = {name.split("/")[0] for name in leaves} & (HEAD_PARTS - ours)
    if left_out:
        logging.warning(
            "%s: its parameters %s are left out, since this model has no such head.",
            path,
            ", ".join(sorted(left_out)),
        )
    return {n: leaf for n, leaf in leaves.items() if n.split("/")[0] not in left_out}
