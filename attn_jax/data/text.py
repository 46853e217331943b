"""A tokenized corpus: flat arrays of token ids, split by document.

Training a vocabulary is a pure function of the text, so the same text always has the same
token ids.
"""

import array
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Integer

from attn_jax.data import corpora
from attn_jax.data.tokenizing import Tokenizer
from attn_jax.data.vocabulary import find_special_ids, train_vocabulary

SPLITS = ("train", "validation")
UNKNOWN_LIMIT = 0.5  # share of [UNK] above which a vocabulary does not fit the text


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Tokenized documents, as flat arrays.

    Attributes:
        token_ids: those of all sentences, concatenated; int32, on disk also uint16.
        sentences: sentence s is token_ids[sentences[s] : sentences[s + 1]], never empty.
        documents: document d has the sentences documents[d] to documents[d + 1] - 1.
    """

    token_ids: Integer[np.ndarray, " N"]
    sentences: Int64[np.ndarray, " S"]
    documents: Int64[np.ndarray, " D"]

    @property
    def num_documents(self) -> int:
        return len(self.documents) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def tokens(self, first: int, last: int) -> Int32[np.ndarray, " L"]:
        """The token ids of the sentences [first, last)."""
        found = self.token_ids[self.sentences[first] : self.sentences[last]]
        return np.asarray(found, np.int32)

    def bounds(self, document: int) -> tuple[int, int]:
        """[first, last) of the sentences of a document."""
        return int(self.documents[document]), int(self.documents[document + 1])

    def find_documents(
        self, sentences: Integer[np.ndarray, " R"]
    ) -> Int64[np.ndarray, " R"]:
        """The document of each sentence."""
        return np.searchsorted(self.documents, sentences, side="right") - 1

    def find_end(self, first: int, last: int, target: int) -> int:
        """The end of the shortest run from `first` with `target` tokens, or `last`."""
        wanted = int(self.sentences[first]) + max(target, 1)
        ends = self.sentences[first + 1 : last + 1]
        return min(first + 1 + int(np.searchsorted(ends, wanted)), last)

    def find_runs(self, target: int, short: float = 0.0) -> Int64[np.ndarray, " R"]:
        """The first sentence of each run, and the number of sentences.

        A document is cut into runs of whole sentences, each as short as `target` tokens allow;
        its last run may have fewer.

        Args:
            short: share of the runs for which `target` is a random number from 2 to `target`,
                the same at every call.
        """
        ends = np.asarray(self.sentences[1:], np.int64)
        starts = np.asarray(self.sentences[:-1], np.int64)
        last = np.repeat(self.documents[1:], np.diff(self.documents))
        targets = np.full(len(starts), target)
        if short:
            rng = np.random.default_rng(0)
            lower = rng.integers(2, target, size=len(starts), endpoint=True)
            targets = np.where(rng.random(len(starts)) < short, lower, target)
        following = np.minimum(np.searchsorted(ends, starts + targets) + 1, last)
        runs, sentence = [0], 0
        steps = following.tolist()
        while sentence < len(steps):
            sentence = steps[sentence]
            runs.append(sentence)
        return np.array(runs, np.int64)

    def measure_runs(self, runs: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R-1"]:
        """The number of tokens of each run that `find_runs` returns."""
        return np.diff(self.sentences[runs])

    def count_tokens(self, vocab_size: int) -> Int64[np.ndarray, " V"]:
        """How often each token occurs."""
        counts = np.zeros(vocab_size, np.int64)
        # In parts, since each is copied to 64 bits.
        for start in range(0, len(self.token_ids), 2**20):
            part = self.token_ids[start : start + 2**20]
            counts += np.bincount(part, minlength=vocab_size)
        return counts

    def describe_content(self) -> Iterator[Any]:
        """Yields bytes that differ for other tokens or sentences."""
        for content in (self.token_ids, self.sentences):
            yield np.ascontiguousarray(content).data


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Both splits, with one vocabulary. One that lies on disk is pickled as its path."""

    splits: Mapping[str, Any]  # each a `Text`, or `shards.Shards`
    vocabulary: tuple[str, ...]  # line number = token id
    lower_case: bool
    left_out: tuple[str, ...] = ()  # files and folders that were not read
    folder: pathlib.Path | None = None  # that holds the arrays
    reopen: tuple[Any, ...] | None = None  # (function, arguments) that open it again

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reopen is not None:
            return self.reopen
        return Corpus, (self.splits, self.vocabulary, self.lower_case, self.left_out)


