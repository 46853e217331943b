"""The inputs of `predict`: those of the command line, and the lines of files."""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from attn_jax.folder import expand_local

TABLES = (".csv", ".tsv", ".json")  # their lines are no inputs


def list_inputs(options: argparse.Namespace) -> Iterator[Any]:
    """Yields the inputs of the command line, then those of the files."""
    yield from options.inputs
    if options.question is not None:
        yield {"question": options.question, "context": options.passage}
    for name in options.file:
        yield from read_lines(name)


def read_lines(name: str) -> Iterator[Any]:
    """Yields the lines of a file that are not empty; of FILE.jsonl, what each stands for.

    Raises:
        ValueError: the file does not exist, is a table or no UTF-8 text; a line is no JSON.
    """
    suffix = pathlib.PurePath(name).suffix.lower()
    if suffix in TABLES:
        raise ValueError(
            f"--file={name} is no list of inputs: --file reads lines of text, or a .jsonl with "
            'an input a line, such as {"text": "..."}. Write the column that you mean to such '
            "a file."
        )
    if name == "-":
        lines: Iterable[str] = sys.stdin
    else:
        path = expand_local(name)
        if not path.is_file():
            raise ValueError(
                f"--file={name} is no file; give a text file, or - for stdin."
            )
        try:
            lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"--file={name}: byte {error.start} is not UTF-8. Convert the file, for example "
                "with iconv -t utf-8."
            ) from error
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        if suffix != ".jsonl":
            yield line
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"--file={name}, line {number} is no JSON: {error}"
            ) from error
