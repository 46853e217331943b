"""Text input of BERT's pre-training: corpora, and rows of masked sentence pairs."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from attn_jax.bounds import Path, PositiveInt, Probability
from attn_jax.data import (
    mixture,
    packing,
    pairs,
    shards,
    sources,
    static_rows,
    text_cache,
)
from attn_jax.data import text as text_lib
from attn_jax.data import vocabulary as vocabulary_lib
from attn_jax.data.rows import Row, lay_out, lay_out_packed
from attn_jax.data.tokenizing import Tokenizing


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedText(Tokenizing):
    """Masked tokens and sentence pairs of text, sampled whenever a row is read.

    Attributes:
        data: "stdlib" (the documentation that comes with Python), a path, see
            `attn_jax.data.corpora.read_documents`, or a folder of `prepare-text`. A tenth of
            its documents is the split "validation". Several: their rows are mixed.
        weights: of several data in the mixture of training; None: by size.
        packed: the most sequences that share a row, each with its own [CLS], positions, pair
            and masks; None: a row is one sequence.
        max_predictions: P, the maximum number of masked tokens in a row; None: 15 % of S, or
            as many as `packed` may need. The sequences of a packed row use a smaller number up in
            their order, so that later ones may have no masked token.
        mask_probability: share of a row's tokens that are masked.
        whole_words: the pieces of a word are masked together.
        short_sequence_probability: how often a row is cut to a random length below S.
        next_sentence: rows are sentence pairs, and `nsp_loss` is a term of the loss.
            False: rows are single segments.
        duplicates: rows per span of sentences in an evaluation, each with other masks and
            pairs (`dupe_factor` of the original). Training draws new ones every epoch.
        static_seed: None, or the seed with which all rows are drawn once, before the first
            step, as the original does, with `duplicates` in training too; see
            `attn_jax.data.static_rows`.
        corpus_version: version of the rules for reading files, see
            `attn_jax.data.corpora.read_documents`.

    Source: Devlin et al. 2019, sec. 3.1 and A.1; google-research/bert,
    create_pretraining_data.py.
    """

    data: Path | tuple[Path, ...]
    weights: tuple[float, ...] | None = None
    packed: PositiveInt | None = None
    max_predictions: int | None = None
    mask_probability: Probability = 0.15
    whole_words: bool = False
    short_sequence_probability: Probability = 0.1
    next_sentence: bool = True
    duplicates: int = 1
    static_seed: int | None = None
    corpus_version: int = 3

    def __post_init__(self) -> None:
        if self.text_length < 2:
            raise ValueError(
                f"sequence_length={self.sequence_length} leaves {self.text_length} "
                "tokens for text besides [CLS] and [SEP]; set "
                "config.task.sequence_length to 8 or more."
            )
        for name in ("mask_probability", "short_sequence_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"config.task.{name}={getattr(self, name)} is a probability and must "
                    "be from 0 to 1."
                )
        if self.predictions_per_row < 1 or self.duplicates < 1:
            raise ValueError(
                f"max_predictions={self.predictions_per_row} and "
                f"duplicates={self.duplicates} must be 1 or more."
            )
        if self.static_seed is not None and (self.packed or not self.next_sentence):
            raise ValueError(
                f"static_seed={self.static_seed} draws rows as the original does, each of "
                "them a sentence pair; set config.task.next_sentence to True and "
                "config.task.packed to None, or config.task.static_seed to None."
            )
        if self.weights is not None:
            mixture.check_weights(self.weights, len(self.corpora))
        if not self.corpora:
            raise ValueError("config.task.data is empty; name one corpus or more.")
        if self.corpus_version not in (1, 2, 3):
            raise ValueError(
                f"corpus_version={self.corpus_version} must be 3, or 1 or 2 for a run of an "
                "earlier release."
            )

    @property
    def corpora(self) -> tuple[str, ...]:
        """The names of all data."""
        return (self.data,) if isinstance(self.data, str) else tuple(self.data)

    @property
    def text_length(self) -> int:
        """Maximum number of text tokens in a sequence: S without its special tokens."""
        return self.sequence_length - self.num_specials

    @property
    def num_specials(self) -> int:
        """[CLS] and one or two [SEP]."""
        return 3 if self.next_sentence else 2

    @property
    def predictions_per_row(self) -> int:
        if self.max_predictions is not None:
            return self.max_predictions
        if self.packed is not None:
            # A sequence of L tokens has at most 1 + mask_probability * L masked ones.
            return self.packed + int(self.mask_probability * self.sequence_length)
        return max(1, round(0.15 * self.sequence_length))

    def bind(self, assets: Mapping[str, str]) -> Any:
        """As `Tokenizing.bind`; warns if "stdlib" is another Python's than that of the run."""
        bound = super().bind(assets)
        settings = vocabulary_lib.parse_settings(assets.get("text.json", "{}"))
        python = settings.get("python") or platform.python_version()
        if "stdlib" in self.corpora and python != platform.python_version():
            logging.warning(
                "the text is the documentation of Python %s, but the run read that of "
                "%s: its validation split may differ.",
                platform.python_version(),
                python,
            )
        return bound

    def source(self, split: str) -> sources.Source:
        if self.vocabulary is not None and self._pieces is None:
            assets = vocabulary_lib.read_vocabulary(self.vocabulary)
            if assets is None:
                raise ValueError(
                    f"no vocab.txt at vocabulary={self.vocabulary!r}. Set "
                    "config.task.vocabulary to a vocab.txt, a Hugging Face folder or a "
                    "workdir, or to None to train one."
                )
            return self.bind(assets).source(split)
        pieces = self._pieces
        if len(self.corpora) > 1 and pieces is None:
            pieces = text_cache.find_vocabulary(
                self.corpora, self.vocab_size, self.lower_case, self.corpus_version
            )
        opened = [
            self.open_source(self.open_corpus(data, pieces), split, data)
            for data in self.corpora
        ]
        if len(opened) == 1:
            return opened[0]
        return mixture.Mixture(opened, self.weights if split == "train" else None)

    def open_source(self, corpus: text_lib.Corpus, split: str, data: str) -> Any:
        """The rows of one corpus."""
        if self.static_seed is not None:
            return self.draw_static_rows(corpus, split)
        target = self.text_length
        duplicates = 1 if split == "train" else self.duplicates
        if self.packed is None:
            source = pairs.PairSource(
                corpus, split, target=target, duplicates=duplicates
            )
        else:
            source = packing.PackedSource(
                corpus,
                split,
                target=target,
                duplicates=duplicates,
                specials=self.num_specials,
                size=self.sequence_length,
                most=self.packed,
                short=self.short_sequence_probability,
            )
        if self.next_sentence:
            try:
                pairs.check_next_sentences(source)
            except ValueError as error:
                raise ValueError(f"{data!r}: {error}") from error
        return source

    def open_corpus(self, data: str, pieces: tuple[str, ...] | None) -> text_lib.Corpus:
        """Opens a corpus of `prepare-text`, or tokenizes other text.

        Raises:
            ValueError: the corpus was prepared with another vocabulary than that of the task.
        """
        folder = shards.find_prepared(data)
        if folder is None:
            return text_cache.load_corpus(
                data,
                self.vocab_size,
                lower_case=self.lower_case,
                vocabulary=pieces,
                version=self.corpus_version,
            )
        try:
            bound = self.bind(shards.read_assets(folder))
        except ValueError as error:
            raise ValueError(f"config.task.data={data!r}: {error}") from error
        if self._pieces is not None and bound.lower_case != self.lower_case:
            raise ValueError(
                f"config.task.data={data!r} was prepared with lower_case="
                f"{bound.lower_case}, but the vocabulary of the run is used with "
                f"{self.lower_case}; prepare the text with the run's vocabulary."
            )
        return shards.open_corpus(folder)

    def draw_static_rows(
        self, corpus: text_lib.Corpus, split: str
    ) -> static_rows.StaticSource:
        rules = static_rows.Rules(
            sequence_length=self.sequence_length,
            max_predictions=self.predictions_per_row,
            mask_probability=self.mask_probability,
            short_sequence_probability=self.short_sequence_probability,
            duplicates=self.duplicates,
            whole_words=self.whole_words,
        )
        assert self.static_seed is not None, "as `source` asks"
        return static_rows.StaticSource(corpus, split, rules, self.static_seed)

    def invent_record(self) -> dict[str, Any]:
        """An empty row with one masked token, to plan a run without its data."""
        special = vocabulary_lib.find_special_ids(vocabulary_lib.SPECIALS)
        tokens = np.array([special.cls, special.mask, special.sep], np.int32)
        masked = np.array([1], np.int32)
        row = Row(tokens, masked, masked, len(tokens), False)
        return {"static": row, "special_ids": special, "number": 0}

    def assets(self, source: Any) -> dict[str, str]:
        """The vocabulary, and entropies to compare the loss with.

        Independent of the path of the data.
        """
        corpora = [part.corpus for part in getattr(source, "sources", [source])]
        texts = {
            split: [corpus.splits[split] for corpus in corpora]
            for split in text_lib.SPLITS
        }
        counts = [
            np.sum([text.count_tokens(self.vocab_size) for text in parts], axis=0)
            for parts in texts.values()
        ]
        own, cross = text_lib.unigram_entropy(*counts)
        is_stdlib = "stdlib" in self.corpora
        known = {
            "python": platform.python_version() if is_stdlib else None,
            "lower_case": corpora[0].lower_case,
            "sequence_length": self.sequence_length,
            "tokens": {
                split: sum(text.num_tokens for text in parts)
                for split, parts in texts.items()
            },
            # Nats per token of a guess by frequency alone: on its own split, and held out.
            "unigram_entropy": round(own, 4),
            "unigram_cross_entropy": round(cross, 4),
        }
        pieces = "".join(f"{piece}\n" for piece in corpora[0].vocabulary)
        return {"vocab.txt": pieces, "text.json": json.dumps(known, indent=1)}

    def example(
        self,
        record: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        rng: np.random.Generator | None,
    ) -> dict[str, Any]:
        """One row: [CLS] A [SEP] B [SEP] or [CLS] A [SEP], padded to S; or several, `packed`.

        If `rng` is None (evaluation), a sequence is a function of the record's number.

        Args:
            record: a list of them if the source plans its rows.

        Returns: int32 `token_ids`, `segment_ids` [S] (0 for A, its [SEP] and padding),
        bool `mask` [S]; int32 `mlm_positions`, `mlm_labels` and bool `mlm_valid` [P],
        positions ascending, then zeros; int32 `is_random_next` []. With `packed` K also int32
        `sequence_ids` (from 1; 0 is padding), `position_ids` [S], `cls_positions`,
        `is_random_next` [K] and bool `cls_mask` [K].
        """
        records = [record] if isinstance(record, Mapping) else record
        rows: list[Row] = []
        left = self.predictions_per_row
        for one in records:
            rows.append(self.draw_row(one, rng, left))
            left -= len(rows[-1].positions)
        shape = {
            "size": self.sequence_length,
            "predictions": self.predictions_per_row,
            "pad": records[0]["special_ids"].pad,
        }
        if self.packed is None:
            [row] = rows
            return lay_out(row, **shape)
        return lay_out_packed(rows, **shape, most=self.packed)

    def draw_row(
        self, record: Mapping[str, Any], rng: np.random.Generator | None, limit: int
    ) -> Row:
        """Draws a sequence, at most `limit` of whose tokens are masked."""
        if "static" in record:
            return record["static"]
        if rng is None:
            rng = np.random.default_rng(record["number"])
        special = record["special_ids"]
        a, b, is_random = self.draw_segments(record, rng)
        cls, sep = [special.cls], [special.sep]
        parts: list[Any] = [cls, a, sep, *([b, sep] if self.next_sentence else [])]
        tokens = np.concatenate(parts).astype(np.int32)
        maskable = np.ones(len(tokens), bool)
        maskable[[0, 1 + len(a), len(tokens) - 1]] = False
        masked = pairs.mask_tokens(
            tokens,
            maskable,
            probability=self.mask_probability,
            limit=limit,
            mask_id=special.mask,
            vocab_size=self.vocab_size,
            rng=rng,
            continues=record["continues"][tokens] if self.whole_words else None,
        )
        return Row(*masked, 2 + len(a), is_random)

    def draw_segments(
        self, record: Mapping[str, Any], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """(A, B, whether B is random), at most `text_length` tokens together."""
        text, first, last = record["text"], record["first"], record["last"]
        limit = target = record.get("target", self.text_length)
        is_free = (
            "target" not in record
        )  # else its length was chosen when it was packed
        if is_free and rng.random() < self.short_sequence_probability:
            target = int(rng.integers(2, target, endpoint=True))
            last = text.find_end(first, last, target)
        if self.next_sentence:
            a, b, is_random, _ = pairs.draw_pair(
                text, record["document"], first, last, target, rng
            )
        else:
            a, is_random = text.tokens(first, last), False
            b = a[:0]
        return *pairs.truncate(a, b, limit, rng), is_random
