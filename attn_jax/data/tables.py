"""Tables of texts or of files: TSV, CSV, JSON Lines and Parquet, with named columns.

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

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
MAX_FIELD = 10_000_000  # characters


class Row(NamedTuple):
    """The wanted columns of a line of a file; lines count from 1, rows of a .parquet too."""

    line: int
    values: tuple[str, ...]


class Broken(NamedTuple):
    line: int
    reason: str


def read_table(
    path: pathlib.Path,
    columns: Sequence[str | int],
    *,
    skip_broken: bool | None = False,
) -> tuple[list[Row], list[Broken]]:
    """Reads columns of a table; returns its rows, and the broken ones if they are skipped.

    In a .tsv quotes mean nothing, as in GLUE's files; a .csv is quoted as spreadsheets do;
    each line of a .jsonl is an object. Numbers of a .parquet become text; a null is a broken row.

    Args:
        columns: names in the first line, or numbers from 0 in a .tsv without such a line.
        skip_broken: whether broken rows are left out. None: the user has no such choice.

    Raises:
        ValueError: the file does not exist, is not UTF-8 or has no row; a column is missing; a
            row is broken and `skip_broken` is not True.
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
        for found in _read_rows(path, columns, shown):
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
        unit = "row" if path.suffix == ".parquet" else "line"
        first = "; ".join(f"{unit} {number}: {reason}" for number, reason in broken[:3])
        raise ValueError(
            f"{shown} has {len(broken)} broken row(s): {first}. Correct them"
            + (
                "."
                if skip_broken is None
                else ", or set config.task.broken_rows='skip' to leave them out."
            )
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
            f"{data!r} has no table for training ({names['train'][0]} with one of "
            f"{', '.join(SUFFIXES)}); it holds: {inside or 'nothing'}."
        )
    return found


def _read_rows(
    path: pathlib.Path, columns: Sequence[str | int], shown: str
) -> Iterator[Row | Broken]:
    if path.suffix == ".parquet":
        yield from _read_parquet(path, columns, shown)
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".jsonl":
            yield from _read_json(file, columns, shown)
        else:
            yield from _read_separated(file, columns, path.suffix == ".tsv", shown)


def _read_parquet(
    path: pathlib.Path, columns: Sequence[str | int], shown: str
) -> Iterator[Row | Broken]:
    # Imported here, because it takes time that no other table needs.
    import pyarrow
    from pyarrow import parquet

    names = [str(column) for column in columns]
    try:
        file = parquet.ParquetFile(path)
        _check_columns(columns, file.schema_arrow.names, shown)
        number = 0
        for batch in file.iter_batches(columns=names):
            for record in batch.to_pylist():
                number += 1
                if empty := [name for name in names if record[name] is None]:
                    yield Broken(number, f"no {empty[0]!r}")
                else:
                    yield Row(number, tuple(str(record[name]) for name in names))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{shown} cannot be read as Parquet: {error}. Write it again, or export a .csv."
        ) from error


def _check_columns(
    columns: Sequence[str | int], known: Sequence[str], shown: str
) -> None:
    if missing := [column for column in columns if column not in known]:
        raise ValueError(
            f"{shown} has no column {missing[0]!r}; its columns are: "
            f"{bounded.join_names(known)}."
        )


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
        _check_columns(columns, header, shown)
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
