"""Parameters by name: a tree as {"block_0/mlp/kernel": leaf}, and regexes over names.

Weight decay, learning-rate multipliers, freezing, sharding rules and checkpoint loading
select parameters by regex. A regex must match the whole name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from attn_jax.patterns import find_fault


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


def match_names(patterns: Iterable[str], names: Iterable[str], *, key: str) -> set[str]:
    """The names that at least one regex matches in full.

    Args:
        key: the config key, for messages.

    Raises:
        ValueError: a pattern is not a safe regex, or matches nothing.
    """
    names, found = list(names), set()
    for pattern in patterns:
        whole = compile_pattern(pattern, key)
        matched = {name for name in names if whole.fullmatch(name)}
        if not matched:
            raise unmatched_error(pattern, names, key)
        found |= matched
    return found


def match_first(
    rules: Sequence[Sequence], names: Iterable[str], *, key: str
) -> Mapping[str, Any]:
    """{name: value of the first rule whose regex matches it}, without unmatched names.

    Raises:
        ValueError: a pattern is not a safe regex, or matches nothing.
    """
    names = list(names)
    values: dict[str, Any] = {}
    for pattern, value in rules:
        whole = compile_pattern(pattern, key)
        matched = [name for name in names if whole.fullmatch(name)]
        if not matched:
            raise unmatched_error(pattern, names, key)
        for name in matched:
            values.setdefault(name, value)
    return values


def compile_pattern(pattern: str, key: str) -> re.Pattern[str]:
    """The compiled regex.

    Raises:
        ValueError: it is not a regex, or one that can take exponential time.
    """
    if fault := find_fault(pattern):
        raise ValueError(f"config.{key}: {shorten(pattern)} must be {fault}.")
    return re.compile(pattern)


def shorten(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 200 else pattern[:200] + "...")


def unmatched_error(pattern: str, names: Sequence[str], key: str) -> ValueError:
    shown = ", ".join(names[:3])
    return ValueError(
        f"config.{key}: the regex {shorten(pattern)} matches no parameter; it must match a "
        f"whole path such as {shown}. Correct or remove it."
    )


def select_leaves(tree: Any, names: Iterable[str]) -> dict[str, Any]:
    """The leaves with these names, in tree order."""
    names = set(names)
    return {name: leaf for name, leaf in named_leaves(tree).items() if name in names}


def replace_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree with its leaves of these names replaced."""
    return map_named(lambda name, leaf: leaves.get(name, leaf), tree)
