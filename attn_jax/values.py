"""Values of a config: parses text, converts to plain types, checks annotations."""

import ast
import difflib
import inspect
import json
import math
import reprlib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import flax.linen as nn
from ml_collections import ConfigDict

DTYPES = ("float32", "bfloat16", "float16", "float64")

# Far above any real config; they bound the work on a stranger's file.
MAX_DEPTH = 20
MAX_VALUES = 10_000
MAX_TEXT = 10_000
MAX_INT = 2**63

AUTO = "auto"  # a value that is taken from the data or a checkpoint, see `attn_jax.derived`


# --- checks ---------------------------------------------------------------------------


def check_value(key: str, value: Any, annotation: Any, inside: str = "") -> Any:
    """The value of a field, checked; ints are converted where floats are annotated.

    Raises:
        ValueError: the value has another type or violates the annotation's rule.
    """
    value = check_against(value, annotation, inside + key)
    if key == "dtype" and value not in DTYPES:
        raise ValueError(f"{inside}{key}={show(value)}: {suggest(value, DTYPES)}")
    return value


def check_against(value: Any, annotation: Any, where: str, example: str = "") -> Any:
    """The value, checked; ints are converted where floats are annotated.

    Args:
        example: shown if the type is wrong; default: the example of the annotated rule.

    Raises:
        ValueError: the value has another type or violates the annotation's rule.
    """
    example = example or next(find_examples(annotation), "")
    hint = f" For example: {example}" if example else ""
    for candidate in (value, to_floats(value)):
        if has_type(candidate, annotation):
            rule = find_complaint(candidate, annotation)
            if rule is None:
                return candidate
            raise ValueError(f"{where}={show(value)} must be {rule}.")
    if typing.get_origin(annotation) is dict and isinstance(value, Mapping):
        inner = typing.get_args(annotation)[1]
        for key, item in value.items():  # name the entry, not the whole section
            check_against(item, inner, f"{where}.{key}", example)
    raise ValueError(
        f"{where}={show(value)} must be of type {describe(annotation)}.{hint}"
    )


def has_type(value: Any, annotation: Any) -> bool:
    """Whether the value has the annotated type; ignores the rules of `attn_jax.bounds`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is inspect.Parameter.empty:
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if origin is Annotated:
        return has_type(value, args[0])
    if origin in (typing.Union, types.UnionType):
        return any(has_type(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is tuple or annotation in (tuple, list) or origin in (list, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if not args or Ellipsis in args or origin is not tuple:
            return not args or all(has_type(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(has_type, value, args))
    if origin in (dict, Mapping) or annotation is dict:
        return isinstance(value, Mapping) and all(
            has_type(item, args[1]) for item in (value.values() if args else ())
        )
    if isinstance(annotation, type):
        if issubclass(annotation, nn.Module) or find_protocol(annotation):
            return isinstance(value, Mapping) and "cls" in value
        if annotation in (int, float):
            return type(value) is annotation  # unlike isinstance, rejects bool
        return isinstance(value, annotation)
    return True


def find_protocol(annotation: Any) -> type | None:
    """The protocol in an annotation, such as that of a Hopfield layer's `member`."""
    if getattr(annotation, "_is_protocol", False):
        return annotation
    found = map(find_protocol, typing.get_args(annotation))
    return next(filter(None, found), None)


