"""Immune repertoires: generated ones with implanted motifs, and tables of real ones."""

import csv
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int8, Int64, Integer

from attn_jax.data import bounded
from attn_jax.folder import expand_local

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
WILDCARD = "Z"
SEPARATORS = {".tsv": "\t", ".csv": ","}
# {byte of a letter: its number}; -1: no amino acid.
NUMBERS = np.full(256, -1, np.int8)
NUMBERS[list(AMINO_ACIDS.encode())] = np.arange(len(AMINO_ACIDS))


class Repertoire(NamedTuple):
    """Sequences as numbers of `AMINO_ACIDS`, -1 behind a sequence, and how often each was seen."""

    name: str
    sequences: Int8[np.ndarray, "K L"]
    counts: Int64[np.ndarray, " K"]
    label: str | None


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of the table of labels, and of a repertoire; without `count` each counts once."""

    file: str = "file"
    label: str = "label"
    sequence: str = "amino_acid"
    count: str | None = "templates"


def draw_repertoire(
    index: int,
    *,
    sequences: int,
    motifs: Sequence[str],
    rate: float,
    length: int,
    seed: int,
) -> Repertoire:
    """Random sequences; in an odd-numbered repertoire, a share of them has a motif.

    Letters are uniform. The number of letters is drawn from N(14.5, 1.8), rounded and
    clipped to [longest motif, `length`]. One of the motifs, drawn at random, replaces the letters in the middle
    of a witness, or one place before or behind; where it has a Z, the letter stays. Counts
    are geometric with mean 3. The repertoire is a pure function of (`seed`, `index`) and the other arguments.

    Args:
        rate: share of witnesses in a positive repertoire; rate x sequences, rounded, are implanted. By
            chance a motif may occur in any other sequence, too.

    Raises:
        ValueError: no witness would be implanted; there is no motif, or one is empty, too long, or has a
            letter that is no amino acid and not Z.

    Source: after the simulated sets of Widrich et al. 2020, which have 300,000 sequences; their
    generator was not published.
    """
    witnesses = round(rate * sequences)
    if not 1 <= witnesses <= sequences:
        raise ValueError(
            f"{rate=} of {sequences=} are {witnesses} witnesses; at least 1 and at most all "
            "must be. Change config.task.rate or config.task.sequences."
        )
    for motif in motifs or ("",):
        letters = set(motif) - {*AMINO_ACIDS, WILDCARD}
        if letters or not 0 < len(motif) <= length:
            raise ValueError(
                f"{motif=} must be 1 to {length} letters of {AMINO_ACIDS}, or {WILDCARD} for any."
            )
    rng = np.random.default_rng((seed, index))
    shortest = max(map(len, motifs))
    lengths = np.rint(rng.normal(14.5, 1.8, sequences)).astype(np.int64)
    lengths = np.clip(lengths, shortest, length)
    found = rng.integers(len(AMINO_ACIDS), size=(sequences, length), dtype=np.int8)
    counts = rng.geometric(1 / 3, sequences)
    if index % 2:
        for row in rng.choice(sequences, witnesses, replace=False):
            motif = motifs[int(rng.integers(len(motifs)))]
            last = lengths[row] - len(motif)
            start = np.clip(last // 2 + rng.integers(-1, 2), 0, last)
            for place, letter in enumerate(motif, int(start)):
                if letter != WILDCARD:
                    found[row, place] = AMINO_ACIDS.index(letter)
    found[np.arange(length) >= lengths[:, None]] = -1
    label = ("absent", "present")[index % 2]
    return Repertoire(f"repertoire {index}", found, counts, label)


def read_labeled(table: str, columns: Columns) -> list[Repertoire]:
    """Reads the repertoires that a table names, one file each.

    The table (.tsv or .csv) has the file of each repertoire, relative to the table's folder, and its
    label. All repertoires are read at once; a sequence takes as many bytes as the longest one of its file
    has letters, and 8 more.

    Raises:
        ValueError: a file is missing or malformed; a file is named twice.
    """
    path = expand_local(table)
    found: list[Repertoire] = []
    lines: dict[pathlib.Path, int] = {}
    for line, cells in read_cells(path, (columns.file, columns.label)):
        file = path.parent / cells[0]
        if file in lines:
            raise ValueError(
                f"{bounded.printable(path)}, line {line}: {bounded.printable(cells[0])} is "
                f"named in line {lines[file]}, too; name each file once."
            )
        lines[file] = line
        if not file.exists():
            raise ValueError(
                f"{bounded.printable(path)}, line {line}: there is no file "
                f"{bounded.printable(file)}; name it relative to the table's folder."
            )
        found.append(read_repertoire(file, columns)._replace(label=cells[1]))
    if not found:
        raise ValueError(f"{bounded.printable(path)} has no row.")
    return found


def read_repertoire(path: pathlib.Path, columns: Columns) -> Repertoire:
    """Reads the sequences of a .tsv or .csv file, and their counts.

    Raises:
        ValueError: the file is missing or malformed; it has no sequence; a sequence is empty or has
            a letter that is no amino acid; a count is no integer of 1 or more.
    """
    wanted = (columns.sequence, *([] if columns.count is None else [columns.count]))
    rows = list(read_cells(path, wanted))
    shown = bounded.printable(path)
    if not rows:
        raise ValueError(f"{shown} has no sequence; leave out empty repertoires.")
    counts = []
    for line, (sequence, *count) in rows:
        if not sequence:
            raise ValueError(f"{shown}, line {line}: the sequence is empty.")
        if count and not (count[0].isdecimal() and 0 < int(count[0]) < 2**62):
            raise ValueError(
                f"{shown}, line {line}: {columns.count}={bounded.printable(count[0])!r} must "
                "be an integer of 1 or more: how often the sequence was seen."
            )
        counts.append(int(count[0]) if count else 1)
    texts = [sequence for _, (sequence, *_) in rows]
    lengths = np.array([len(text) for text in texts])
    letters = "".join(texts).encode("latin-1", "replace")
    numbers = NUMBERS[np.frombuffer(letters, np.uint8)]
    if (numbers < 0).any():
        place = int((numbers < 0).argmax())
        row = int(np.searchsorted(lengths.cumsum(), place, side="right"))
        letter = "".join(texts)[place]
        raise ValueError(
            f"{shown}, line {rows[row][0]}: {columns.sequence}="
            f"{bounded.printable(texts[row])!r} has the letter {letter!r}; amino acids are "
            f"{AMINO_ACIDS}. Leave out such sequences."
        )
    found = np.full((len(rows), lengths.max()), -1, np.int8)
    found[np.arange(lengths.max()) < lengths[:, None]] = numbers
    return Repertoire(path.name, found, np.array(counts), None)


def read_cells(
    path: pathlib.Path, wanted: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, the wanted columns) of every row of a table that is not empty.

    Raises:
        ValueError: the file is missing or no table in UTF-8; it lacks a column; a row has
            another number of columns than the first line.
    """
    shown = bounded.printable(path)
    if path.suffix not in SEPARATORS or not path.exists():
        raise ValueError(f"{shown!r} must be an existing table, .tsv or .csv.")
    bounded.check_regular(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=SEPARATORS[path.suffix])
        try:
            header = next(lines, [])
            if missing := [name for name in wanted if name not in header]:
                raise ValueError(
                    f"{shown} has no column {missing[0]!r}; its first line has: "
                    f"{bounded.join_names(header)}. Set config.task.file_column, "
                    "label_column, sequence_column or count_column."
                )
            places = [header.index(name) for name in wanted]
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"{shown}, line {lines.line_num}: {len(cells)} columns instead of "
                        f"{len(header)}."
                    )
                yield lines.line_num, [cells[place] for place in places]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{shown} is no table in UTF-8: {error}.") from error


class LabeledRepertoires:
    """The repertoires of a split.

    A record holds a `repertoire`, its `label` (a number), `size` (sequences to which it is padded) and
    `name`.
    """

    skipped = 0
    left_out = ()

    def __init__(
        self,
        repertoires: Sequence[Repertoire],
        targets: Integer[np.ndarray, " N"],
        labels: tuple[str, ...],
        size: int,
    ):
        self.repertoires, self.targets = repertoires, targets
        self.labels, self.size = labels, size

    def __len__(self) -> int:
        return len(self.repertoires)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = self.repertoires[index]
        return {
            "repertoire": found,
            "label": int(self.targets[index]),
            "size": self.size,
            "name": found.name,
        }

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.labels, self.size)).encode())
        for found, target in zip(self.repertoires, self.targets, strict=True):
            digest.update(f"{found.name} {target} {found.sequences.shape}".encode())
            digest.update(np.ascontiguousarray(found.sequences).data)
            digest.update(np.ascontiguousarray(found.counts).data)
        return digest.hexdigest()[:16]
