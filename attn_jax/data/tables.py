"""Tables of texts: TSV, CSV and JSON Lines, with named columns.

A row that cannot be read is never dropped in silence: all of them are counted, and the message
has the first line numbers.
"""

import csv
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from attn_jax.data import bounded
from attn_jax.folder import expand_local

SUFFIXES = (".tsv", ".csv", ".jsonl")
MAX_FIELD = 10_000_000  # characters


class Row(NamedTuple):
    """The wanted columns of a line of a file; lines count from 1."""

    line: int
    values: tuple[str, ...]


class Broken(NamedTuple):
    line: int
    reason: str


def read_table(
    path: pathlib.Path,
    columns: Sequence[str | int],
    *,
    skip_broken: bool = False,
) -> tuple[list[Row], list[Broken]]:
    """Reads columns of a table; returns its rows, and the broken ones if they are skipped.

    In a .tsv quotes mean nothing, as in GLUE's files; a .csv is quoted as spreadsheets do;
    each line of a .jsonl is an object.

    Args:
        columns: names in the first line, or numbers from 0 in a .tsv without such a line.

    Raises:
        ValueError: the file does not exist, is not UTF-8 or has no row; a column is missing; a
            row is broken and `skip_broken` is False.
    """
    shown = bounded.printable(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{shown} is no table; give one of {', '.join(SUFFIXES)}.")
    if not path.exists():
        raise ValueError(f"{shown} does not exist. Set config.task.data to a table.")
    bounded.check_regular(path)
    rows: list[Row] = []
    broken: list[Broken] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _read_json(file, columns, shown)
            if path.suffix != ".jsonl":
                lines = _read_separated(file, columns, path.suffix == ".tsv", shown)
            for found in lines:
                if isinstance(found, Row):
                    rows.append(found)
                else:
                    broken.append(found)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown} is not UTF-8 near byte {error.start} of a block: {error.reason}. Convert "
            "it, for example with iconv -t utf-8."
        ) from error
    except csv.Error as error:
        raise ValueError(f"{shown} is no table: {error}.") from error
    if broken and not skip_broken:
        first = "; ".join(f"line {line}: {reason}" for line, reason in broken[:3])
        raise ValueError(
            f"{shown} has {len(broken)} broken row(s): {first}. Correct them, or set "
            "config.task.broken_rows='skip' to leave them out."
        )
    if not rows:
        raise ValueError(f"{shown} has no rows.")
    return rows, broken


def find_splits(
    data: str, names: Mapping[str, Sequence[str]]
) -> dict[str, pathlib.Path]:
    """Finds {split: table}: files named after splits in a folder, or one file for "train".

    Args:
        names: {split: file names without suffix, the first that exists is taken}.

    Raises:
        ValueError: the path does not exist, or is a folder without a table for "train".
    """
    path = expand_local(data)
    if path.suffix in SUFFIXES:
        return {"train": path}
    if not path.is_dir():
        raise ValueError(
            f"{data!r} is neither a table ({', '.join(SUFFIXES)}) nor a folder of tables "
            "train, validation (or dev) and test."
        )
    found = {
        split: file
        for split, stems in names.items()
        for stem in stems
        for suffix in SUFFIXES
        if (file := path / f"{stem}{suffix}").exists()
    }
    if "train" not in found:
        inside = bounded.join_names(sorted(file.name for file in path.iterdir()), 5)
        raise ValueError(
            f"{data!r} has no table for training ({names['train'][0]}.tsv, .csv or .jsonl); it "
            f"holds: {inside or 'nothing'}."
        )
    return found


def _read_separated(
    file: Iterator[str], columns: Sequence[str | int], tabs: bool, shown: str
) -> Iterator[Row | Broken]:
    csv.field_size_limit(MAX_FIELD)
    if tabs:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        lines = csv.reader(file, strict=True)
    places: list[int] = [c for c in columns if isinstance(c, int)]
    if not places:
        header = next(lines, [])
        if missing := [c for c in columns if c not in header]:
            raise ValueError(
                f"{shown} has no column {missing[0]!r}; its first line has: "
                f"{bounded.join_names(header)}."
            )
        places = [header.index(str(column)) for column in columns]
        width = len(header)
    else:
        width = max(places) + 1
    for cells in lines:
        if not cells or cells == [""]:
            continue
        if len(cells) < width:
            yield Broken(lines.line_num, f"{len(cells)} columns instead of {width}")
        else:
            yield Row(lines.line_num, tuple(cells[place] for place in places))


def _read_json(
    file: Iterator[str], columns: Sequence[str | int], shown: str
) -> Iterator[Row | Broken]:
    del shown
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            yield Broken(line, "no JSON")
            continue
        if not isinstance(record, dict):
            yield Broken(line, "no JSON object")
        elif missing := [c for c in columns if c not in record]:
            yield Broken(line, f"no field {missing[0]!r}")
        else:
            yield Row(line, tuple(str(record[c]) for c in columns))
