"""Fills in the fields that a config leaves to its data, or to the checkpoint it starts from.

A field of `config.model` or `config.task` may be "auto". The task is asked first: `derive` of
its class says what follows from the data. All else is as in the checkpoint. Fields of the model
that have the name of one of the task, such as `num_classes`, get its value.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from attn_jax import config as config_lib
from attn_jax import convert
from attn_jax.folder import expand_local
from attn_jax.sections import class_of, default_of, find_open
from attn_jax.values import AUTO, is_json, show

PLACEHOLDER = "DATA"  # in recipes


def derive(
    config: ConfigDict, *, needs_data: bool = True
) -> tuple[ConfigDict, list[str]]:
    """The config without "auto", and a log line about each source of its values.

    Args:
        needs_data: False: the recipe's data need not be named.

    Raises:
        ValueError: the recipe needs data that is not named yet; a field is "auto", and
            neither data nor checkpoint tell its value.
    """
    if needs_data:
        check_data_is_named(config.task)
    plain = config_lib.to_plain(config)
    task, model = plain["task"], plain["model"]
    if not find_open(task) + find_open(model):
        return config, []
    notes = derive_from_data(task)
    shared = [key for key in find_open(model) if key in task]
    rest = [key for key in find_open(model) if key not in shared]
    wanted = {"task": find_open(task), "model": rest}
    if any(wanted.values()):
        notes += derive_from_checkpoint(plain, wanted)
    model |= {key: task[key] for key in shared}
    return config_lib.resolve(plain), notes


def derive_from_data(task: dict[str, Any]) -> list[str]:
    """Sets what the class of the task derives from the data; returns the log line."""
    cls = class_of(task, "config.task", None)
    keys = find_open(task)
    if not keys or not hasattr(cls, "derive"):
        return []
    known = {k: v for k, v in task.items() if k != "cls" and v != AUTO}
    found = {k: v for k, v in cls.derive(known).items() if k in keys}
    task |= found
    return [describe("task", found, f"the data {known['data']}")] if found else []


def derive_from_checkpoint(
    config: dict[str, Any], wanted: Mapping[str, list[str]]
) -> list[str]:
    """Sets the wanted fields of task and model to the checkpoint's; returns log lines."""
    names = [f"config.{part}.{key}" for part in wanted for key in wanted[part]]
    open_ones = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    whole = [path for path, prefix, _ in config["init_from"] if not prefix]
    if not whole:
        raise ValueError(
            f"{open_ones} = 'auto': the value is that of the checkpoint which the run starts "
            "from. Set --config.init_from=CHECKPOINT, or the fields themselves."
        )
    [path, *_] = whole
    module, task = convert.describe_checkpoint(
        path, trust=config_lib.foreign_packages(config)
    )
    if type(module) is not class_of(config["model"], "config.model", None):
        raise ValueError(
            f"{open_ones} = 'auto': the value is that of the checkpoint, but {path} is a "
            f"{type(module).__name__}; set the fields, or name another checkpoint."
        )
    lines = []
    for part, theirs in (("task", task), ("model", to_section(module))):
        found = {}
        for key in wanted[part]:
            value = theirs.get(key, AUTO)
            if value == AUTO or not is_json(value):
                raise ValueError(
                    f"config.{part}.{key}='auto': {path} does not tell its value; set it."
                )
            found[key] = config_lib.to_plain(value)
        config[part] |= found
        lines += [describe(part, found, path)] if found else []
    return lines


def to_section(module: Any) -> dict[str, Any]:
    """The config section of a module. Values that are no JSON are those of the class.

    Raises:
        ValueError: such a value is not the default of its field.
    """
    section: dict[str, Any] = {
        "cls": f"{type(module).__module__}:{type(module).__name__}"
    }
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if field.name in ("parent", "name"):
            continue
        if dataclasses.is_dataclass(value):
            section[field.name] = to_section(value)
        elif is_json(value):
            section[field.name] = config_lib.to_plain(value)
        elif value is not default_of(field):
            raise ValueError(
                f"{type(module).__name__}.{field.name}={value!r} of the checkpoint cannot be "
                "written into a config; set the field that holds this module."
            )
    return section


def describe(part: str, found: Mapping[str, Any], source: str) -> str:
    values = ", ".join(
        f"{part}.{key}={show(value)}"
        for key, value in found.items()
        if value is not None
    )
    return f"from {source}: {values}"


def check_data_is_named(task: config_lib.Section) -> None:
    """Raises ValueError if `data` is what stands for it in a recipe."""
    if task.get("data") == PLACEHOLDER and not expand_local(PLACEHOLDER).exists():
        name = task["cls"].rpartition(":")[2]
        raise ValueError(
            f"config.task.data={PLACEHOLDER!r} only stands for your data in the recipe; set "
            f"--config.task.data=PATH to what the docstrings of the recipe and of {name} name."
        )
