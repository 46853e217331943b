"""Configs from recipe to objects: load, override, resolve, compare, build.

A section with `cls` names a Flax module or a task; its keys are the fields of that class.
A section with `name` names an optimizer or a schedule; its keys are the arguments of that
function. Resolving fills in every default, so that a saved config is complete, and rejects
every key that nothing would read.
"""

import json
import shlex
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from attn_jax import migrations
from attn_jax.bounds import to_steps
from attn_jax.knobs import CHANGEABLE_KNOBS, FIXED_KNOBS, KNOBS
from attn_jax.migrations import migrate
from attn_jax.optim import OPTIMIZERS
from attn_jax.recipes import find_recipe, load_recipe
from attn_jax.schedules import SCHEDULES, Section
from attn_jax.sections import (
    check_fields,
    class_of,
    fill_class,
    fill_evaluation,
    fill_named,
    find_open,
    unknown_key,
)
from attn_jax.values import (
    AUTO,
    check_against,
    check_structure,
    check_value,
    parse,
    show,
    suggest,
    to_plain,
    to_tuple,
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
    "to_plain",
    "resolve",
    "suggest",
    "to_steps",
]

FIXED, MAY_CHANGE = tuple(FIXED_KNOBS), tuple(CHANGEABLE_KNOBS)
NAMED: dict[str, Mapping] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
MAX_FILE = 1_000_000  # bytes of a saved config; a recipe's is a few thousand


def load(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The resolved config of a recipe with `key=value` overrides.

    Args:
        recipe: "path/to/recipe.py", or a name such as "vit/digits" of one that comes with
            attn_jax; with ":variant" behind it if that is not the default.

    Raises:
        ValueError: the file, the variant or a key does not exist, or a value has the wrong
            type.
    """
    name, _, variant = recipe.partition(":")
    file = find_recipe(name)
    module = load_recipe(file)
    # After a comma, a recipe may take more, which it checks itself: "sst2,tiny".
    if variant and variant.partition(",")[0] not in module.VARIANTS:
        raise ValueError(
            f"--config={recipe}: {variant!r} is not a variant of {name}; "
            f"{suggest(variant, module.VARIANTS)}"
        )
    config = override(module.get_config(*[variant] if variant else []), overrides)
    # Without the folders of whoever trains it: the config is shared with the model.
    config.recipe = f"{file.parent.name}/{file.stem}" + (variant and f":{variant}")
    return config


def from_json(text: str, where: str) -> dict[str, Any]:
    """The config in a saved file, in the current format; `where` names the file.

    Raises:
        ValueError: the text is not a config, or a newer release saved it.
    """
    if len(text) > MAX_FILE:
        raise ValueError(
            f"{where} has {len(text):,} characters; a config has at most {MAX_FILE:,}."
        )
    try:
        saved = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is damaged: {error}. Restore a copy, or remove it: the config of the "
            "newest checkpoint is then used."
        ) from None
    if not isinstance(saved, dict) or "task" not in saved:
        raise ValueError(
            f"{where} is not the config.json of a run; name a run's --workdir."
        )
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
    given = read_section(config, trust)
    for setting in overrides:
        key, _, text = setting.partition("=")
        if key.split(".")[0] not in given:
            raise ValueError(unknown_knob(key, given, trust))
        set_key(given, key, parse(text))
    return resolve(given, trust)


def resolve(config: Section, trust: Sequence[str] | None = None) -> ConfigDict:
    """A locked copy with every default filled in.

    Args:
        trust: as in `build`. If given, the config is a saved one, perhaps of an older
            release.

    Raises:
        ValueError: nothing reads a key, or a value has the wrong type.
    """
    given = read_section(config, trust)
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
        given[key] = check_against(given[key], knob.type, f"config.{key}", knob.example)
    if isinstance(given["init_from"], str):
        given["init_from"] = [[given["init_from"], "", AUTO]]
    for key in ("model", "task"):
        # A saved config has no open fields.
        open_keys = find_open(given[key]) if trust is None else ()
        given[key] = fill_class(given[key], f"config.{key}", trust, open_keys=open_keys)
    for key, functions in NAMED.items():
        given[key] = fill_named(given[key], f"config.{key}", functions)
    given["evals"] = {
        name: fill_evaluation(section, f"config.evals.{name}", given["task"], trust)
        for name, section in given["evals"].items()
    }
    return ConfigDict({"format": migrations.current_format(), **given}).lock()


def read_section(config: Section, trust: Sequence[str] | None) -> dict[str, Any]:
    """A copy as nested dicts; a saved config, marked by `trust`, in the current format.

    Raises:
        ValueError: the config is larger than any real one, or a newer release saved it.
    """
    check_structure(config)
    given = to_plain(config)
    return given if trust is None else migrate(given)


def build(
    section: Section, trust: Sequence[str] | None = None, annotation: Any = None
) -> Any:
    """The module or task that a section names, nested sections first.

    Args:
        section: {"cls": "package.module:Class", **fields}.
        trust: packages whose classes may be built; None allows all. For a config from a
            workdir, which a stranger may have written, it is ("attn_jax",).
        annotation: as of `sections.class_of`.

    Raises:
        ValueError: the class is not trusted, not found, or neither module nor task.
    """
    section = to_plain(section)
    cls = class_of(section, "config", trust, annotation)
    hints = typing.get_type_hints(cls)

    def value_of(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return build(value, trust, hints.get(key)) if "cls" in value else value
        return to_tuple(value)

    return cls(**{key: value_of(key, v) for key, v in section.items() if key != "cls"})


def foreign_packages(config: Section) -> list[str]:
    """Packages other than this one whose classes a config names."""
    return sorted(named_packages(config) - {"attn_jax"})


def named_packages(config: Section) -> set[str]:
    """All packages whose classes a config names."""
    names = [str(v) for k, v in flatten(config).items() if k.split(".")[-1] == "cls"]
    return {name.partition(":")[0].split(".")[0] for name in names}


def evaluation_task(config: Section, name: str) -> dict:
    """The task section of one evaluation: the training task with the section's changes."""
    changes = to_plain(config["evals"][name]["task"])
    return changes if "cls" in changes else {**to_plain(config["task"]), **changes}


def differences(old: Section, new: Section) -> tuple[list[str], list[str]]:
    """(allowed, forbidden) changes when a run is resumed, as lines `key: old -> new`.

    Where a section has another class or function, its other keys are left out.

    Args:
        old: a saved config, possibly of an older release. Keys that it lacks are set to
            what that release did.
        new: a resolved config.
    """
    before, after = flatten(complete_saved(old, new)), flatten(new)
    replaced = tuple(
        key.rpartition(".")[0] + "."
        for key in before.keys() & after.keys()
        if key.rpartition(".")[2] in ("cls", "name") and before[key] != after[key]
    )
    allowed: list[str] = []
    forbidden: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key, "absent"), after.get(key, "absent")
        if key.startswith(replaced) and key.rpartition(".")[2] not in ("cls", "name"):
            continue
        if was != now:
            changeable = key.split(".")[0] in MAY_CHANGE
            lines = allowed if changeable else forbidden
            lines.append(f"{key}: {was} -> {now}")
    return allowed, forbidden


