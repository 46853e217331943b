"""Matches a checkpoint to another model: classes of the head by name, and fields."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from attn_jax.models.bert import Bert
from attn_jax.models.bert.model import DIALECTS

# Fields that change no shape of a parameter, or do not prevent loading: the skip regex leaves
# out a head of another number of classes, BERT's heads are left out or start anew, and patch
# filters are resized.
NOT_COMPARED = {
    "parent",
    "name",
    "dtype",
    "remat",
    "scan_layers",
    "dropout",
    "attention_dropout",
    "stochastic_depth",
    "dialect",
    "gelu",
    "norm_epsilon",
    "head_bias_init",
    "num_classes",
    "heads",
    "head",
    "patch_size",
}


def match_head(
    leaves: Mapping[str, Any],
    theirs: Sequence[str],
    ours: Sequence[str],
    head: str = "head",
) -> dict[str, Any]:
    """Reorders the classes of the head to our order.

    Args:
        leaves: {name: array}; those of the head, such as "head/kernel" [D, C] and
            "head/bias" [C], have the classes as last axis. Without a head nothing changes.
        theirs: class names in the order of these arrays. Further columns, which have no
            name, stay.
        ours: class names in the desired order.
        head: name of the head in `leaves`.

    Raises:
        ValueError: one side lacks a class; two classes have the same name; the head has
            fewer columns than names.
    """
    for names in (theirs, ours):
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"two classes are called {', '.join(map(repr, doubled))}, so the head cannot "
                "be matched by name. Rename one, or add the head to the skip regex."
            )
    only_theirs = [name for name in theirs if name not in set(ours)]
    only_ours = [name for name in ours if name not in set(theirs)]
    if only_theirs or only_ours:
        parts = [
            f"{whose} lacks {list_names(names)}"
            for whose, names in (
                ("the data", only_theirs),
                ("the checkpoint's head", only_ours),
            )
            if names
        ]
        raise ValueError(
            f"the classes differ: {'; '.join(parts)}. To train a new head, add {head}/.* to "
            "the skip regex of config.init_from."
        )
    place = {name: i for i, name in enumerate(theirs)}
    order = [place[name] for name in ours]
    result = dict(leaves)
    for name, leaf in leaves.items():
        if not name.startswith(f"{head}/"):
            continue
        columns = np.shape(leaf)[-1]
        if columns < len(order):
            raise ValueError(
                f"{name} has {columns} columns, but there are {len(order)} class names. "
                f"Add {head}/.* to the skip regex of config.init_from."
            )
        unnamed = range(len(order), columns)
        result[name] = np.asarray(leaf)[..., [*order, *unnamed]]
    return result


def list_names(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def explain_mismatch(
    theirs: nn.Module, ours: nn.Module, section: str = "config.model"
) -> str | None:
    """Explains which fields to set so that parameters of `theirs` fit `ours`; or None.

    Args:
        theirs: the checkpoint's module.
        ours: the module to initialize from it, possibly a part of a composed model.
        section: of the config that describes it.
    """
    if type(theirs) is not type(ours):
        return (
            f"the checkpoint holds a {type(theirs).__name__}, the model is a "
            f"{type(ours).__name__}; name another checkpoint"
        )
    different = {
        field.name: getattr(theirs, field.name)
        for field in dataclasses.fields(theirs)
        if field.name not in NOT_COMPARED
        and getattr(theirs, field.name) != getattr(ours, field.name)
    }
    if not different:
        return None
    parts = []
    settings = [
        f"--{section}.{name}={as_argument(value)}"
        for name, value in different.items()
        if not isinstance(value, nn.Module)
    ]
    if settings:
        parts.append(f"set {' '.join(settings)}")
    parts += [
        f"its {name} is a {type(value).__name__}"
        for name, value in different.items()
        if isinstance(value, nn.Module)
    ]
    return f"to take its parameters, {'; '.join(parts)}"


def explain_gelu(
    theirs: nn.Module, ours: nn.Module | None, section: str = "config.model"
) -> str | None:
    """Explains what to set if a BERT's parameters were trained with another GELU; else None."""
    if not (isinstance(theirs, Bert) and isinstance(ours, Bert)):
        return None
    was, now = (bert.gelu or DIALECTS[bert.dialect][0] for bert in (theirs, ours))
    if was == now:
        return None
    return (
        f"it was trained with the GELU {was!r}, the model's is {now!r}; to use its, set "
        f"--{section}.gelu={was}"
    )


def as_argument(value: Any) -> str:
    """Formats a value as an argument for a shell."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return shlex.quote(text)
