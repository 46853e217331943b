"""Draws sentence pairs and token masks for a masked language model, on the host.

Source: google-research/bert, create_pretraining_data.py, rule by rule, with two
differences. The original writes rows once, for a few random seeds; here a record is a fixed
run of sentences, and its row is drawn again at every read. If the second segment comes from
another document, the rest of the run is unused in that row; the original starts its next
row with it.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Int, Int32, Int64

from attn_jax.data import shards, vocabulary
from attn_jax.data import text as text_lib

CONSTANT_GUESS = 0.9  # share of random pairs above which a warning is logged


class PairSource:
    """Runs of consecutive sentences of a document, as short as `target` tokens allow.

    The last run of a document may have fewer tokens. A record holds:
        text: the split's `Text` or `Shards`.
        document, first, last: the run is the sentences [first, last) of the document.
        number: the index of the record. With `duplicates`, run r of R is also the
            records r + R, r + 2 R, ...; only their numbers differ.
        special_ids: the special tokens of the vocabulary.
        continues: bool [V], of each piece whether it continues a word ("##").
    """

    labels = None

    def __init__(
        self, corpus: text_lib.Corpus, split: str, *, target: int, duplicates: int = 1
    ):
        if split not in corpus.splits:
            raise ValueError(
                f"{split=}: a text corpus has the splits "
                f"{' and '.join(map(repr, corpus.splits))}, held out by document; set "
                "the evaluation's split to 'validation'."
            )
        self.corpus, self.split = corpus, split
        self.target, self.duplicates = target, duplicates
        self.text = corpus.splits[split]
        self.runs = self.find_runs()
        self.special_ids = vocabulary.find_special_ids(corpus.vocabulary)
        self.continues = vocabulary.find_continuing(corpus.vocabulary)

    def find_runs(self) -> Int64[np.ndarray, " R"]:
        return self.text.find_runs(self.target)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the files and folders that were not read."""
        return self.corpus.left_out

    def __reduce__(self) -> tuple[Any, ...]:
        # Finding the runs again takes milliseconds; a cached corpus is pickled as a path.
        arguments = (self.corpus, self.split, self.target, self.duplicates)
        return _make_source, arguments

    def __len__(self) -> int:
        return self.num_runs * self.duplicates

    @property
    def num_runs(self) -> int:
        return len(self.runs) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}.")
        run = index % self.num_runs
        bounds = self.runs[run : run + 2]
        return {
            "text": self.text,
            "document": int(self.text.find_documents(bounds[:1])[0]),
            "first": int(bounds[0]),
            "last": int(bounds[1]),
            "number": int(index),
            "special_ids": self.special_ids,
            "continues": self.continues,
        }

    def fingerprint(self) -> str:
        """A digest of the tokens, the vocabulary and the runs, but of no path."""
        return self.digest()

    def digest(self, settings: str = "") -> str:
        digest = hashlib.sha256(
            repr((self.duplicates, self.corpus.vocabulary)).encode()
        )
        for content in self.text.describe_content():
            digest.update(content)
        firsts, lasts = self.runs[:-1], self.runs[1:]
        numbers = self.text.find_documents(firsts)
        digest.update(np.stack([numbers, firsts, lasts], 1).tobytes())
        digest.update(settings.encode())
        return digest.hexdigest()[:16]


def _make_source(
    corpus: text_lib.Corpus, split: str, target: int, duplicates: int
) -> PairSource:
    return PairSource(corpus, split, target=target, duplicates=duplicates)


def check_next_sentences(source: PairSource) -> None:
    """Checks that next-sentence prediction is no trivial task on this split.

    A run of one sentence has no true second segment, so its pair is always random. If few
    runs have two sentences, a warning says which accuracy the constant guess reaches.

    Raises:
        ValueError: every pair would be random, or none, as the split has one document.
    """
    remedy = (
        "set config.task.next_sentence to False and leave 'nsp' out of "
        "config.model.heads, or"
    )
    if source.text.num_documents < 2:
        raise ValueError(
            f"the split {source.split!r} has one document, so there is no sentence of "
            f"another one; {remedy} give more documents."
        )
    several = int((np.diff(source.runs) > 1).sum())
    if not several:
        text = source.text
        bounds = [text.bounds(document) for document in range(text.num_documents)]
        longest = max(last - first for first, last in bounds)
        cause = (
            "every document is one sentence; " + remedy + " put a blank line between "
            "documents only."
            if longest == 1
            else f"none has two sentences in {source.target} tokens; {remedy} raise "
            "config.task.sequence_length."
        )
        raise ValueError(
            f"next-sentence prediction is trivial on the split {source.split!r}: every "
            f"pair is a random one, since {cause}"
        )
    random = 1 - several / source.num_runs / 2
    if random > CONSTANT_GUESS:
        logging.warning(
            "%.0f %% of the pairs of split %r are random ones (few documents have two "
            "sentences in %d tokens): a constant guess reaches this next-sentence "
            "accuracy.",
            100 * random,
            source.split,
            source.target,
        )


