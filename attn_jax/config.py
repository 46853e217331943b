"""A config from recipe to objects: load, fill in, override, lock, compare, build.

A section with `cls` names a Flax module or a task; its fields are that class's fields. A
section with `name` names an optimiser or a schedule; its fields are that function's
arguments. Resolving fills in every default, so that a saved config says it all, and
refuses every key that nothing would read.
"""

import copy
import dataclasses
import importlib.util
import inspect
import math
import pathlib
import pkgutil
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from attn_jax.optim import OPTIMIZERS
from attn_jax.schedules import SCHEDULES, Section
from attn_jax.values import (
    as_tuple,
    check_bounds,
    check_value,
    checked,
    is_json,
    parse,
    plain,
    suggest,
)

TASK_VERBS = ("source", "example", "inputs", "loss")
NAMED: dict[str, Mapping] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
EVALUATION: dict[str, tuple] = {
    "split": (str, "validation"),
    "every": (str | None, None),
    "batch_size": (int | None, None),
    "task": (dict, {}),
}

# Lists of which every entry has a form, and an example of it.
LISTS: dict[str, tuple] = {
    "init_from": (list[tuple[str, str, str]], [["runs/digits", "", "head/.*"]]),
    "learning_rate_multipliers": (list[tuple[str, float]], [["block_0/.*", 0.5]]),
    "weight_decay_on": (list[str], [".*/kernel"]),
    "freeze": (list[str], ["embedding/.*"]),
    "sharding_rules": (list[tuple[str, list]], [["head/kernel", [None, "tensor"]]]),
    "profile": (list[int], [10, 20]),
}

# Every knob of configs/common.py is in one of two lists. These make a run what it is:
FIXED = (
    "model",
    "task",
    "init_from",
    "seed",
    "batch_size",
    "micro_batches",
    "clip_norm",
    "optimizer",
    "learning_rate_multipliers",
    "weight_decay_on",
    "schedule",
    "freeze",
    "ema_decay",
    "deterministic",
)
# These may differ when it is resumed: none changes the update at a given step but
# `duration`, of which train.py warns where it moves the schedule.
MAY_CHANGE = (
    "mesh",
    "sharding_rules",
    "fsdp_min_elements",
    "duration",
    "evals",
    "data_workers",
    "data_threads",
    "data_prefetch",
    "checkpoint_every",
    "keep_latest",
    "keep_best",
    "save_patience_seconds",
    "log_every",
    "profile",
    "watchdog_seconds",
    "max_skipped",
)


