"""Checks that a regex of a config is valid and matches in bounded time."""

import math
import re
from re import _parser as parser  # type: ignore[attr-defined]  # the only parser there is
from typing import Any

# A regex of a stranger's config must not run forever; real ones have 2 or 3 wildcards.
MAX_REPEATS = 5
MAX_CHOICES = 12


def find_fault(pattern: str) -> str | None:
    """What the pattern must be; None if it is a regex without exponential run time."""
    try:
        repeats, choices = count_choices(parser.parse(pattern))
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"a regular expression ({str(error)[:100]})"
    if repeats > MAX_REPEATS or choices > MAX_CHOICES:
        return (
            f"a regex that cannot take exponential time: at most {MAX_REPEATS} of * + "
            f"{{m,n}}, none around another or around a |, and at most {MAX_CHOICES} of "
            "these, ? and |; several simple regexes do the same"
        )
    return None


def count_choices(parsed: Any, repeated: bool = False) -> tuple[int, float]:
    """(repeats, choice points) of a parsed regex.

    The number of choice points is infinite if one is nested in a repeat, because matching
    may then take exponential time.
    """
    repeats, choices = 0, 0.0
    for operator, argument in parsed:
        name, inner, inside = str(operator), [], repeated
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, most, body = argument
            repeats += most > 1
            inner, inside = [body], repeated or most > 1
        elif name == "BRANCH":
            inner = argument[1]
        elif name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT", "ATOMIC_GROUP"):
            inner = [argument[-1] if isinstance(argument, tuple) else argument]
        elif name == "GROUPREF_EXISTS":
            inner = [part for part in argument[1:] if part is not None]
        if "REPEAT" in name or name in ("BRANCH", "GROUPREF_EXISTS"):
            choices += math.inf if repeated else 1
        for body in inner:
            more_repeats, more_choices = count_choices(body, inside)
            repeats, choices = repeats + more_repeats, choices + more_choices
    return repeats, choices