class Pair(NamedTuple):
    """Two segments before truncation; `second` is (document, first, last) of B."""

    a: Int32[np.ndarray, " A"]
    b: Int32[np.ndarray, " B"]
    is_random: bool
    second: tuple[int, int, int]


def draw_pair(
    text: text_lib.Text | shards.Shards,
    document: int,
    first: int,
    last: int,
    target: int,
    rng: np.random.Generator,
) -> Pair:
    """Draws segments A and B from the run of sentences [first, last).

    A is a random number of the run's first sentences, at least one and not all; B is the
    rest of the run. With probability 1/2, and always if the run is one sentence, B instead
    starts at a random sentence of another document, and is as long as A and B need to have
    `target` tokens.
    """
    number = last - first
    middle = first + 1 if number == 1 else first + int(rng.integers(1, number))
    a = text.tokens(first, middle)
    if number > 1 and rng.random() >= 0.5:
        return Pair(a, text.tokens(middle, last), False, (document, middle, last))
    # One draw among the other documents; the original draws up to ten times from all.
    other = int(rng.integers(text.num_documents - 1))
    other += other >= document
    start, end = text.bounds(other)
    start = int(rng.integers(start, end))
    stop = text.find_end(start, end, target - len(a))
    return Pair(a, text.tokens(start, stop), True, (other, start, stop))


def truncate(
    a: Int32[np.ndarray, " A"],
    b: Int32[np.ndarray, " B"],
    limit: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Shortens the pair to `limit` tokens.

    Tokens are dropped one at a time from the longer segment (B if equal), at the front or
    back with equal probability.
    """
    lengths = [len(a), len(b)]
    starts = [0, 0]
    excess = max(sum(lengths) - limit, 0)
    for at_front in rng.random(excess) < 0.5:
        side = 0 if lengths[0] > lengths[1] else 1
        lengths[side] -= 1
        starts[side] += int(at_front)
    return (
        a[starts[0] : starts[0] + lengths[0]],
        b[starts[1] : starts[1] + lengths[1]],
    )


class Masked(NamedTuple):
    token_ids: Int32[np.ndarray, " L"]  # the model's input
    positions: Int[np.ndarray, " K"]  # ascending
    labels: Int32[np.ndarray, " K"]  # the original tokens at these positions


def mask_tokens(
    token_ids: Int32[np.ndarray, " L"],
    maskable: Bool[np.ndarray, " L"],
    *,
    probability: float,
    limit: int,
    mask_id: int,
    vocab_size: int,
    rng: np.random.Generator,
    continues: Bool[np.ndarray, " L"] | None = None,
) -> Masked:
    """Chooses round(L * probability) of the L tokens for prediction, and corrupts them.

    Chooses at least 1 and at most `limit`, only from `maskable` ones. 80 % of them become
    `mask_id`, 10 % stay, and 10 % become a random piece of the vocabulary, special tokens
    included.

    Args:
        continues: None, or which tokens continue a word: then whole words are chosen, and
            none if every word has more pieces than may be masked.
    """
    candidates = np.flatnonzero(maskable)
    number = min(limit, max(1, round(len(token_ids) * probability)), len(candidates))
    if continues is None:
        positions = np.sort(rng.permutation(candidates)[:number])
    else:
        positions = choose_words(candidates, continues, number, rng)
        number = len(positions)
    labels = token_ids[positions]
    fate = rng.random(number)
    anything = rng.integers(vocab_size, size=number, dtype=np.int32)
    shown = np.where(fate < 0.8, np.int32(mask_id), labels)
    shown = np.where(fate >= 0.9, anything, shown)
    seen = token_ids.copy()
    seen[positions] = shown
    return Masked(seen, positions, labels)


def choose_words(
    candidates: Int[np.ndarray, " C"],
    continues: Bool[np.ndarray, " L"],
    number: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " K"]:
    """Chooses whole words of at most `number` tokens together; returns sorted positions.

    Words are taken in random order; one that no longer fits is passed over. As in the
    original, a piece that continues the last word before a [SEP] belongs to that word.
    """
    begins = ~continues[candidates]
    begins[:1] = True
    words = np.split(candidates, np.flatnonzero(begins)[1:])
    chosen: list[int] = []
    for word in rng.permutation(len(words)):
        if len(chosen) >= number:
            break
        if len(chosen) + len(words[word]) <= number:
            chosen += words[word].tolist()
    return np.array(sorted(chosen), np.int64)
