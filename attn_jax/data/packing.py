"""Packs sequences of different lengths into rows of one length, so that little is padding.

Which lengths share a row depends on how many sequences there are of each length, and on nothing
else; which sequences these are is drawn anew in every epoch.

Source: Krell et al. 2021 (arXiv:2107.02027), longest-pack-first histogram packing.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from attn_jax.data import pairs
from attn_jax.data import text as text_lib


class PackedSource(pairs.PairSource):
    """Runs of sentences as in `PairSource`, several of which share a row.

    The length of each must be known before its pair is drawn. So which runs are short is
    chosen once, and a record also holds `target`, the number of text tokens that its sequence may
    have.

    Args:
        specials: number of special tokens in a sequence.
        size: tokens of a row.
        most: sequences in a row.
        short: share of the runs that are cut to a random length.
    """

    def __init__(
        self,
        corpus: text_lib.Corpus,
        split: str,
        *,
        target: int,
        duplicates: int,
        specials: int,
        size: int,
        most: int,
        short: float,
    ):
        self.short = short
        super().__init__(corpus, split, target=target, duplicates=duplicates)
        self.specials, self.size, self.most = specials, size, most
        # Each segment needs a token, beside [CLS] and its [SEP].
        lengths = self.text.measure_runs(self.runs)
        self.targets = np.clip(lengths, specials - 1, target)
        lengths = np.tile(self.targets + specials, duplicates)
        self.packing = pack(lengths, size, most)

    def find_runs(self) -> Int64[np.ndarray, " R"]:
        return self.text.find_runs(self.target, self.short)

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("target", "duplicates", "specials", "size", "most", "short")
        options = {name: getattr(self, name) for name in names}
        return functools.partial(PackedSource, **options), (self.corpus, self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        target = int(self.targets[index % self.num_runs])
        return super().__getitem__(index) | {"target": target}

    @property
    def rows_per_epoch(self) -> int:
        return len(self.packing.starts) - 1

    def rows(self, seed: int, epoch: int) -> "Rows":
        return draw_rows(self.packing, np.random.default_rng([seed, epoch]))

    def fingerprint(self) -> str:
        """As that of `PairSource`; also of the lengths and of how they are packed."""
        settings = (self.size, self.most, self.specials, self.target, self.short)
        return self.digest(repr(settings))


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """Row r is made of places `starts[r]` to `starts[r + 1]`.

    `places` lists the places, and `records` the records, in the order of their lengths, and so
    `lengths` of both: any record of a length may stand at any place of that length.
    """

    starts: Int64[np.ndarray, " T"]
    places: Int64[np.ndarray, " N"]
    records: Int64[np.ndarray, " N"]
    lengths: Int64[np.ndarray, " N"]

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())


class Rows(Sequence):
    """The rows of an epoch: tuples of record numbers."""

    def __init__(self, starts: np.ndarray, records: np.ndarray, order: np.ndarray):
        self.starts, self.records, self.order = starts, records, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Any) -> Any:
        row = int(self.order[index])
        return tuple(self.records[self.starts[row] : self.starts[row + 1]].tolist())


def pack(lengths: Int[np.ndarray, " N"], size: int, most: int) -> Packing:
    """Plans rows of at most `size` tokens and `most` sequences.

    From the longest to the shortest, a sequence goes to the row with the least space that
    suffices, or begins a row.
    """
    counts = np.bincount(lengths)
    # {space that is left: [(number of rows, their lengths)]}
    rows: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    finished: list[tuple[int, tuple[int, ...]]] = []

    def put(number: int, row: tuple[int, ...]) -> None:
        space = size - sum(row)
        if len(row) == most or not space:
            finished.append((number, row))
        else:
            rows.setdefault(space, []).append((number, row))

    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            spaces = [space for space in rows if space >= length and rows[space]]
            if spaces:
                number, row = rows[min(spaces)].pop()
                taken = min(left, number)
                if number > taken:
                    put(number - taken, row)
            else:  # as many rows as these sequences need among themselves
                taken, row = -(-left // min(size // length, most)), ()
            put(taken, (*row, length))
            left -= taken
    for remaining in rows.values():
        finished += remaining
    sizes = np.repeat([len(row) for _, row in finished], [n for n, _ in finished])
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    repeated = [np.tile(np.array(row, np.int64), n) for n, row in finished]
    places = np.concatenate([np.zeros(0, np.int64), *repeated])
    order = np.argsort(lengths, kind="stable")
    return Packing(
        starts,
        np.argsort(places, kind="stable"),
        order,
        lengths[order].astype(np.int64),
    )


def draw_rows(packing: Packing, rng: np.random.Generator) -> Rows:
    """Puts the records of each length to its places in random order, and shuffles the rows."""
    shuffled = np.lexsort((rng.random(len(packing.records)), packing.lengths))
    records = np.empty(len(packing.records), np.int64)
    records[packing.places] = packing.records[shuffled]
    order = rng.permutation(len(packing.starts) - 1)
    return Rows(packing.starts, records, order)
