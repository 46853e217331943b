"""The keys of a recipe, each with its value, type and meaning, as text.

The meanings are those of the source: comments of `configs/common.py`, and the docstrings of
models, tasks, optimizers and schedules.
"""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from attn_jax import recipes
from attn_jax.config import NAMED
from attn_jax.knobs import EVALUATION, KNOBS
from attn_jax.schedules import Section
from attn_jax.sections import class_of
from attn_jax.values import describe as describe_type
from attn_jax.values import show, to_plain

WIDTH = 100  # columns
ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")


class Key(NamedTuple):
    """A key of a resolved config."""

    name: str  # such as "model.width"
    value: Any
    annotation: Any
    meaning: str


class Group(NamedTuple):
    """Keys that belong together: a section, or top-level keys in a row (without a title)."""

    title: str
    meaning: str
    keys: list[Key]


def describe(name: str, config: Section) -> str:
    """All keys of a resolved config, one a line.

    Args:
        name: the recipe as the user named it.
    """
    module = recipes.load_recipe(recipes.find_recipe(name.partition(":")[0]))
    lines = [name, "", *(module.__doc__ or "").strip().splitlines(), ""]
    lines += [f"Variants: {', '.join(module.VARIANTS)}", ""]
    lines += ["Keys, as --config.KEY=VALUE; the values are those of this recipe:"]
    for group in list_groups(config):
        title = [group.title] if group.title else []
        lines += ["", *title, *indent(group.meaning)]
        for key in group.keys:
            kind = describe_type(key.annotation)
            lines += [f"  {key.name}={show(key.value)}  ({kind})", *indent(key.meaning)]
    return "\n".join(lines)


def list_groups(config: Section) -> Iterator[Group]:
    """The keys of a resolved config, in the order of `configs/common.py`."""
    plain = to_plain(config)
    comments = read_comments()
    row: list[Key] = []
    for name, knob in KNOBS.items():
        value = plain[name]
        is_section = isinstance(value, Mapping) and {"cls", "name"} & value.keys()
        if not is_section and name != "evals":
            row.append(Key(name, value, knob.type, comments.get(name, "")))
            continue
        if row:
            yield Group("", "", row)
            row = []
        if is_section:
            yield from list_section(name, value)
        else:
            yield Group("evals:", comments.get(name, ""), list_evaluations(value))
    yield Group("", "", row)


def list_evaluations(evals: Mapping[str, Any]) -> list[Key]:
    return [
        Key(f"evals.{name}.{field}", section[field], annotation, "")
        for name, section in evals.items()
        for field, (annotation, _) in EVALUATION.items()
    ]


def list_section(where: str, section: Mapping[str, Any]) -> Iterator[Group]:
    """The keys of a class, or of an optimizer or schedule; then those of nested sections."""
    if "cls" in section:
        target: Any = class_of(section, f"config.{where}", None)
        annotations = typing.get_type_hints(target, include_extras=True)
        title = f"{where}: {section['cls']}"
    else:
        target = NAMED[where][section["name"]]
        annotations = {
            parameter.name: parameter.annotation
            for parameter in inspect.signature(target).parameters.values()
        }
        title = f"{where}: {section['name']}, of {', '.join(NAMED[where])}"
    meanings = read_meanings(target)
    keys, nested = [], {}
    for key, value in section.items():
        if key in ("cls", "name"):
            continue
        if isinstance(value, Mapping) and "cls" in value:
            nested[f"{where}.{key}"] = value
            continue
        meaning = meanings.get(key, "")
        keys.append(Key(f"{where}.{key}", value, annotations[key], meaning))
    yield Group(title, "", keys)
    for key, value in nested.items():
        yield from list_section(key, value)


def indent(meaning: str) -> list[str]:
    return [f"      {line}" for line in textwrap.wrap(meaning, WIDTH - 6)]


def read_comments() -> dict[str, str]:
    """{key: its comment} of configs/common.py: beside the key, or else above it."""
    text = (recipes.find_root() / "configs" / "common.py").read_text(encoding="utf-8")
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    meanings = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            last = node.end_lineno or node.lineno
            lines = range(node.lineno, last + 1)
            if not any(line in comments for line in lines):
                first = node.lineno
                while first - 1 in comments:
                    first -= 1
                lines = range(first, node.lineno)
            found = [comments[line] for line in lines if line in comments]
            meanings[node.targets[0].attr] = " ".join(found)
    return meanings


def read_meanings(target: type | Callable) -> dict[str, str]:
    """{field or argument: what the docstring says of it}, of base classes too."""
    classes = inspect.getmro(target) if inspect.isclass(target) else (target,)
    meanings: dict[str, str] = {}
    for cls in reversed(classes):
        if not inspect.isclass(cls) or dataclasses.is_dataclass(cls):
            meanings |= parse_entries(inspect.cleandoc(cls.__doc__ or ""))
    return meanings


def parse_entries(docstring: str) -> dict[str, str]:
    """The entries below "Attributes:" and "Args:"; `a, b: text` is of both."""
    meanings: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            inside = line in ("Attributes:", "Args:")
        elif inside and (entry := ENTRY.fullmatch(line[4:])):
            names = entry[1].split(", ")
            meanings |= dict.fromkeys(names, entry[2])
        elif inside and line.strip():
            for name in names:
                meanings[name] += f" {line.strip()}"
    return meanings
