"""Parameters of a new run from other checkpoints: `config.init_from`."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from attn_jax import config as config_lib
from attn_jax import paths
from attn_jax.convert import load_parameters


def initialize_from(
    sources: Any, model: nn.Module, params: Any
) -> tuple[Any, list[str]]:
    """Overwrites parameters from `config.init_from`; returns them and log lines.

    Args:
        sources: [[checkpoint, into-prefix, skip-regex], ...], in order.
        params: the model's parameters, sharded; the new ones lie as they do.

    Raises:
        ValueError: parameters of a checkpoint have no place in the model, or another
            shape there.
    """
    ours, notes = paths.named_leaves(params), []
    for path, prefix, skip in sources:
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
        module, theirs = load_parameters(path, shapes, skip)
        if misfits := [
            f"  {name} {leaf.shape}, here {shapes.get(name, 'absent')}"
            for name, leaf in theirs.items()
            if shapes.get(name) != leaf.shape
        ]:
            raise ValueError(
                f"config.init_from: parameters of {path} have no place in the model. Match "
                "them by the skip regex to leave them out:\n" + "\n".join(misfits)
            )
        found = {
            inside + name: jax.device_put(leaf, ours[inside + name].sharding)
            for name, leaf in theirs.items()
        }
        params = paths.overlay(params, found)
        notes.append(
            f"init_from {path}: {len(found)} of {len(ours)} parameters"
            + "".join(f"; {line}" for line in compare_fields(module, model))
        )
    return params, notes


def compare_fields(theirs: nn.Module, ours: nn.Module) -> list[str]:
    """The fields in which two modules of one class differ, such as an activation."""
    if type(theirs) is not type(ours):
        return []
    return [
        f"{field.name} was {getattr(theirs, field.name)!r}"
        for field in dataclasses.fields(theirs)
        if field.name not in ("parent", "name")
        and getattr(theirs, field.name) != getattr(ours, field.name)
    ]
