"""Text input of a fine-tuning task: its vocabulary, and rows [CLS] A [SEP] B [SEP].

A text task inherits `Tokenizing` and adds its objective.
"""

import dataclasses
import functools
import json
import pathlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from absl import logging

from attn_jax.bounds import Width
from attn_jax.data import vocabulary as vocabulary_lib


class Tokenizer:
    """Text -> ids of word pieces; can be pickled."""

    def __init__(self, pieces: Sequence[str], *, lower_case: bool):
        self.pieces, self.lower_case = tuple(pieces), lower_case
        self.special = vocabulary_lib.find_special_ids(self.pieces)
        self._numbers = {piece: number for number, piece in enumerate(self.pieces)}
        self._tokenizer = vocabulary_lib.make_tokenizer(
            self.pieces, lower_case=lower_case
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        return self._encode(text).ids

    def encode_all(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Yields the ids of each text, without special tokens; the fastest way."""
        adapted = [vocabulary_lib.adapt_text(text) for text in texts]
        for found in self._tokenizer.encode_batch_fast(
            adapted, add_special_tokens=False
        ):
            yield found.ids

    def split(self, text: str) -> list[str]:
        """The word pieces of a text; unknown words are [UNK]."""
        return self._encode(text).tokens

    def _encode(self, text: str) -> tokenizers.Encoding:
        text = vocabulary_lib.adapt_text(text)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def number(self, pieces: Iterable[str]) -> list[int]:
        """The ids of word pieces."""
        return [self._numbers[piece] for piece in pieces]


def refuse_file(given: Any) -> None:
    """Raises ValueError if a text is the name of a file: its content is what was meant."""
    if (
        not isinstance(given, str)
        or len(given) > 255
        or not (path := pathlib.Path(given)).suffix
    ):
        return
    if path.is_file():
        raise ValueError(
            f"{given} is a file, but this run predicts for texts; --file={shlex.quote(given)} "
            "reads a text from each line of a file."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizing:
    """The vocabulary and the length of a text task's rows.

    Attributes:
        vocab_size: number of word pieces, in the vocabulary and in the model.
        sequence_length: S, of every row, with [CLS] and [SEP].
        vocabulary: a vocab.txt, or a checkpoint's folder or workdir, whose `lower_case` is then
            used too. None: that of the run or of the checkpoint in `init_from`, see `bind`;
            otherwise it is trained on the train split.
        lower_case: lower-case and strip accents ("uncased").
    """

    vocab_size: Width
    sequence_length: Width
    lower_case: bool = True
    vocabulary: str | None = None
    # The word pieces from `bind`; not a key of a config.
    _pieces: tuple[str, ...] | None = dataclasses.field(
        default=None, init=False, repr=False
    )

    def bind(self, assets: Mapping[str, str]) -> Any:
        """This task with the vocabulary and `lower_case` of a run or checkpoint.

        Args:
            assets: {file name: text}, as in a run's assets/ or as returned by
                `attn_jax.data.vocabulary.read_vocabulary`. Without a "vocab.txt" the task
                is returned unchanged.

        Raises:
            ValueError: the vocabulary is damaged, its size is not `vocab_size`, or the task
                already has another one.
        """
        if "vocab.txt" not in assets:
            return self
        pieces = vocabulary_lib.parse_vocabulary(assets["vocab.txt"])
        if len(pieces) != self.vocab_size:
            raise ValueError(
                f"the vocabulary has {len(pieces):,} word pieces, but "
                f"config.task.vocab_size={self.vocab_size}; set config.task.vocab_size "
                f"and config.model.vocab_size to {len(pieces)}."
            )
        own = self.vocabulary and vocabulary_lib.read_vocabulary(self.vocabulary)
        named = vocabulary_lib.parse_vocabulary(own["vocab.txt"]) if own else None
        for other in {self._pieces, named} - {None, pieces}:
            raise ValueError(
                "two different vocabularies for one task "
                f"({describe_difference(other or (), pieces)}); start from a single text "
                "checkpoint, and leave config.task.vocabulary at None."
            )
        settings = vocabulary_lib.parse_settings(assets.get("text.json", "{}"))
        lower_case = settings.get("lower_case", self.lower_case)
        if not isinstance(lower_case, bool):
            raise ValueError(f"{lower_case=} in text.json must be true or false.")
        if lower_case != self.lower_case:
            logging.warning(
                "the text is tokenized with lower_case=%s, as the vocabulary was "
                "trained, instead of config.task.lower_case=%s.",
                lower_case,
                self.lower_case,
            )
        bound = dataclasses.replace(self, lower_case=lower_case)
        object.__setattr__(bound, "_pieces", pieces)
        return bound

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a task that is bound.

        Raises:
            ValueError: it is not.
        """
        if self._pieces is None:
            raise ValueError(
                "the task has no vocabulary yet; `bind` it to a run's assets first."
            )
        return Tokenizer(self._pieces, lower_case=self.lower_case)

    def open_tokenizer(self, read_texts: Callable[[], Iterable[str]]) -> Tokenizer:
        """The tokenizer of this task's data; a vocabulary is trained only if there is none.

        Args:
            read_texts: gives the texts of the train split.

        Raises:
            ValueError: there is no vocabulary at `vocabulary`; the texts are too few to train
                `vocab_size` word pieces.
        """
        if self._pieces is not None:
            return self.tokenizer
        if self.vocabulary is None:
            pieces = vocabulary_lib.train_vocabulary(
                read_texts(), self.vocab_size, lower_case=self.lower_case
            )
            return Tokenizer(pieces, lower_case=self.lower_case)
        assets = vocabulary_lib.read_vocabulary(self.vocabulary)
        if assets is None:
            raise ValueError(
                f"no vocab.txt at vocabulary={self.vocabulary!r}. Set "
                "config.task.vocabulary to a vocab.txt, a checkpoint's folder or a "
                "workdir, or to None to train one."
            )
        return self.bind(assets).tokenizer

    def describe_text(self, tokenizer: Tokenizer, **known: Any) -> dict[str, str]:
        """The assets of a run: its vocabulary, and what else predictions need."""
        settings = {
            "lower_case": tokenizer.lower_case,
            "sequence_length": self.sequence_length,
            **known,
        }
        return {
            "vocab.txt": "".join(f"{piece}\n" for piece in tokenizer.pieces),
            "text.json": json.dumps(settings, indent=1, ensure_ascii=False),
        }

    def make_row(
        self, tokenizer: Tokenizer, a: Sequence[int], b: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """[CLS] A [SEP] or [CLS] A [SEP] B [SEP], cut and padded to S.

        Returns: int32 `token_ids`, `segment_ids` [S] (1 for B and its [SEP]), bool `mask` [S].
        """
        special, size = tokenizer.special, self.sequence_length
        a, b = truncate_pair(a, b, size - (2 if b is None else 3))
        ids = [special.cls, *a, special.sep]
        first = len(ids)
        if b is not None:
            ids += [*b, special.sep]
        places = np.arange(size)
        token_ids = np.full(size, special.pad, np.int32)
        token_ids[: len(ids)] = ids
        return {
            "token_ids": token_ids,
            "segment_ids": ((places >= first) & (places < len(ids))).astype(np.int32),
            "mask": places < len(ids),
        }

    def count_cut(self, *encoded: Sequence[int]) -> dict[str, int]:
        """{"pieces_cut": how many pieces of a text or pair have no place in a row}, if any."""
        room = self.sequence_length - 1 - len(encoded)
        cut = sum(map(len, encoded)) - room
        return {"pieces_cut": cut} if cut > 0 else {}

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {name: batch[name] for name in ("token_ids", "segment_ids", "mask")}


def truncate_pair(
    a: Sequence[int], b: Sequence[int] | None, limit: int
) -> tuple[Sequence[int], Sequence[int] | None]:
    """Cuts a text or a pair to `limit` tokens, from the end of the longer one (A if longer).

    Source: google-research/bert run_classifier.py, `_truncate_seq_pair`.
    """
    if b is None:
        return a[:limit], None
    lengths = [len(a), len(b)]
    while sum(lengths) > limit:
        lengths[0 if lengths[0] > lengths[1] else 1] -= 1
    return a[: lengths[0]], b[: lengths[1]]


def describe_difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Where two vocabularies first differ."""
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return f"token {number} is {a!r} in one and {b!r} in the other"
    return f"one has {len(ours):,} word pieces, the other {len(theirs):,}"