def load(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The resolved config of `path/to/recipe.py[:variant]` with `key=value` overrides.

    Raises:
        ValueError: no such file, variant or key, or a value of the wrong type.
    """
    path, _, variant = recipe.partition(":")
    if not pathlib.Path(path).is_file():
        raise ValueError(
            f"--config={recipe}: there is no file {path}; name a recipe such as "
            "configs/vit/digits.py, with :variant behind it if it is not the default."
        )
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(
            f"--config={recipe}: {path} is no Python file. To go on with a run, name the "
            "recipe that it was started with."
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config") or not hasattr(module, "VARIANTS"):
        raise ValueError(
            f"--config={recipe}: {path} is no recipe, which has VARIANTS and get_config."
        )
    if variant and variant not in module.VARIANTS:
        raise ValueError(
            f"--config={recipe}: {variant!r} is no variant of {path}; "
            f"{suggest(variant, module.VARIANTS)}"
        )
    return override(module.get_config(*[variant] if variant else []), overrides)


def override(
    config: Section, overrides: Sequence[str], trust: Sequence[str] | None = None
) -> ConfigDict:
    """The resolved config with `a.b=value` settings, values as JSON or Python literals.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    config = editable(config)
    for setting in overrides:
        key, _, text = setting.partition("=")
        put(config, key, parse(text))
    return resolve(config, trust)


def resolve(config: Section, trust: Sequence[str] | None = None) -> ConfigDict:
    """A locked copy with every default filled in; `trust` as in `build`.

    Raises:
        ValueError: a key that nothing reads, or a value of the wrong type.
    """
    resolved = editable(config)
    for key in resolved:
        if key not in FIXED + MAY_CHANGE:
            raise ValueError(unknown_key(key, FIXED + MAY_CHANGE, "config"))
    for key in FIXED + MAY_CHANGE:
        if key not in resolved:
            raise ValueError(
                f"config.{key} is missing; start from configs.common.get_config()."
            )
    for key, (annotation, example) in LISTS.items():
        if resolved[key] or resolved[key] is None:
            try:
                checked(plain(resolved[key]), annotation, f"config.{key}")
            except ValueError as error:
                raise ValueError(f"{error} For example: {example}") from None
    for key in FIXED + MAY_CHANGE:
        check_bounds(key, resolved[key], f"config.{key}")
    for key in ("model", "task"):
        section = plain(resolved[key])
        resolved[key] = ConfigDict(fill_class(section, f"config.{key}", trust))
    for key, functions in NAMED.items():
        section = plain(resolved[key])
        resolved[key] = ConfigDict(fill_named(section, f"config.{key}", functions))
    if not isinstance(resolved["evals"], Mapping | ConfigDict):
        raise ValueError(
            f"config.evals={resolved['evals']!r} must be a section; {{}} is none at all."
        )
    resolved["evals"] = ConfigDict(
        {
            name: fill_evaluation(
                section, f"config.evals.{name}", plain(resolved["task"]), trust
            )
            for name, section in plain(resolved["evals"]).items()
        }
    )
    for key in ("log_every", "checkpoint_every"):
        check_cadence(resolved[key], f"config.{key}")
    return resolved.lock()


def build(section: Section, trust: Sequence[str] | None = None) -> Any:
    """The module or task that a section names, nested sections first.

    Args:
        section: {"cls": "package.module:Class", **fields}.
        trust: packages whose classes may be built; None trusts the recipe's author. A
            config read from a workdir is a stranger's: there it is ("attn_jax",).

    Raises:
        ValueError: the class is not trusted, not found, or neither module nor task.
    """
    section = plain(section)
    cls = class_of(section, "config", trust)

    def value_of(value: Any) -> Any:
        if isinstance(value, Mapping):
            return build(value, trust) if "cls" in value else value
        return as_tuple(value)

    return cls(**{key: value_of(v) for key, v in section.items() if key != "cls"})


def evaluation_task(config: Section, name: str) -> dict:
    """The task section of one evaluation: the training task with what differs."""
    changes = plain(config["evals"][name]["task"])
    return changes if "cls" in changes else {**plain(config["task"]), **changes}


def differences(old: Section, new: Section) -> tuple[list[str], list[str]]:
    """(allowed, forbidden) changes of a resumed run, as lines `key: old -> new`."""
    before, after = flat(old), flat(new)
    allowed: list[str] = []
    forbidden: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        ours, theirs = before.get(key, "absent"), after.get(key, "absent")
        if ours != theirs:
            lines = allowed if key.split(".")[0] in MAY_CHANGE else forbidden
            lines.append(f"{key}: {ours} -> {theirs}")
    return allowed, forbidden


# --- sections -------------------------------------------------------------------------


def class_of(section: Section, where: str, trust: Sequence[str] | None) -> type:
    if "cls" not in section:
        raise ValueError(
            f"{where} has no `cls`; name its class, such as 'attn_jax.models.vit:ViT'."
        )
    name = section["cls"]
    package, _, attribute = str(name).partition(":")
    if not attribute.isidentifier():
        raise ValueError(f"{where}.cls={name!r} must read 'package.module:Class'.")
    if trust is not None and package.split(".")[0] not in trust:
        raise ValueError(
            f"{where}.cls={name!r}: a saved config may only name classes below "
            f"{', '.join(trust)}. If you trust its author, pass "
            f"--trust={package.split('.')[0]}."
        )
    try:
        cls = pkgutil.resolve_name(f"{package}:{attribute}")
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}.cls={name!r} cannot be imported: {error}.") from None
    # The second test keeps a trusted module from lending out what it imports itself.
    if not (is_module(cls) or is_task(cls)) or (
        trust is not None and cls.__module__.split(".")[0] not in trust
    ):
        raise ValueError(
            f"{where}.cls={name!r} is neither a Flax module nor a task (a dataclass with "
            f"{', '.join(TASK_VERBS)})."
        )
    return cls


def is_module(cls: Any) -> bool:
    return inspect.isclass(cls) and issubclass(cls, nn.Module)


def is_task(cls: Any) -> bool:
    return (
        inspect.isclass(cls)
        and dataclasses.is_dataclass(cls)
        and all(callable(getattr(cls, verb, None)) for verb in TASK_VERBS)
    )


def fill_class(
    section: Mapping, where: str, trust: Sequence[str] | None, dtype: Any = None
) -> dict:
    cls = class_of(section, where, trust)
    hints = typing.get_type_hints(cls)
    fields = {
        field.name: (hints[field.name], default_of(field))
        for field in dataclasses.fields(cls)
        if field.init and field.name not in ("parent", "name")
    }
    if dtype is not None and "dtype" in fields:
        fields["dtype"] = (fields["dtype"][0], dtype)
    filled = fill({k: v for k, v in section.items() if k != "cls"}, fields, where)
    for key, value in filled.items():
        if isinstance(value, Mapping) and "cls" in value:
            inherited = filled.get("dtype")
            filled[key] = fill_class(value, f"{where}.{key}", trust, inherited)
    return {"cls": section["cls"], **filled}