def explain_forbidden(workdir: str, forbidden: Sequence[str]) -> str:
    """The message about changes that are not allowed when a run is resumed."""
    source = json.dumps([[str(workdir), "", ""]])
    return (
        f"{workdir} holds a run with another config; these keys may not change on resume: "
        f"{'; '.join(forbidden)}. Change them back, or start a new run from its parameters "
        f"with another --workdir and {shlex.quote(f'--config.init_from={source}')}."
    )


def complete_saved(old: Section, new: Section) -> dict:
    """A saved config in the current format, with the defaults of keys that it lacks.

    Only packages that `new` names are imported. If that is not enough to resolve the
    config, it is returned without defaults.
    """
    saved = migrate(to_plain(old))
    try:
        return to_plain(resolve(saved, trust=tuple(named_packages(new))))
    except ValueError:
        return saved


# --- keys -----------------------------------------------------------------------------


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} for every leaf of nested sections."""
    config = to_plain(config)
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def set_key(config: dict, key: str, value: Any) -> None:
    """Sets the key `a.b.c` in nested dicts; `resolve` checks the keys inside a section."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(config.get(parent), dict):
            config[parent] = {}
        config = config[parent]
    if parents == ["mesh"] and last not in config:
        raise ValueError(unknown_key(last, config, "config.mesh"))
    config[last] = value


def unknown_knob(key: str, config: Mapping, trust: Sequence[str] | None) -> str:
    """The message for an unknown top-level key; suggests keys of sections of that name."""
    top, last = key.split(".")[0], key.split(".")[-1]
    known = {k: v for k, v in config.items() if k in KNOBS}
    try:
        inside = flatten(resolve(known, trust))
    except ValueError:
        inside = flatten(known)
    found = [name for name in inside if "." in name and name.split(".")[-1] == last]
    if found and "." not in key:
        return (
            f"config.{key}: nothing reads this key; did you mean "
            f"{' or '.join(map(repr, found[:3]))}?"
        )
    return unknown_key(top, KNOBS, "config")