def find_complaint(value: Any, annotation: Any) -> str | None:
    """The first rule that a value of the annotated type breaks; None if there is none."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(value, float) and not math.isfinite(value):
        return "finite"
    if type(value) is int and abs(value) >= MAX_INT:
        return "an integer of at most 64 bits"
    if origin is Annotated:
        rules = (rule.complaint(value) for rule in args[1:])
        return next(filter(None, rules), None) or find_complaint(value, args[0])
    if origin in (typing.Union, types.UnionType):
        found = [find_complaint(value, arg) for arg in args if has_type(value, arg)]
        return None if None in found else next(iter(found), None)
    if isinstance(value, list | tuple):
        each = (
            args if origin is tuple and Ellipsis not in args else args[:1] * len(value)
        )
        each = each or (Any,) * len(value)
        return next(filter(None, map(find_complaint, value, each)), None)
    if isinstance(value, Mapping) and len(args) == 2:  # else a section of its own rules
        found = [find_complaint(item, args[1]) for item in value.values()]
        return next(filter(None, found), None)
    return None


def find_examples(annotation: Any) -> Iterator[str]:
    """The examples that the rules of an annotation provide."""
    for rule in getattr(annotation, "__metadata__", ()):
        if hasattr(rule, "example"):
            yield rule.example
    for arg in typing.get_args(annotation):
        yield from find_examples(arg)


def describe(annotation: Any) -> str:
    """The annotated type as text, without rules."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return describe(args[0])
    if annotation is type(None):
        return "None"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(describe, args))
    if origin in (tuple, list, dict, Sequence, Mapping):
        return f"{origin.__name__}[{', '.join(map(describe, args))}]"
    if annotation is Ellipsis:
        return "..."
    if origin is not None:
        return str(annotation).replace("typing.", "")
    return getattr(annotation, "__name__", None) or str(annotation)


def check_structure(config: Any) -> None:
    """Raises ValueError if a config is nested deeper or larger than any real one."""
    level, count, depth = [("config", config)], 0, 0
    while level:
        count, depth = count + len(level), depth + 1
        if count > MAX_VALUES:
            raise ValueError(f"the config has more than {MAX_VALUES:,} values.")
        if depth > MAX_DEPTH:
            raise ValueError(f"the config is nested more than {MAX_DEPTH} levels deep.")
        below: list[tuple[str, Any]] = []
        for where, value in level:
            if isinstance(value, str) and len(value) > MAX_TEXT:
                raise ValueError(
                    f"{where} has {len(value):,} characters; a text has at most "
                    f"{MAX_TEXT:,}."
                )
            if isinstance(value, Mapping | ConfigDict):
                if not all(isinstance(key, str) for key in value):
                    raise ValueError(f"{where}: every key must be a text.")
                below += [(f"{where}.{key[:40]}", item) for key, item in value.items()]
                below += [(f"a key of {where}", key) for key in value if len(key) > 40]
            elif isinstance(value, list | tuple):
                below += [(where, item) for item in value]
        level = below


# --- conversions ----------------------------------------------------------------------


def parse(text: str) -> Any:
    """JSON, else a Python literal, else the text itself.

    Raises:
        ValueError: the text begins like a list or a section, but cannot be parsed.
    """
    for read in (json.loads, ast.literal_eval):
        try:
            return to_plain(read(text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass  # RecursionError, MemoryError: nested too deeply for the parser
    if text.lstrip().startswith(("{", "[")):
        raise ValueError(
            f"{show(text)} is neither JSON nor a Python literal; correct it."
        )
    return text


def is_json(value: Any) -> bool:
    try:
        json.dumps(to_plain(value))
    except TypeError:
        return False
    return True


def to_plain(value: Any) -> Any:
    """Converts to nested dicts and lists, the types of JSON."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def to_tuple(value: Any) -> Any:
    """Converts nested lists to tuples, because fields of a module must be hashable."""
    return tuple(map(to_tuple, value)) if isinstance(value, list | tuple) else value


def to_floats(value: Any) -> Any:
    """Converts ints to floats, also in nested lists; integers beyond 64 bits stay."""
    if isinstance(value, list | tuple):
        return [to_floats(item) for item in value]
    if type(value) is int and abs(value) < MAX_INT:
        return float(value)
    return value


# --- messages -------------------------------------------------------------------------


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 4, 12, 12, 12
        self.maxstring = self.maxother = 200

    def repr_int(self, x: int, level: int) -> str:
        # repr() itself refuses integers of more than 4,300 digits.
        return repr(x) if abs(x) < 10**40 else f"<integer of {x.bit_length()} bits>"


def show(value: Any) -> str:
    """A shortened repr(), for messages."""
    return _ShortRepr().repr(value)


def suggest(word: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the closest known one, and all."""
    known = list(known)
    close = difflib.get_close_matches(str(word)[:100], known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(map(repr, known))}."
