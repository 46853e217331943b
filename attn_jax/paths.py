"""Parameters by name: a tree as {"block_0/mlp/kernel": leaf}, and regexes over those names.

Weight decay, learning-rate multipliers, freezing, sharding rules and checkpoint
loading all select parameters this way; a regex must match the whole name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax


def name_of(path: Sequence[Any]) -> str:
    """`"a/0/b"` for a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Every leaf of a tree under its name, in tree order."""
    return {name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def map_named(function: Any, tree: Any) -> Any:
    """`function(name, leaf)` for every leaf; the tree keeps its structure."""
    return jax.tree.map_with_path(
        lambda path, leaf: function(name_of(path), leaf), tree
    )


def matching(patterns: Iterable[str], names: Iterable[str], *, key: str) -> set[str]:
    """The names that at least one pattern matches in full.

    Raises:
        ValueError: a pattern matches nothing or is none; `key` is the config key to mend.
    """
    names, found = list(names), set()
    for pattern in patterns:
        whole = compiled(pattern, key)
        matched = {name for name in names if whole.fullmatch(name)}
        if not matched:
            raise ValueError(unmatched(pattern, names, key))
        found |= matched
    return found


def first_match(
    rules: Sequence[Sequence], names: Iterable[str], *, key: str
) -> Mapping[str, Any]:
    """{name: value of the first rule whose regex matches it}; unmatched names are absent.

    Raises:
        ValueError: a regex matches no name at all.
    """
    names = list(names)
    values: dict[str, Any] = {}
    for pattern, value in rules:
        whole = compiled(pattern, key)
        matched = [name for name in names if whole.fullmatch(name)]
        if not matched:
            raise ValueError(unmatched(pattern, names, key))
        for name in matched:
            values.setdefault(name, value)
    return values


def compiled(pattern: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"config.{key}: {pattern!r} is no regular expression: {error}. Correct it."
        ) from error


def unmatched(pattern: str, names: Sequence[str], key: str) -> str:
    shown = ", ".join(names[:3])
    return (
        f"config.{key}: the regex {pattern!r} matches no parameter; it must match a whole "
        f"path such as {shown}. Correct or remove it."
    )


def pick(tree: Any, names: Iterable[str]) -> dict[str, Any]:
    """The leaves of these names, in tree order."""
    names = set(names)
    return {name: leaf for name, leaf in named_leaves(tree).items() if name in names}


def overlay(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree with these leaves in place of its own."""
    return map_named(lambda name, leaf: leaves.get(name, leaf), tree)