def fill_named(section: Mapping, where: str, functions: Mapping) -> dict:
    name = section.get("name")
    if name not in functions:
        raise ValueError(f"{where}.name={name!r}: {suggest(name, functions)}")
    arguments = {
        p.name: (p.annotation, MISSING if p.default is p.empty else p.default)
        for p in inspect.signature(functions[name]).parameters.values()
        if p.annotation is not p.empty and not p.name.startswith("_")
    }
    settings = {k: v for k, v in section.items() if k != "name"}
    return {"name": name, **fill(settings, arguments, where)}


def fill_evaluation(section: Any, where: str, training: Mapping, trust) -> dict:
    if not isinstance(section, Mapping):
        raise ValueError(
            f"{where}={section!r} must be a section of keys and values. To have one "
            "evaluation less, set config.evals to those that stay."
        )
    filled = fill(section, EVALUATION, where)
    if filled["every"] is not None:
        check_cadence(filled["every"], f"{where}.every")
    task = filled["task"]
    if "cls" in task:
        filled["task"] = fill_class(task, f"{where}.task", trust)
    else:  # only what differs is kept, so that a change of the training task carries over
        whole = fill_class({**training, **task}, f"{where}.task", trust)
        filled["task"] = {key: whole[key] for key in task}
    return filled


MISSING = object()


def default_of(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


def fill(section: Mapping, fields: Mapping[str, tuple], where: str) -> dict:
    """The section with defaults; every value checked against its field's annotation."""
    for key in section:
        if key not in fields:
            raise ValueError(unknown_key(key, fields, where))
    filled = {}
    for key, (annotation, default) in fields.items():
        value = section.get(key, default)
        if value is MISSING:
            raise ValueError(f"{where}.{key} must be set; it has no default.")
        if key in section:
            value = check_value(key, value, annotation, f"{where}.")
        elif not is_json(value):
            continue  # an initialiser or the like: the class keeps its own default
        filled[key] = copy.deepcopy(plain(value))
    return filled


def check_fields(cls: type, values: Mapping[str, Any]) -> None:
    """Raises ValueError where these cannot be fields of the class; modules may be built."""
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for key, value in values.items():
        if key not in known:
            raise ValueError(unknown_key(key, known, cls.__name__))
        if not isinstance(value, nn.Module):
            check_value(key, value, hints[key])


# --- keys and durations ---------------------------------------------------------------


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    config = plain(config)
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def editable(config: Section) -> ConfigDict:
    """An unlocked deep copy; knobs keep the types that `configs/common.py` gave them."""
    if not isinstance(config, ConfigDict):
        return ConfigDict(plain(config))
    return copy.deepcopy(config).unlock()


def put(config: ConfigDict, key: str, value: Any) -> None:
    """Sets `a.b.c`; inside a section the key's existence is checked by `resolve`."""
    section, (*parents, last) = config, key.split(".")
    for depth, parent in enumerate(parents):
        if depth == 0 and parent not in config:
            raise ValueError(unknown_key(parent, config, "config"))
        if not isinstance(section.get(parent), ConfigDict):
            section[parent] = ConfigDict()
        section = section[parent]
    if parents and parents[0] != "mesh":
        if last in section:  # typed by its class's annotation, not by its last value
            del section[last]
    elif last not in section:
        raise ValueError(unknown_key(last, section, ".".join(["config", *parents])))
    try:
        section[last] = ConfigDict(value) if isinstance(value, dict) else value
    except TypeError:
        kind = section.get_type(last).__name__
        raise ValueError(f"config.{key}={value!r} must be of type {kind}.") from None


def unknown_key(key: str, known: Iterable[str], where: str) -> str:
    return f"{where}.{key}: nothing reads this key; {suggest(key, known)}"


def to_steps(duration: str, *, batch_size: int, epoch_rows: int) -> int:
    """Optimiser steps in "500 steps", "10 epochs" or "1000000 examples"; at least 1 if > 0.

    Raises:
        ValueError: the text is not a number and one of the three units.
    """
    number, _, unit = str(duration).strip().partition(" ")
    rows = {"steps": batch_size, "epochs": epoch_rows, "examples": 1}
    unit = unit.strip() if unit.strip().endswith("s") else unit.strip() + "s"
    try:
        value = float(number.replace("_", "").replace(",", ""))
    except ValueError:
        value = -1.0
    if unit not in rows or not 0 <= value < math.inf:
        raise ValueError(
            f"the duration {duration!r} must be a number and a unit: '500 steps', "
            "'10 epochs' or '1000000 examples'."
        )
    return max(round(value * rows[unit] / batch_size), int(value > 0))


def check_cadence(duration: str, where: str) -> None:
    """Raises ValueError where the duration is zero: nothing happens every 0 steps."""
    if to_steps(duration, batch_size=1, epoch_rows=1) == 0:
        raise ValueError(f"{where}={duration!r} must be more than zero.")
