"""Rows of BERT's pre-training drawn once, with the random numbers of the original.

Equal to create_pretraining_data.py of google-research/bert bit for bit: documents are
shuffled, rows drawn `duplicates` times over, and shuffled. All rows are held in memory.
"""

import dataclasses
import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from attn_jax.data import text as text_lib
from attn_jax.data import vocabulary
from attn_jax.data.rows import Row

Tokens = Sequence[int]
Sentences = Sequence[Tokens]


@dataclasses.dataclass(frozen=True)
class Rules:
    """How rows are drawn; the names and meanings are those of `MaskedLM`."""

    sequence_length: int
    max_predictions: int
    mask_probability: float
    short_sequence_probability: float
    duplicates: int
    whole_words: bool


class StaticSource:
    """The rows of one split, drawn when the first one is read.

    A record holds `static`, a `Row`, `number`, its index, and `special_ids`.
    """

    labels = None

    def __init__(self, corpus: text_lib.Corpus, split: str, rules: Rules, seed: int):
        if split not in corpus.splits:
            raise ValueError(
                f"{split=}: a text corpus has the splits "
                f"{' and '.join(map(repr, corpus.splits))}."
            )
        self.corpus, self.split, self.rules, self.seed = corpus, split, rules, seed
        self.special_ids = vocabulary.find_special_ids(corpus.vocabulary)

    def __reduce__(self) -> tuple[Any, ...]:
        return StaticSource, (self.corpus, self.split, self.rules, self.seed)

    @functools.cached_property
    def rows(self) -> list[Row]:
        text = self.corpus.splits[self.split]
        documents = [
            [text.tokens(s, s + 1).tolist() for s in range(*text.bounds(number))]
            for number in range(text.num_documents)
        ]
        return draw_rows(
            documents, self.corpus.vocabulary, self.rules, random.Random(self.seed)
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the files and folders that were not read."""
        return self.corpus.left_out

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "static": self.rows[index],
            "number": int(index),
            "special_ids": self.special_ids,
        }

    def fingerprint(self) -> str:
        """A digest of the rows, but of no path."""
        digest = hashlib.sha256()
        for row in self.rows:
            for array in row[:3]:
                digest.update(array.tobytes())
            digest.update(repr((row.second, row.is_random_next)).encode())
        return digest.hexdigest()[:16]


def draw_rows(
    documents: Sequence[Sentences],
    pieces: Sequence[str],
    rules: Rules,
    rng: random.Random,
) -> list[Row]:
    """Draws the rows of documents of sentences of token ids, in the order of the original."""
    documents = list(documents)
    rng.shuffle(documents)
    continues = vocabulary.find_continuing(pieces).tolist()
    special = vocabulary.find_special_ids(pieces)
    rows = []
    for _ in range(rules.duplicates):
        for number in range(len(documents)):
            for a, b, is_random in draw_pairs(documents, number, rules, rng):
                tokens = [special.cls, *a, special.sep, *b, special.sep]
                masked = mask_row(tokens, special, continues, rules, rng)
                rows.append(Row(*masked, 2 + len(a), is_random))
    rng.shuffle(rows)
    return rows


def draw_pairs(
    documents: Sequence[Sentences], number: int, rules: Rules, rng: random.Random
) -> Iterator[tuple[list[int], list[int], bool]]:
    """Yields (A, B, whether B is random) of a document; between two, the caller draws masks.

    The sentences that a random B replaces begin the next pair.
    """
    limit = target = rules.sequence_length - 3
    if rng.random() < rules.short_sequence_probability:
        target = rng.randint(2, limit)
    document = documents[number]
    chunk: list[Tokens] = []
    i = 0
    while i < len(document):
        chunk.append(document[i])
        if i == len(document) - 1 or sum(map(len, chunk)) >= target:
            a_end = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
            a = [token for sentence in chunk[:a_end] for token in sentence]
            is_random = len(chunk) == 1 or rng.random() < 0.5
            if is_random:
                b = draw_other(documents, number, target - len(a), rng)
                i -= len(chunk) - a_end
            else:
                b = [token for sentence in chunk[a_end:] for token in sentence]
            truncate(a, b, limit, rng)
            yield a, b, is_random
            chunk = []
        i += 1


def draw_other(
    documents: Sequence[Sentences], number: int, target: int, rng: random.Random
) -> list[int]:
    """Draws sentences of another document until they have `target` tokens.

    Of ten draws that all hit the same document, the last one is taken.
    """
    for _ in range(10):
        other = rng.randint(0, len(documents) - 1)
        if other != number:
            break
    b: list[int] = []
    for sentence in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
        b += sentence
        if len(b) >= target:
            break
    return b


def truncate(a: list[int], b: list[int], limit: int, rng: random.Random) -> None:
    """Drops tokens of the longer one (B if equal), at the front or back, in place."""
    while len(a) + len(b) > limit:
        longer = a if len(a) > len(b) else b
        del longer[0 if rng.random() < 0.5 else -1]


def mask_row(
    tokens: list[int],
    special: vocabulary.SpecialIds,
    continues: Sequence[bool],
    rules: Rules,
    rng: random.Random,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks tokens; returns (token ids, positions, labels), int32, positions ascending."""
    words: list[list[int]] = []
    for position, token in enumerate(tokens):
        if token in (special.cls, special.sep):
            continue
        if rules.whole_words and words and continues[token]:
            words[-1].append(position)
        else:
            words.append([position])
    rng.shuffle(words)
    wanted = max(1, round(len(tokens) * rules.mask_probability))
    wanted = min(rules.max_predictions, wanted)
    shown = list(tokens)
    chosen: list[int] = []
    for word in words:
        if len(chosen) >= wanted:
            break
        if len(chosen) + len(word) > wanted:
            continue
        for position in word:
            if rng.random() < 0.8:
                shown[position] = special.mask
            elif rng.random() >= 0.5:
                shown[position] = rng.randint(0, len(continues) - 1)
            chosen.append(position)
    chosen.sort()
    labels = [tokens[position] for position in chosen]
    return tuple(np.array(part, np.int32) for part in (shown, chosen, labels))  # type: ignore[return-value]
