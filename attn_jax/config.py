"""A config from recipe to objects: load, fill in, override, lock, compare, build.

A section with `cls` names a Flax module or a task; its keys are the fields of that class. A
section with `name` names an optimizer or a schedule; its keys are the arguments of that
function. Resolving fills in every default, so that a saved config is complete, and refuses
every key that nothing would read.
"""

import importlib.util
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from attn_jax import migrations
from attn_jax.bounds import to_steps
from attn_jax.folder import expand_local
from attn_jax.knobs import CHANGEABLE_KNOBS, FIXED_KNOBS, KNOBS
from attn_jax.migrations import migrate
from attn_jax.optim import OPTIMIZERS
from attn_jax.schedules import SCHEDULES, Section
from attn_jax.sections import (
    check_fields,
    class_of,
    fill_class,
    fill_evaluation,
    fill_named,
    unknown_key,
)
from attn_jax.values import (
    as_tuple,
    check_structure,
    check_value,
    checked,
    parse,
    plain,
    show,
    suggest,
)

__all__ = [
    "FIXED",
    "MAY_CHANGE",
    "build",
    "check_fields",
    "check_value",
    "differences",
    "evaluation_task",
    "explain_forbidden",
    "foreign_packages",
    "from_json",
    "load",
    "migrate",
    "override",
    "parse",
    "plain",
    "resolve",
    "suggest",
    "to_steps",
]

FIXED, MAY_CHANGE = tuple(FIXED_KNOBS), tuple(CHANGEABLE_KNOBS)
NAMED: dict[str, Mapping] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
MAX_FILE = 1_000_000  # bytes of a saved config; a recipe's is a few thousand