def build_corpus(
    documents: Sequence[corpora.Document],
    vocab_size: int,
    lower_case: bool,
    vocabulary: tuple[str, ...] | None = None,
) -> Corpus:
    """Splits by document, trains a vocabulary unless one is given, and tokenizes.

    Raises:
        ValueError: a split has no text, or half of its tokens are unknown.
    """
    held_out = corpora.choose_held_out([document.key for document in documents])
    parts = {
        "train": [d for d in documents if d.key not in held_out],
        "validation": [d for d in documents if d.key in held_out],
    }
    if vocabulary is None:
        vocabulary = train_vocabulary(
            [s for document in parts["train"] for s in document.sentences],
            vocab_size,
            lower_case=lower_case,
        )
    unknown = find_special_ids(vocabulary).unk
    tokenizer = Tokenizer(vocabulary, lower_case=lower_case)
    splits = {name: tokenize(part, tokenizer) for name, part in parts.items()}
    for name, text in splits.items():
        if not len(text.token_ids):
            raise ValueError(
                f"the {name} split of the corpus has no text; give more documents."
            )
        check_known(float(np.mean(text.token_ids == unknown)), f"the {name} split")
    return Corpus(splits, vocabulary, lower_case)


def check_known(share: float, text: str) -> None:
    """Raises ValueError if too large a share of a text's tokens is [UNK]."""
    if share > UNKNOWN_LIMIT:
        raise ValueError(
            f"the vocabulary does not know {share:.0%} of {text} (its tokens are [UNK]), so "
            "predicting them is trivial. Give text in the language and script of the "
            "vocabulary, or train a new one."
        )


class Builder:
    """Collects the tokens of documents; sentences and documents without any are left out."""

    def __init__(self, dtype: Any = np.int32):
        self.dtype = np.dtype(dtype)
        self.token_ids = array.array(self.dtype.char)
        self.sentences = array.array("q", [0])
        self.documents = array.array("q", [0])

    def add(self, sentences: Iterable[Sequence[int]]) -> int:
        """Adds a document, the token ids of its sentences; returns how many tokens it has."""
        before = len(self.token_ids)
        for ids in sentences:
            if ids:  # none for control characters alone
                self.token_ids.extend(ids)
                self.sentences.append(len(self.token_ids))
        if len(self.sentences) - 1 > self.documents[-1]:
            self.documents.append(len(self.sentences) - 1)
        return len(self.token_ids) - before

    def build(self) -> Text:
        """The text so far; it shares the builder's memory, which then cannot grow."""
        return Text(
            np.frombuffer(self.token_ids, self.dtype),
            np.frombuffer(self.sentences, np.int64),
            np.frombuffer(self.documents, np.int64),
        )


def tokenize(documents: Iterable[corpora.Document], tokenizer: Tokenizer) -> Text:
    builder = Builder()
    for document in documents:
        builder.add(tokenizer.encode_all(document.sentences))
    return builder.build()


def unigram_entropy(
    train: Int64[np.ndarray, " V"], held_out: Int64[np.ndarray, " V"]
) -> tuple[float, float]:
    """Returns the unigram (entropy, cross-entropy) of held-out tokens, in nats per token.

    The entropy is the lowest loss that a guess without context can reach, given the
    held-out frequencies; the cross-entropy is the loss of the training frequencies with
    add-one smoothing. A masked language model that uses context must be below both.

    Args:
        train, held_out: how often each token occurs.
    """
    p = held_out / held_out.sum()
    seen = train + 1.0
    own = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
    return own, -float(np.sum(p * np.log(seen / seen.sum())))
