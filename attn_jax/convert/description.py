"""Reads the JSON that describes a checkpoint, and checks every entry.

The file is untrusted: only regular files of a plausible size are read.
"""

import json
import math
import os
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from attn_jax.data import bounded

MAX_JSON_BYTES = 2**26  # the names of 20,000 classes take a million bytes
MAX_COUNT = 2**31 - 1  # highest value of an integer of a configuration


class Description(dict):
    """The JSON object in a file; errors about its entries name the file.

    Raises:
        ValueError: the file is no regular file, or holds no JSON object.
    """

    def __init__(self, path: epath.PathLike):
        text = read_text(path)
        try:
            described = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is no JSON: {shorten(error)}. Fetch it again."
            ) from error
        if not isinstance(described, dict):
            raise ValueError(f"{path} holds no JSON object, but {described!r:.40}.")
        super().__init__(described)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise ValueError(
            f"{self.path} lacks {key!r}, which describes the model. Is it the file of this "
            "model?"
        )

    def count(self, key: str, default: int | None = None) -> int:
        """Returns an entry that is an integer of at least 1."""
        value = self[key] if default is None else self.get(key, default)
        if type(value) is not int or not 1 <= value <= MAX_COUNT:
            raise self.make_error(key, value, f"an integer from 1 to {MAX_COUNT}")
        return value

    def number(self, key: str, default: float, highest: float = math.inf) -> float:
        """Returns an entry that is a finite number of at least 0."""
        value = self.get(key, default)
        if (
            type(value) not in (int, float)
            or not 0 <= value <= min(highest, MAX_COUNT)  # neither NaN nor infinite
        ):
            most = "" if highest == math.inf else f" and at most {highest}"
            raise self.make_error(key, value, f"a finite number of at least 0{most}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.make_error(key, value, "true or false")
        return value

    def choice(self, key: str, allowed: Collection[str], default: str) -> str:
        value = self.get(key, default)
        if not isinstance(value, str) or value not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ValueError(f"{self.path}: {key}={value!r:.100} is none of {names}.")
        return value

    def section(self, key: str) -> "Description":
        """Returns an entry that is an object; an empty one if it is missing."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.make_error(key, value, "an object")
        return self.with_values(value)

    def with_values(self, values: Mapping[str, Any]) -> "Description":
        """Makes a description of the same file with other values."""
        described = Description.__new__(Description)
        described.update(values)
        described.path = self.path
        return described

    def size(self, key: str) -> int | tuple[int, int]:
        """Returns an entry that is a size in pixels: an integer, or a list of two."""
        return as_size(self[key], f"{self.path}: {key}=")

    def make_error(self, key: str, value: Any, rule: str) -> ValueError:
        return ValueError(
            f"{self.path}: {key}={shorten(value)} must be {rule}. Correct the file."
        )


def as_size(size: Any, where: str = "") -> int | tuple[int, int]:
    """Converts a size from JSON, where a tuple is a list; a square becomes one number.

    Raises:
        ValueError: it is no size in pixels.
    """
    sides = [size, size] if type(size) is int else size
    if (
        not isinstance(sides, list | tuple)
        or list(map(type, sides)) != [int, int]
        or not all(1 <= side <= MAX_COUNT for side in sides)
    ):
        raise ValueError(
            f"{where}{shorten(size)} is no size in pixels: one integer from 1 up, or two."
        )
    return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])


def shorten(value: Any, most: int = 100) -> str:
    """Formats a value on one line; integers of thousands of digits have no `repr`."""
    try:
        text = str(value) if isinstance(value, Exception) else repr(value)
    except ValueError:
        return f"a {type(value).__name__} of thousands of digits"
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}..."


def check_regular(path: epath.PathLike) -> int:
    """Returns the size of a regular file in bytes.

    Raises:
        ValueError: the file does not exist, or is a folder, pipe, socket or device.
    """
    try:
        return bounded.check_regular(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def read_text(path: epath.PathLike) -> str:
    """Reads the text of a configuration.

    Raises:
        ValueError: the file is not regular, too large, or not UTF-8.
    """
    place = epath.Path(path)
    local = "://" not in os.fspath(path)
    size = check_regular(path) if local else place.stat().length
    if size > MAX_JSON_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes; a configuration may have at most {MAX_JSON_BYTES:,}."
        )
    try:
        return place.read_text()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}. Fetch it again.") from error