def load(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The resolved config of `path/to/recipe.py[:variant]` with `key=value` overrides.

    Raises:
        ValueError: there is no such file, variant or key, or a value has the wrong type.
    """
    path, _, variant = recipe.partition(":")
    file = expand_local(path)
    if not file.is_file():
        raise ValueError(
            f"--config={recipe}: there is no file {path}; name a recipe such as "
            "configs/vit/digits.py, with :variant behind it if it is not the default."
        )
    spec = importlib.util.spec_from_file_location(file.stem, file)
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


def from_json(text: str, where: str) -> dict[str, Any]:
    """The config in a saved file, in the present format; `where` names the file.

    Raises:
        ValueError: the text is no config, or one of a newer release.
    """
    if len(text) > MAX_FILE:
        raise ValueError(
            f"{where} has {len(text):,} characters; a config has at most {MAX_FILE:,}."
        )
    try:
        saved = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is damaged: {error}. Bring back a copy, or remove it: it is then "
            "taken from the newest checkpoint."
        ) from None
    if not isinstance(saved, dict) or "task" not in saved:
        raise ValueError(f"{where} is no run's config.json; name a run's --workdir.")
    try:
        check_structure(saved)
        return migrate(saved)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def override(
    config: Section, overrides: Sequence[str], trust: Sequence[str] | None = None
) -> ConfigDict:
    """The resolved config with `a.b=value` settings, values as JSON or Python literals.

    Raises:
        ValueError: a key is unknown, or a value has the wrong type.
    """
    check_structure(config)
    given = plain(config)
    if trust is not None:
        given = migrate(given)
    for setting in overrides:
        key, _, text = setting.partition("=")
        if key.split(".")[0] not in given:
            raise ValueError(unknown_knob(key, given, trust))
        put(given, key, parse(text))
    return resolve(given, trust)


def resolve(config: Section, trust: Sequence[str] | None = None) -> ConfigDict:
    """A locked copy with every default filled in; `trust` as in `build`.

    With `trust`, the config is a saved one and may be of an older release.

    Raises:
        ValueError: nothing reads a key, or a value has the wrong type.
    """
    check_structure(config)
    given = plain(config)
    if trust is not None:
        given = migrate(given)
    given.pop("format", None)
    for key in given:
        if key not in KNOBS:
            raise ValueError(unknown_knob(key, given, trust))
    for key, knob in KNOBS.items():
        if key not in given:
            raise ValueError(
                f"config.{key} is missing; start from configs.common.get_config()."
            )
        if key == "evals" and not isinstance(given[key], Mapping):
            raise ValueError(
                f"config.evals={show(given[key])} must be a section; {{}} is none at all."
            )
        given[key] = checked(given[key], knob.type, f"config.{key}", knob.example)
    for key in ("model", "task"):
        given[key] = fill_class(given[key], f"config.{key}", trust)
    for key, functions in NAMED.items():
        given[key] = fill_named(given[key], f"config.{key}", functions)
    given["evals"] = {
        name: fill_evaluation(section, f"config.evals.{name}", given["task"], trust)
        for name, section in given["evals"].items()
    }
    return ConfigDict({"format": migrations.current_format(), **given}).lock()


def build(section: Section, trust: Sequence[str] | None = None) -> Any:
    """The module or task that a section names, nested sections first.

    Args:
        section: {"cls": "package.module:Class", **fields}.
        trust: packages whose classes may be built; None trusts the recipe's author. A
            config from a workdir may be a stranger's: there it is ("attn_jax",).

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


def foreign_packages(config: Section) -> list[str]:
    """Packages other than this one whose classes a config names."""
    names = {str(v) for k, v in flat(config).items() if k.split(".")[-1] == "cls"}
    packages = {name.partition(":")[0].split(".")[0] for name in names}
    return sorted(packages - {"attn_jax"})


def evaluation_task(config: Section, name: str) -> dict:
    """The task section of one evaluation: the training task with what differs."""
    changes = plain(config["evals"][name]["task"])
    return changes if "cls" in changes else {**plain(config["task"]), **changes}


def differences(old: Section, new: Section) -> tuple[list[str], list[str]]:
    """(allowed, forbidden) changes of a resumed run, as lines `key: old -> new`.

    Where a section has another class or function, its other keys are left out.

    Args:
        old: a saved config, possibly of an older release: keys that it lacks have the
            value that means what that release did.
        new: a resolved config.
    """
    before, after = flat(lift(old, new)), flat(new)
    replaced = tuple(
        key.rpartition(".")[0] + "."
        for key in before.keys() & after.keys()
        if key.rpartition(".")[2] in ("cls", "name") and before[key] != after[key]
    )
    allowed: list[str] = []
    forbidden: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        ours, theirs = before.get(key, "absent"), after.get(key, "absent")
        if key.startswith(replaced) and key.rpartition(".")[2] not in ("cls", "name"):
            continue
        if ours != theirs:
            changeable = key.split(".")[0] in MAY_CHANGE
            lines = allowed if changeable else forbidden
            lines.append(f"{key}: {ours} -> {theirs}")
    return allowed, forbidden


def explain_forbidden(workdir: str, forbidden: Sequence[str]) -> str:
    """What to do about changes that a resumed run may not have."""
    source = json.dumps([[str(workdir), "", ""]])
    return (
        f"{workdir} holds a run with another config; these keys may not change on resume: "
        f"{'; '.join(forbidden)}. Change them back, or start a new run from the parameters "
        f"of this one: another --workdir and {shlex.quote(f'--config.init_from={source}')}."
    )


def lift(old: Section, new: Section) -> dict:
    """A saved config in the present format, with defaults of keys that it lacks.

    Only packages that `new` names are imported. What cannot be resolved is left as saved.
    """
    saved = migrate(plain(old))
    names = [str(v) for k, v in flat(new).items() if k.split(".")[-1] == "cls"]
    packages = tuple(name.partition(":")[0].split(".")[0] for name in names)
    try:
        return plain(resolve(saved, trust=packages))
    except ValueError:
        return saved


# --- keys -----------------------------------------------------------------------------


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of every leaf of nested sections."""
    config = plain(config)
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def put(config: dict, key: str, value: Any) -> None:
    """Sets `a.b.c` in nested dicts; `resolve` checks the keys inside a section."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(config.get(parent), dict):
            config[parent] = {}
        config = config[parent]
    if parents == ["mesh"] and last not in config:
        raise ValueError(unknown_key(last, config, "config.mesh"))
    config[last] = value


def unknown_knob(key: str, config: Mapping, trust: Sequence[str] | None) -> str:
    """The message for an unknown top-level key, with keys of sections of the same name."""
    top, last = key.split(".")[0], key.split(".")[-1]
    known = {k: v for k, v in config.items() if k in KNOBS}
    try:
        inside = flat(resolve(known, trust))
    except ValueError:
        inside = flat(known)
    found = [name for name in inside if "." in name and name.split(".")[-1] == last]
    if found and "." not in key:
        return (
            f"config.{key}: nothing reads this key; did you mean "
            f"{' or '.join(map(repr, found[:3]))}?"
        )
    return unknown_key(top, KNOBS, "config")
