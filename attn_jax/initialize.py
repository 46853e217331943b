"""Initializes a new run from other checkpoints, as `config.init_from` says."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from absl import logging

from attn_jax import config as config_lib
from attn_jax import convert, paths
from attn_jax.run import Run
from attn_jax.values import AUTO


def initialize_from(run: Run, params: Any) -> tuple[Any, list[str]]:
    """Overwrites parameters from `config.init_from`; returns them and log lines.

    Args:
        params: the run's new parameters, sharded. Those of a checkpoint get the same
            shardings.

    Raises:
        ValueError: the model lacks parameters of a checkpoint or has them in another shape;
            the checkpoint was trained with another image normalization, other classes or
            another kind of head.
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
            section = ".".join(["config.model", *prefix.split("/")]).rstrip(".")
            misfit = explain_other_head(theirs, shapes, module, part)
            if misfit := misfit or explain_misfit(
                theirs, shapes, module, part, section
            ):
                raise ValueError(f"{path}: {misfit}")
            if advice := convert.explain_gelu(module, part, section):
                logging.warning("%s: %s", path, advice)
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
            + describe_missing(theirs, shapes)
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
        "" if skip == AUTO else skip,
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
    ours = find_labels(run)
    if skip == AUTO:
        leaves = leave_out_other_parts(path, module, leaves, shapes, run.model, ours)
    if ours and any(n.startswith("head/") for n in leaves):
        names = convert.label_names(path)
        if not names:
            logging.warning(
                "%s does not name the outputs of its head; they are taken in the order of "
                "this run's classes: %s.",
                path,
                ", ".join([*ours[:8], *(["..."] if len(ours) > 8 else [])]),
            )
            return module, leaves
        try:
            leaves = convert.match_head(leaves, names, ours)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return module, leaves


def leave_out_other_parts(
    path: str,
    theirs: nn.Module,
    leaves: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    ours: nn.Module,
    labels: Sequence[str],
) -> dict[str, Any]:
    """The parameters without parts that the model lacks, and without a head that is not its own.

    The head is kept if it is of the same kind and names the run's classes.
    """
    parts = {name.split("/")[0] for name in leaves}
    missing = parts - {name.split("/")[0] for name in shapes}
    kinds = [type(getattr(owner, "head", None)) for owner in (theirs, ours)]
    names = convert.label_names(path) if "head" in parts and labels else None
    if "head" in parts and not (
        kinds[0] is kinds[1] and names and set(names) == set(labels)
    ):
        missing.add("head")
    return {n: leaf for n, leaf in leaves.items() if n.split("/")[0] not in missing}


def find_labels(run: Run) -> Sequence[str]:
    """The names of the run's classes or tags, in the order of the head; () if there are none."""
    described = json.loads(run.assets.get("text.json", "{}"))
    return run.source.labels or described.get("labels") or ()


def describe_missing(
    theirs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Names the parts of the model that a checkpoint lacks, so that they start anew."""
    missing = [name for name in shapes if name not in theirs]
    taken = {name.split("/")[0] for name in shapes if name in theirs}
    parts = dict.fromkeys(
        name if name.split("/")[0] in taken else name.split("/")[0] for name in missing
    )
    more = f" and {len(parts) - 8} more" if len(parts) > 8 else ""
    return f", without {', '.join([*parts][:8])}{more}" if parts else ""


def explain_other_head(
    theirs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    module: nn.Module,
    part: nn.Module | None,
) -> str | None:
    """Why the head of a checkpoint is not that of the model, and the remedy; None if it is.

    Heads of another kind may have parameters of the same shapes.
    """
    kinds = [type(getattr(owner, "head", None)) for owner in (module, part)]
    if type(None) in kinds or not any(name.startswith("head/") for name in theirs):
        return None
    name, new = (
        "head/logits/bias",
        "to train a new head, set the skip regex to 'head/.*'",
    )
    if kinds[0] is not kinds[1]:
        return f"its head is a {kinds[0].__name__}, the model's a {kinds[1].__name__}; {new}"
    if name in theirs and name in shapes and theirs[name].shape != shapes[name]:
        return f"its head has {theirs[name].shape[0]} outputs, the model's {shapes[name][0]}; {new}"
    return None


def explain_misfit(
    theirs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    module: nn.Module,
    part: nn.Module | None,
    section: str,
) -> str | None:
    """Why a checkpoint's parameters do not fit the model, and the remedy; None if they fit.

    Args:
        part: the model, or its submodule that is initialized.
        section: of the config that describes it.
    """
    misfits = [
        f"{name} {leaf.shape}, here {shapes.get(name, 'absent')}"
        for name, leaf in theirs.items()
        if shapes.get(name) != leaf.shape
    ]
    if not misfits:
        return None
    more = f"; and {len(misfits) - 8} more" if len(misfits) > 8 else ""
    remedy = part and convert.explain_mismatch(module, part, section)
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
        f"{field.name} was {show_field(getattr(theirs, field.name))}"
        for field in dataclasses.fields(theirs)
        if field.name not in ("parent", "name")
        and getattr(theirs, field.name) != getattr(ours, field.name)
    ]


def show_field(value: Any) -> str:
    """A value on one line; a module by its class."""
    return f"a {type(value).__name__}" if isinstance(value, nn.Module) else repr(value)
