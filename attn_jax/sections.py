"""Sections of a config: finds the class or function that each names, fills in defaults."""

import copy
import dataclasses
import inspect
import pkgutil
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn

from attn_jax.knobs import EVALUATION
from attn_jax.migrations import explain_removed, find_successor
from attn_jax.schedules import Section
from attn_jax.values import (
    AUTO,
    check_value,
    find_protocol,
    is_json,
    show,
    suggest,
    to_plain,
)

TASK_VERBS = ("source", "example", "inputs", "loss")
MISSING = object()


def class_of(
    section: Section, where: str, trust: Sequence[str] | None, annotation: Any = None
) -> type:
    """The class that a section names; `trust` as in `config.build`.

    Args:
        annotation: of the field that the section fills. If it is a protocol, the class must be a
            dataclass with its methods.

    Raises:
        ValueError: the class is not trusted, not found, or neither module nor task.
    """
    if "cls" not in section:
        raise ValueError(
            f"{where} has no `cls`; name its class, such as 'attn_jax.models.vit:ViT'."
        )
    name = section["cls"]
    package, _, attribute = str(name).partition(":")
    if not attribute.isidentifier():
        raise ValueError(f"{where}.cls={show(name)} must read 'package.module:Class'.")
    if trust is not None and package.split(".")[0] not in trust:
        raise ValueError(
            f"{where}.cls={show(name)}: a saved config may only name classes below "
            f"{', '.join(trust)}. If you trust its author, pass "
            f"--trust={package.split('.')[0]}."
        )
    try:
        cls = pkgutil.resolve_name(f"{package}:{attribute}")
    except (ImportError, AttributeError, ValueError) as error:
        successor = find_successor(str(name))
        reason = f"it is now {successor!r}" if successor else str(error)
        raise ValueError(
            f"{where}.cls={show(name)} cannot be imported: {reason}."
        ) from None
    protocol = find_protocol(annotation)
    verbs = [v for v in vars(protocol) if v[0] != "_"] if protocol else TASK_VERBS
    fits = has_verbs(cls, verbs) or (protocol is None and is_module(cls))
    # The second condition refuses classes that a trusted module merely imports.
    if not fits or (trust is not None and cls.__module__.split(".")[0] not in trust):
        kinds = "no" if protocol else "neither a Flax module nor a task (a"
        end = "" if protocol else ")"
        raise ValueError(
            f"{where}.cls={show(name)} is {kinds} dataclass with {', '.join(verbs)}{end}."
        )
    return cls


def is_module(cls: Any) -> bool:
    return inspect.isclass(cls) and issubclass(cls, nn.Module)


def is_task(cls: Any) -> bool:
    return has_verbs(cls, TASK_VERBS)


def has_verbs(cls: Any, verbs: Iterable[str]) -> bool:
    """Whether it is a dataclass with these methods."""
    return (
        inspect.isclass(cls)
        and dataclasses.is_dataclass(cls)
        and all(callable(getattr(cls, verb, None)) for verb in verbs)
    )


def fill_class(
    section: Mapping,
    where: str,
    trust: Sequence[str] | None,
    dtype: Any = None,
    annotation: Any = None,
    open_keys: Collection[str] = (),
) -> dict:
    """A section of a class with all defaults.

    Args:
        dtype: that of the enclosing module.
        annotation: of the field that the section fills.
        open_keys: fields that stay "auto", until `attn_jax.derived` fills them in.
    """
    cls = class_of(section, where, trust, annotation)
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {
        field.name: (hints[field.name], default_of(field))
        for field in dataclasses.fields(cls)
        if field.init and field.name not in ("parent", "name")
    }
    if dtype is not None and "dtype" in fields:
        fields["dtype"] = (fields["dtype"][0], dtype)
    left_open = {key: AUTO for key in open_keys if key in fields}
    settings = {k: v for k, v in section.items() if k not in ("cls", *left_open)}
    closed = {k: field for k, field in fields.items() if k not in left_open}
    filled = fill(settings, closed, where, section["cls"]) | left_open
    for key, value in filled.items():
        if isinstance(value, Mapping) and "cls" in value:
            inherited = filled.get("dtype")
            filled[key] = fill_class(
                value, f"{where}.{key}", trust, inherited, hints[key]
            )
    return {"cls": section["cls"], **filled}


def find_open(section: Mapping[str, Any]) -> list[str]:
    """The keys whose values are left to the data or a checkpoint."""
    return [key for key, value in section.items() if value == AUTO]


def fill_named(section: Mapping, where: str, functions: Mapping) -> dict:
    """A section of an optimizer or schedule with all defaults."""
    name = section.get("name")
    if not isinstance(name, str) or name not in functions:
        raise ValueError(f"{where}.name={show(name)}: {suggest(name, functions)}")
    arguments = {
        p.name: (p.annotation, MISSING if p.default is p.empty else p.default)
        for p in inspect.signature(functions[name]).parameters.values()
        if p.annotation is not p.empty and not p.name.startswith("_")
    }
    settings = {k: v for k, v in section.items() if k != "name"}
    return {"name": name, **fill(settings, arguments, where)}


def fill_evaluation(
    section: Any, where: str, training: Mapping, trust: Sequence[str] | None
) -> dict:
    """A section of `config.evals` with all defaults; `training` is the section `task`."""
    if not isinstance(section, Mapping):
        raise ValueError(
            f"{where}={show(section)} must be a section of keys and values. To remove an "
            "evaluation, set config.evals to the others."
        )
    filled = fill(section, EVALUATION, where)
    task = filled["task"]
    if "cls" in task:
        filled["task"] = fill_class(task, f"{where}.task", trust)
    else:  # keeps only what differs, so that later changes of `task` carry over
        open_keys = set(find_open(training)) - task.keys()
        merged = {**training, **task}
        whole = fill_class(merged, f"{where}.task", trust, open_keys=open_keys)
        filled["task"] = {key: whole[key] for key in task}
    return filled


def default_value(cls: str, name: str) -> Any:
    """The default of a field of the class `cls`, as a JSON value."""
    fields = dataclasses.fields(class_of({"cls": cls}, "config", None))
    return to_plain(default_of(next(field for field in fields if field.name == name)))


def default_of(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


def fill(
    section: Mapping, fields: Mapping[str, tuple], where: str, cls: str = ""
) -> dict:
    """The section with defaults, its values checked; `fields`: {key: (type, default)}."""
    for key in section:
        if key not in fields:
            raise ValueError(unknown_key(key, fields, where, cls))
    filled = {}
    for key, (annotation, default) in fields.items():
        value = section.get(key, default)
        if value is MISSING:
            raise ValueError(f"{where}.{key} must be set; it has no default.")
        if key in section:
            value = check_value(key, value, annotation, f"{where}.")
        elif not is_json(value):
            continue  # such as an initializer: the class provides it
        filled[key] = copy.deepcopy(to_plain(value))
    return filled


def check_fields(cls: type, values: Mapping[str, Any]) -> None:
    """Raises ValueError if a name or value does not fit the fields of a class.

    Values that are modules are already built, and are not checked.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    known = [field.name for field in dataclasses.fields(cls)]
    for key, value in values.items():
        if key not in known:
            raise ValueError(unknown_key(key, known, cls.__name__))
        if not isinstance(value, nn.Module):
            check_value(key, value, hints[key])


def unknown_key(key: str, known: Iterable[str], where: str, cls: str = "") -> str:
    """The message for a key that is not among the known ones."""
    reason = explain_removed(cls, key) or suggest(key, known)
    return f"{where}.{show(key)[1:-1]}: nothing reads this key; {reason}"
