"""BERT's pre-training: masked language modeling and next-sentence prediction."""

import dataclasses
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int, Int32

from attn_jax import metrics
from attn_jax.bounds import Path, Probability
from attn_jax.data import pairs, shards, sources, static_rows, text_cache, tokenizing
from attn_jax.data import text as text_lib
from attn_jax.data import vocabulary as vocabulary_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(tokenizing.Tokenizing):
    """Masked tokens and sentence pairs of a text corpus, sampled whenever a row is read.

    Attributes:
        data: "stdlib" (the documentation that comes with Python), a path, see
            `attn_jax.data.corpora.read_documents`, or a folder of `prepare-text`. A tenth of
            its documents is the split "validation".
        max_predictions: P, the maximum number of masked tokens in a row; None: 15 % of S.
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
    create_pretraining_data.py and run_pretraining.py.
    """

    data: Path
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
        if self.static_seed is not None and not self.next_sentence:
            raise ValueError(
                f"static_seed={self.static_seed} draws rows as the original does, which "
                "are always sentence pairs; set config.task.next_sentence to True, or "
                "config.task.static_seed to None."
            )
        if self.corpus_version not in (1, 2, 3):
            raise ValueError(
                f"corpus_version={self.corpus_version} must be 3, or 1 or 2 for a run of an "
                "earlier release."
            )

    @property
    def coefficients(self) -> dict[str, float]:
        terms = ("mlm_loss", "nsp_loss") if self.next_sentence else ("mlm_loss",)
        return dict.fromkeys(terms, 1.0)

    @property
    def text_length(self) -> int:
        """Maximum number of text tokens in a row: S without [CLS] and one or two [SEP]."""
        return self.sequence_length - (3 if self.next_sentence else 2)

    @property
    def predictions_per_row(self) -> int:
        if self.max_predictions is None:
            return max(1, round(0.15 * self.sequence_length))
        return self.max_predictions

    def bind(self, assets: Mapping[str, str]) -> "MaskedLM":
        """As `Tokenizing.bind`; warns if "stdlib" is another Python's than that of the run."""
        bound = super().bind(assets)
        settings = vocabulary_lib.parse_settings(assets.get("text.json", "{}"))
        python = settings.get("python") or platform.python_version()
        if self.data == "stdlib" and python != platform.python_version():
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
        corpus = self.open_corpus()
        if self.static_seed is not None:
            return self.draw_static_rows(corpus, split)
        duplicates = 1 if split == "train" else self.duplicates
        source = pairs.PairSource(
            corpus, split, target=self.text_length, duplicates=duplicates
        )
        if self.next_sentence:
            try:
                pairs.check_next_sentences(source)
            except ValueError as error:
                raise ValueError(f"{self.data!r}: {error}") from error
        return source

    def open_corpus(self) -> text_lib.Corpus:
        """Opens a corpus of `prepare-text`, or tokenizes other text.

        Raises:
            ValueError: the corpus was prepared with another vocabulary than that of the task.
        """
        folder = shards.find_prepared(self.data)
        if folder is None:
            return text_cache.load_corpus(
                self.data,
                self.vocab_size,
                lower_case=self.lower_case,
                vocabulary=self._pieces,
                version=self.corpus_version,
            )
        try:
            bound = self.bind(shards.read_assets(folder))
        except ValueError as error:
            raise ValueError(f"config.task.data={self.data!r}: {error}") from error
        if self._pieces is not None and bound.lower_case != self.lower_case:
            raise ValueError(
                f"config.task.data={self.data!r} was prepared with lower_case="
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

    def assets(
        self, source: pairs.PairSource | static_rows.StaticSource
    ) -> dict[str, str]:
        """The vocabulary, and entropies to compare the loss with.

        Independent of the path of the data.
        """
        splits = source.corpus.splits
        counts = [text.count_tokens(self.vocab_size) for text in splits.values()]
        own, cross = text_lib.unigram_entropy(*counts)
        known = {
            "python": platform.python_version() if self.data == "stdlib" else None,
            "lower_case": source.corpus.lower_case,
            "sequence_length": self.sequence_length,
            "tokens": {name: text.num_tokens for name, text in splits.items()},
            # Nats per token of a guess by frequency alone: on its own split, and held out.
            "unigram_entropy": round(own, 4),
            "unigram_cross_entropy": round(cross, 4),
        }
        pieces = "".join(f"{piece}\n" for piece in source.corpus.vocabulary)
        return {"vocab.txt": pieces, "text.json": json.dumps(known, indent=1)}

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """One row: [CLS] A [SEP] B [SEP] or [CLS] A [SEP], padded to S.

        If `rng` is None (evaluation), the row is a function of the record's number.

        Returns: int32 `token_ids`, `segment_ids` [S] (0 for A, its [SEP] and padding),
        bool `mask` [S]; int32 `mlm_positions`, `mlm_labels` and bool `mlm_valid` [P],
        positions ascending, then zeros; int32 `is_random_next` [].
        """
        special = record["special_ids"]
        if "static" in record:
            return self.make_arrays(special, *record["static"])
        if rng is None:
            rng = np.random.default_rng(record["number"])
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
            limit=self.predictions_per_row,
            mask_id=special.mask,
            vocab_size=self.vocab_size,
            rng=rng,
            continues=record["continues"][tokens] if self.whole_words else None,
        )
        return self.make_arrays(special, *masked, 2 + len(a), is_random)

    def make_arrays(
        self,
        special: vocabulary_lib.SpecialIds,
        tokens: Int32[np.ndarray, " L"],
        positions: Int[np.ndarray, " K"],
        labels: Int[np.ndarray, " K"],
        second: int,
        is_random: bool,
    ) -> dict[str, Any]:
        """Pads a row, whose second segment begins at `second`, to the arrays of `example`."""
        size, length, chosen = self.sequence_length, len(tokens), len(positions)
        places = np.arange(size)
        token_ids = np.full(size, special.pad, np.int32)
        token_ids[:length] = tokens
        mlm_positions = np.zeros(self.predictions_per_row, np.int32)
        mlm_labels = np.zeros(self.predictions_per_row, np.int32)
        mlm_positions[:chosen], mlm_labels[:chosen] = positions, labels
        return {
            "token_ids": token_ids,
            "segment_ids": ((places >= second) & (places < length)).astype(np.int32),
            "mask": places < length,
            "mlm_positions": mlm_positions,
            "mlm_labels": mlm_labels,
            "mlm_valid": np.arange(self.predictions_per_row) < chosen,
            "is_random_next": np.int32(is_random),
        }

    def draw_segments(
        self, record: Mapping[str, Any], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """(A, B, whether B is random), at most `text_length` tokens together."""
        text, first, last = record["text"], record["first"], record["last"]
        target = self.text_length
        if rng.random() < self.short_sequence_probability:
            target = int(rng.integers(2, target, endpoint=True))
            last = text.find_end(first, last, target)
        if self.next_sentence:
            a, b, is_random, _ = pairs.draw_pair(
                text, record["document"], first, last, target, rng
            )
        else:
            a, is_random = text.tokens(first, last), False
            b = a[:0]
        return *pairs.truncate(a, b, self.text_length, rng), is_random

    def read_input(self, given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Tokenizes a text in which words to fill in are written [MASK].

        Raises:
            ValueError: it is no text, or longer than a row.
        """
        if not isinstance(given, str):
            raise ValueError(f"{given!r:.80} is no text; give a string with [MASK].")
        marks = self.tokenizer.special
        ids = [marks.cls]
        for number, between in enumerate(given.split("[MASK]")):
            ids += [marks.mask] * (number > 0)
            ids += self.tokenizer.encode(between)
        ids.append(marks.sep)
        size, length = self.sequence_length, len(ids)
        if length > size:
            raise ValueError(
                f"the text has {length} tokens with [CLS] and [SEP], but the model takes {size}; "
                f"shorten it: {given:.60}"
            )
        token_ids = np.full(size, marks.pad, np.int32)
        token_ids[:length] = ids
        masked = np.flatnonzero(token_ids == marks.mask)
        limit = self.predictions_per_row
        parts = [masked[i : i + limit] for i in range(0, len(masked), limit)]
        rows = []
        for part in parts or [masked]:
            positions = np.zeros(limit, np.int32)
            positions[: len(part)] = part
            rows.append(
                {
                    "token_ids": token_ids,
                    "segment_ids": np.zeros(size, np.int32),
                    "mask": np.arange(size) < length,
                    "mlm_positions": positions,
                    "mlm_valid": np.arange(limit) < len(part),
                }
            )
        return {"text": given}, rows

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, np.ndarray]],
        top: int,
    ) -> dict[str, Any]:
        """`masks`: for each [MASK] the `top` most probable pieces; `filled`: the text with them.

        Raises:
            ValueError: the text has no [MASK], or the model no MLM head.
        """
        text = named["text"]
        if "[MASK]" not in text:
            raise ValueError(f"there is no [MASK] to fill in the text {text!r:.80}.")
        masks: list[list[dict[str, Any]]] = []
        for row, output in zip(rows, outputs, strict=True):
            arrays = {name: jnp.asarray(array) for name, array in output.items()}
            logits = self.check_head(arrays, "mlm", self.vocab_size)[row["mlm_valid"]]
            masks += [
                metrics.rank_classes(chances, self._pieces, top)
                for chances in np.asarray(jax.nn.softmax(logits))
            ]
        filled = text
        for best, *_ in masks:
            piece = best["label"]
            before, _, after = filled.partition("[MASK]")
            joined = before.rstrip() if piece.startswith("##") else before
            filled = joined + piece.removeprefix("##") + after
        return {"masks": masks, "filled": filled}

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        names = ("token_ids", "segment_ids", "mask", "mlm_positions")
        return {name: batch[name] for name in names}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Cross-entropy in nats and accuracy, over all masked tokens and over all pairs.

        Every masked token has the same weight; padding has none. The original divides by
        the number of tokens on each device plus 1e-5 instead.

        Raises:
            ValueError: the model lacks a head, or has another vocabulary.
        """
        valid = batch["valid"].astype(jnp.float32)
        counted = batch["mlm_valid"].astype(jnp.float32) * valid[:, None]
        logits = self.check_head(outputs, "mlm", self.vocab_size)
        terms = classification_terms(logits, batch["mlm_labels"], counted, "mlm")
        if self.next_sentence:
            logits = self.check_head(outputs, "nsp", 2)
            terms |= classification_terms(logits, batch["is_random_next"], valid, "nsp")
        return terms

    def check_head(
        self, outputs: Mapping[str, jax.Array], name: str, classes: int
    ) -> jax.Array:
        """The float32 logits of a head.

        Raises:
            ValueError: the model lacks the head, or it has another number of classes.
        """
        logits = outputs.get(f"{name}_logits")
        if logits is None:
            other = (
                " or set config.task.next_sentence to False" if name == "nsp" else ""
            )
            raise ValueError(
                f"the model outputs no {name}_logits; add {name!r} to "
                f"config.model.heads{other}."
            )
        if logits.shape[-1] != classes:
            raise ValueError(
                f"{name}_logits has {logits.shape[-1]} classes, but the task {classes}; "
                "set config.model.vocab_size and config.task.vocab_size to the same number."
            )
        return logits.astype(jnp.float32)


def classification_terms(
    logits: jax.Array, labels: jax.Array, counted: jax.Array, name: str
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """`NAME_loss` and `NAME_accuracy`, as sums and counts weighted by `counted`."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = logits.argmax(-1) == labels
    count = counted.sum()
    return {
        f"{name}_loss": ((losses * counted).sum(), count),
        f"{name}_accuracy": ((correct * counted).sum(), count),
    }
