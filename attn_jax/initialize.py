"""Initializes a new run from other checkpoints, as `config.init_from` says."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from attn_jax import config as config_lib
from attn_jax import convert, paths
from attn_jax.run import Run


def initialize_from(run: Run, params: Any) -> tuple[Any, list[str]]:
    """Overwrites parameters from `config.init_from`; returns them and log lines.

    Args:
        params: the run's new parameters, sharded. Those of a checkpoint get the same
            shardings.

    Raises:
        ValueError: the model lacks parameters of a checkpoint or has them in another shape;
            the checkpoint was trained with another image normalization or other classes.
    """
    ours, notes = paths.named_leaves(params), []
    for path, prefix, skip in run.config.init_from:
        inside = f"{prefix}/" if prefix else ""
        shapes = {
            name.removeprefix(inside): leaf.shape
            for name, leaf in ours.items()
            if name.startswith(inside)
        }
        if not shapes:
            raise ValueError(
                f"config.init_from: the model has no part {prefix!r}; "
                f"{config_lib.suggest(prefix, params)}"
            )
        try:
            module, theirs = read_checkpoint(run, path, shapes, skip)
            part = find_submodule(run.model, prefix)
            if misfit := explain_misfit(theirs, shapes, module, part):
                raise ValueError(f"{path}: {misfit}")
        except ValueError as error:
            text = str(error).removeprefix("config.init_from: ")
            raise ValueError(f"config.init_from: {text}") from error
        found = {
            inside + name: jax.device_put(leaf, ours[inside + name].sharding)
            for name, leaf in theirs.items()
        }
        params = paths.replace_leaves(params, found)
        notes.append(
            f"init_from {path}: {len(found)} of {len(ours)} parameters"
            + "".join(f"; {line}" for line in compare_fields(module, run.model))
        )
    return params, notes


def read_checkpoint(
    run: Run, path: str, shapes: Mapping[str, tuple[int, ...]], skip: str
) -> tuple[nn.Module, dict[str, Any]]:
    """(module, parameters by name) of a checkpoint, fitted to the run's images and classes.

    Raises:
        ValueError: the image normalization or the classes do not match.
    """
    images = run.batch_shapes.get("images")
    size = None if images is None else (images.shape[1], images.shape[2])
    module, leaves = convert.load_parameters(
        path,
        shapes,
        skip,
        image_size=size,
        # Code that this run's own config names runs anyway.
        trust=config_lib.foreign_packages(run.config),
    )
    if hasattr(run.task, "mean"):
        statistics = convert.pixel_statistics(path)
        if misfit := convert.explain_statistics(
            statistics, run.task.mean, run.task.std
        ):
            raise ValueError(f"{path}: {misfit}")
    names = convert.label_names(path)
    if names and run.source.labels and any(n.startswith("head/") for n in leaves):
        try:
            leaves = convert.match_head(leaves, names, run.source.labels)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return module, leaves


def explain_misfit(
    theirs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    module: nn.Module,
    part: nn.Module | None,
) -> str | None:
    """Why a checkpoint's parameters do not fit the model, and the remedy; None if they fit."""
    misfits = [
        f"{name} {leaf.shape}, here {shapes.get(name, 'absent')}"
        for name, leaf in theirs.items()
        if shapes.get(name) != leaf.shape
    ]
    if not misfits:
        return None
    more = f"; and {len(misfits) - 8} more" if len(misfits) > 8 else ""
    remedy = part and convert.explain_mismatch(module, part)
    return (
        f"{remedy + ', or leave' if remedy else 'leave'} out what does not fit the model "
        f"by the skip regex: {'; '.join(misfits[:8])}{more}"
    )


def find_submodule(model: nn.Module, prefix: str) -> nn.Module | None:
    """The submodule at a prefix such as "encoder"; None if no field has that name."""
    part: Any = model
    for name in prefix.split("/") if prefix else []:
        part = getattr(part, name, None)
    return part if isinstance(part, nn.Module) else None


def compare_fields(theirs: nn.Module, ours: nn.Module) -> list[str]:
    """One line for each field in which two modules of the same class differ."""
    if type(theirs) is not type(ours):
        return []
    return [
        f"{field.name} was {getattr(theirs, field.name)!r}"
        for field in dataclasses.fields(theirs)
        if field.name not in ("parent", "name")
        and getattr(theirs, field.name) != getattr(ours, field.name)
    ]
