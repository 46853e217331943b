"""Values of a config: read from text, made plain, checked by type and by bounds."""

import ast
import difflib
import inspect
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

# Bounds of numbers, by the name they have in any section: (lowest, highest).
BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("width", "depth", "mlp_width", "num_heads", "patch_size", "image_size"),
        (1, math.inf),
    ),
    **dict.fromkeys(("dropout", "attention_dropout", "stochastic_depth"), (0, 1)),
    **dict.fromkeys(("label_smoothing", "ema_decay"), (0, 1)),
    **dict.fromkeys(("batch_size", "micro_batches", "keep_latest"), (1, math.inf)),
    **dict.fromkeys(("data_threads", "data_prefetch"), (1, math.inf)),
    **dict.fromkeys(
        ("seed", "data_workers", "max_skipped", "registers"), (0, math.inf)
    ),
}
DTYPES = ("float32", "bfloat16", "float16", "float64")


def check_value(key: str, value: Any, annotation: Any, inside: str = "") -> Any:
    """The value of a field, ints made floats where those are asked for.

    Raises:
        ValueError: it is of another type, or out of the bounds of what has this name.
    """
    value = checked(value, annotation, inside + key)
    check_bounds(key, value, inside + key)
    if key == "dtype" and value not in DTYPES:
        raise ValueError(f"{inside}{key}={value!r}: {suggest(value, DTYPES)}")
    return value


def check_bounds(key: str, value: Any, where: str) -> None:
    """Raises ValueError where a number, or one in a list, is out of its name's bounds."""
    low, high = BOUNDS.get(key, (-math.inf, math.inf))
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, int | float) and not low <= number <= high:
            bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise ValueError(f"{where}={value!r} must be {bounds}.")


def checked(value: Any, annotation: Any, where: str) -> Any:
    """The value, its ints made floats where those are asked for.

    Raises:
        ValueError: the value is not of the annotated type.
    """
    for candidate in (value, as_floats(value)):
        if fits(candidate, annotation):
            return candidate
    name = getattr(annotation, "__name__", None) or str(annotation)
    if typing.get_origin(annotation) is not None:
        name = str(annotation).replace("typing.", "")
    raise ValueError(f"{where}={value!r} must be of type {name}.")


def fits(value: Any, annotation: Any) -> bool:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is inspect.Parameter.empty:
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple or annotation in (tuple, list) or origin in (list, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if not args or Ellipsis in args or origin is not tuple:
            return not args or all(fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(fits, value, args))
    if origin in (dict, Mapping) or annotation is dict:
        return isinstance(value, Mapping)
    if isinstance(annotation, type):
        if issubclass(annotation, nn.Module):
            return isinstance(value, Mapping) and "cls" in value
        if annotation in (int, float):
            return type(value) is annotation  # bool is no number here
        return isinstance(value, annotation)
    return True


def parse(text: str) -> Any:
    """JSON, else a Python literal, else the text itself.

    Raises:
        ValueError: the text opens a list or a section and is neither of the two.
    """
    for read in (json.loads, ast.literal_eval):
        try:
            return plain(read(text))
        except (ValueError, SyntaxError):
            pass
    if text.lstrip().startswith(("{", "[")):
        raise ValueError(f"{text!r} is neither JSON nor a Python literal; correct it.")
    return text


def is_json(value: Any) -> bool:
    try:
        json.dumps(plain(value))
    except TypeError:
        return False
    return True


def plain(value: Any) -> Any:
    """Nested dicts and lists, as JSON has them."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def as_tuple(value: Any) -> Any:
    """Lists as tuples, which a module's fields must be to be hashable."""
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value


def as_floats(value: Any) -> Any:
    """Ints as floats, also those in lists."""
    if isinstance(value, list | tuple):
        return [as_floats(item) for item in value]
    return float(value) if type(value) is int else value


def suggest(word: Any, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(map(repr, known))}."
