"""Divides text into units, and reads their documents.

A unit is about `UNIT_BYTES` of text. Which text it holds depends on the input alone, so machines
that read the same input agree without asking one another.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from attn_jax.data import bounded, catalogue, corpora, prose
from attn_jax.folder import expand_local

UNIT_BYTES = 16_000_000  # of text, in a shard: what a process holds in memory
UNIT_RECORDS = 20_000  # of a set of TensorFlow Datasets
MAX_DOCUMENT = 64_000_000  # bytes: a document is held in memory
SUFFIXES = (".txt", ".jsonl")
RULES = 3  # of `prose.split_sentences`

Kind = Literal["prose", "lines", "jsonl", "tfds"]


class Piece(NamedTuple):
    """A part of the input: bytes (or records) `start` to `end` of a file (or a set)."""

    name: str
    kind: Kind
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the shards depend on, besides the input and the vocabulary.

    Attributes:
        lower_case: lower-case and strip accents.
        held_out: share of the documents that are the validation split.
        one_sentence_per_line: text has a sentence a line; in *.txt, a blank line separates
            documents. False: it is prose, and a *.txt is a document.
        json_key: of the text in an object of a *.jsonl, or in a record of "tfds:NAME".
    """

    lower_case: bool = True
    held_out: float = corpora.HELD_OUT
    one_sentence_per_line: bool = False
    json_key: str = "text"

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(
                f"held_out={self.held_out} is a share of the documents, more than 0 and "
                "less than 1."
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """All units of an input, and what is left out."""

    units: tuple[tuple[Piece, ...], ...]
    left_out: tuple[tuple[str, str], ...]  # (name, reason)


# --- input ----------------------------------------------------------------------------


def plan_units(inputs: Sequence[str], settings: Settings) -> Plan:
    """Divides the input into units.

    Args:
        inputs: files (*.txt, *.jsonl), folders of them, or "tfds:NAME[@DATA_DIR]", prepared.

    Raises:
        ValueError: an input does not exist, or none has text.
    """
    pieces: list[Piece] = []
    left_out: list[tuple[str, str]] = []
    for name in inputs:
        if name.startswith("tfds:"):
            for split, size in catalogue.count_texts(name[5:], settings.json_key):
                pieces += cut(f"{name}#{split}", "tfds", size, UNIT_RECORDS)
            continue
        root = expand_local(name).absolute()
        if not root.exists():
            raise ValueError(
                f"--input={name} does not exist; give a *.txt, a *.jsonl, a folder of "
                "them, or tfds:NAME."
            )
        if root.is_dir():
            files, others = corpora.find_text_files(root, SUFFIXES)
            left_out += [(f"{name}/{other}", "no *.txt or *.jsonl") for other in others]
        else:
            files = (root,)
        for path in files:
            size = bounded.check_regular(path)
            if not size:
                left_out.append((str(path), "empty"))
            elif path.suffix.lower() == ".jsonl":
                pieces += cut(str(path), "jsonl", size, UNIT_BYTES)
            elif settings.one_sentence_per_line:
                pieces += cut(str(path), "lines", size, UNIT_BYTES)
            elif size > MAX_DOCUMENT:
                raise ValueError(
                    f"{path} is one document of {size:,} bytes, and {MAX_DOCUMENT:,} are "
                    "the most. Split it by documents, or give --one_sentence_per_line, "
                    "where a blank line separates them."
                )
            else:
                pieces.append(Piece(str(path), "prose", 0, size))
    if not pieces:
        raise ValueError(
            f"no text in {', '.join(inputs)}; give *.txt or *.jsonl files, or folders of "
            "them."
        )
    return Plan(tuple(group(pieces)), tuple(left_out))


def cut(name: str, kind: Kind, size: int, length: int) -> Iterator[Piece]:
    for start in range(0, size, length):
        yield Piece(name, kind, start, min(start + length, size))


def group(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, ...]]:
    """Joins consecutive pieces until they have the size of a unit."""
    unit: list[Piece] = []
    size = 0.0
    for piece in pieces:
        length = piece.end - piece.start
        share = length / (UNIT_RECORDS if piece.kind == "tfds" else UNIT_BYTES)
        if unit and size + share > 1:
            yield tuple(unit)
            unit, size = [], 0.0
        unit.append(piece)
        size += share
    yield tuple(unit)


# --- documents ------------------------------------------------------------------------


def read_piece(
    piece: Piece, settings: Settings, leave_out: Callable[[str, str], None]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields (bytes read so far, sentences) of each document; none are empty.

    Raises:
        ValueError: a file is not UTF-8, or a line no JSON object with a text.
    """
    path = pathlib.Path(piece.name)
    if piece.kind == "lines":
        yield from read_lines(path, piece.start, piece.end)
        return
    texts: Iterable[tuple[int, str]]
    if piece.kind == "prose":
        lines = [line for _, _, line in corpora.read_lines(path)]
        texts = [(piece.end, "".join(lines))]
    elif piece.kind == "jsonl":
        texts = read_objects(path, piece.start, piece.end, settings.json_key)
    else:
        texts = catalogue.read_texts(
            piece.name[5:], settings.json_key, piece.start, piece.end
        )
    empty = 0
    for done, text in texts:
        if settings.one_sentence_per_line:
            sentences = tuple(filter(None, map(str.strip, text.splitlines())))
        else:
            sentences = tuple(prose.split_sentences(text, RULES))
        empty += not sentences
        if sentences:
            yield done - piece.start, sentences
    if empty and piece.kind == "prose":
        leave_out(piece.name, "no sentence")
    elif empty:
        leave_out(f"{empty:,} documents of {piece.name}", "no sentence")


def read_lines(
    path: pathlib.Path, start: int, end: int
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields the documents whose preceding blank line begins at byte `start` to `end`.

    The first document of a file belongs to byte 0.
    """
    sentences: list[str] = []
    is_ours, done = start == 0, start
    for begin, done, line in corpora.read_lines(path, start):
        if words := line.strip():
            if is_ours:
                sentences.append(words)
            elif begin >= end:
                return
        else:
            if sentences:
                yield done - start, tuple(sentences)
                sentences = []
            if begin >= end:
                return
            is_ours = True
    if sentences:
        yield done - start, tuple(sentences)


def read_objects(
    path: pathlib.Path, start: int, end: int, key: str
) -> Iterator[tuple[int, str]]:
    """Yields the texts of the lines that begin at byte `start` to `end` of a *.jsonl."""
    for begin, done, line in corpora.read_lines(path, start, MAX_DOCUMENT):
        if begin >= end:
            return
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            text = value[key] if isinstance(value, dict) else None
        except KeyError as error:
            raise ValueError(
                describe_line(path, begin, f"has no {error}", key)
            ) from error
        except (ValueError, RecursionError) as error:
            fault = f"is no JSON: {error}"
            raise ValueError(describe_line(path, begin, fault, key)) from error
        if not isinstance(text, str):
            raise ValueError(describe_line(path, begin, "has no text", key))
        yield done, text


def describe_line(path: pathlib.Path, byte: int, fault: str, key: str) -> str:
    with path.open("rb") as file:
        number = 1
        while byte > 0 and (block := file.read(min(byte, 2**20))):
            number += block.count(b"\n")
            byte -= len(block)
    return (
        f"{path}, line {number:,} {fault}; each line is an object with the text under "
        f"{key!r} (--json_key)."
    )
