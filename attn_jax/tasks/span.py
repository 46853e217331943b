"""Question answering by the span of a passage, as in SQuAD."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from attn_jax.bounds import NonNegativeInt, Path, PositiveInt
from attn_jax.data import invented, squad, squad_scores
from attn_jax.data.span_decoding import Decoded, decode_answer
from attn_jax.data.tokenizing import Tokenizer, Tokenizing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span(Tokenizing):
    """Where in a passage the answer to a question is.

    A passage that is longer than a row is read in overlapping windows, each a row. In SQuAD 2.0 a
    question may have no answer; the position of [CLS] then stands for it.

    `attn_jax.data.tokenizing.Tokenizing` describes the fields of the vocabulary.

    Attributes:
        data: SQuAD's folder (train-v1.1.json, dev-v1.1.json) or one JSON file of its form; of a
            file, `holdout` articles are the validation split. "generated": invented facts, which
            need no file.
        version: "1.1", or "2.0", with questions that have no answer.
        stride: word pieces from the start of a window to that of the next.
        max_query_length: word pieces of a question that are kept.
        max_answer_length: word pieces of the longest answer that is given.
        n_best: starts and ends of a window that are considered.
        null_threshold: of version 2.0: no answer is given if its score is ahead of the best
            answer's by more than this.
        holdout: number of articles of a single file that are the validation split.

    Source: Devlin et al. 2019, sec. 4.2 and 4.3; google-research/bert run_squad.py.
    """

    data: Path
    version: Literal["1.1", "2.0"] = "1.1"
    stride: PositiveInt = 128
    max_query_length: PositiveInt = 64
    max_answer_length: PositiveInt = 30
    n_best: PositiveInt = 20
    null_threshold: float = 0.0
    holdout: NonNegativeInt = 0

    @property
    def coefficients(self) -> dict[str, float]:
        return {"span_loss": 1.0}

    @property
    def may_be_null(self) -> bool:
        return self.version == "2.0"

    def source(self, split: str) -> "Windows":
        """The windows of a split's questions.

        Questions for training whose answer is not where the file says are left out; they are
        counted and named.

        Raises:
            ValueError: the data is missing or damaged, or has no such split; a question
                leaves no room for the passage.
        """
        questions = self.read_questions(split)
        tokenizer = self.open_tokenizer(
            lambda: iterate_texts(self.read_questions("train"))
        )
        left_out: tuple[tuple[str, str], ...] = ()
        if split == "train":
            lost = [question.id for question in questions if question.is_lost]
            left_out = tuple((id, "answers not in their passage") for id in lost)
            questions = [question for question in questions if not question.is_lost]
            if lost:
                logging.warning(
                    "%s: %d answers are not in their passage; the questions are left out, "
                    "such as %s.",
                    self.data,
                    len(lost),
                    ", ".join(lost[:3]),
                )
        windows = [
            window
            for number, question in enumerate(questions)
            for window in self.cut(question, number, tokenizer)
        ]
        return Windows(questions, windows, tokenizer, left_out)

    def read_questions(self, split: str) -> list[squad.Question]:
        if self.data == "generated":
            return invented.make_questions(split)
        return squad.read_split(self.data, split, self.version, self.holdout)

    def cut(
        self, question: squad.Question, number: int, tokenizer: Tokenizer
    ) -> list[squad.Window]:
        return list(
            squad.cut_windows(
                question,
                number,
                tokenizer,
                length=self.sequence_length,
                stride=self.stride,
                max_query=self.max_query_length,
            )
        )

    def assets(self, source: "Windows") -> dict[str, str]:
        return self.describe_text(source.tokenizer)

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """`token_ids`, `segment_ids`, `mask` [S], and `starts`, `ends` [], int32."""
        del rng
        window = record["window"]
        row = self.make_window_row(window, record["tokenizer"])
        return {
            **row,
            "starts": np.int32(window.start),
            "ends": np.int32(window.end),
        }

    def make_window_row(
        self, window: squad.Window, tokenizer: Tokenizer
    ) -> dict[str, np.ndarray]:
        return self.make_row(
            tokenizer, tokenizer.number(window.query), tokenizer.number(window.part)
        )

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The mean cross-entropy of start and end in nats, over all positions of a row.

        Raises:
            ValueError: the model lacks the head.
        """
        valid = batch["valid"].astype(jnp.float32)
        losses = sum(
            optax.softmax_cross_entropy_with_integer_labels(logits, batch[places])
            for logits, places in zip(
                read_logits(outputs), ("starts", "ends"), strict=True
            )
        )
        return {"span_loss": ((losses / 2 * valid).sum(), valid.sum())}

    def predictions(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        del batch
        start_logits, end_logits = read_logits(outputs)
        return {"start_logits": start_logits, "end_logits": end_logits}

    def score(
        self, predictions: Mapping[str, np.ndarray], records: "Windows"
    ) -> dict[str, float]:
        """`exact_match` and `f1` of the official script, in percent.

        Of version 2.0 also `best_f1` and the `null_threshold` that reaches it.
        """
        answers: dict[str, str] = {}
        odds: dict[str, float] = {}
        rows = enumerate(records.windows)
        for number, group in itertools.groupby(rows, lambda row: row[1].question):
            places, windows = zip(*group, strict=True)
            question = records.questions[number]
            decoded = self.decode(
                question,
                windows,
                [predictions["start_logits"][place] for place in places],
                [predictions["end_logits"][place] for place in places],
            )
            answers[question.id] = decoded.text
            odds[question.id] = decoded.null_odds or 0.0
        found = squad_scores.score_questions(
            records.questions, answers, version=self.version
        )
        scores = squad_scores.average_scores(found)
        if self.may_be_null:
            known = {q.id: bool(q.answers) for q in records.questions}
            f1 = {id: f1 for id, (_, f1) in found.items()}
            best, threshold = squad_scores.find_best_threshold(f1, answers, odds, known)
            scores |= {"best_f1": best, "best_f1_threshold": threshold}
        return scores

    def decode(
        self,
        question: squad.Question,
        windows: Sequence[squad.Window],
        start_logits: Sequence[np.ndarray],
        end_logits: Sequence[np.ndarray],
    ) -> Decoded:
        return decode_answer(
            question,
            windows,
            start_logits,
            end_logits,
            n_best=self.n_best,
            max_length=self.max_answer_length,
            may_be_null=self.may_be_null,
            null_threshold=self.null_threshold,
            lower_case=self.lower_case,
        )

    def read_input(self, given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The windows of {"question": ..., "context": ...}.

        Raises:
            ValueError: it is no such object, or the passage is empty.
        """
        if (
            not isinstance(given, dict)
            or given.keys() != {"question", "context"}
            or not all(isinstance(text, str) for text in given.values())
        ):
            raise ValueError(
                f"{given!r:.80} is no question; give --question and --passage, or an object with "
                "the texts 'question' and 'context'."
            )
        question = squad.make_question(given["context"], given["question"])
        windows = self.cut(question, 0, self.tokenizer)
        if not windows:
            raise ValueError("the passage has no words, so it holds no answer.")
        rows = [self.make_window_row(window, self.tokenizer) for window in windows]
        return dict(given), rows

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, np.ndarray]],
        top: int,
    ) -> dict[str, Any]:
        """`answer`, and the `top` candidates as {"answer", "probability", "start", "end"}.

        `start` and `end` are places in the context, in characters; null for no answer. Where no
        span fits, there are no candidates and a `note`, even of version 1.1, in which every
        question is taken to have an answer.
        """
        del rows
        question = squad.make_question(named["context"], named["question"])
        decoded = self.decode(
            question,
            self.cut(question, 0, self.tokenizer),
            [output["start_logits"] for output in outputs],
            [output["end_logits"] for output in outputs],
        )
        if not self.may_be_null and decoded.candidates[0].words is None:
            note = (
                f"no span fits: the config.task.n_best={self.n_best} best starts and ends of "
                "each window are outside the passage, or an end is before its start or more "
                f"than config.task.max_answer_length={self.max_answer_length} pieces after it"
            )
            return {"answer": "", "candidates": [], "note": note}
        candidates = []
        for answer in decoded.candidates[:top]:
            start = end = None
            if answer.words is not None:
                first, last = answer.words
                start = question.starts[first]
                end = question.starts[last] + len(question.words[last])
                inside = question.context[start:end].find(answer.text)
                if inside >= 0:
                    start, end = start + inside, start + inside + len(answer.text)
            candidates.append(
                {
                    "answer": answer.text,
                    "probability": answer.probability,
                    "start": start,
                    "end": end,
                }
            )
        return {"answer": decoded.text, "candidates": candidates}


class Windows:
    """Records {"window", "tokenizer"}, question after question."""

    labels = None

    def __init__(
        self,
        questions: Sequence[squad.Question],
        windows: Sequence[squad.Window],
        tokenizer: Tokenizer,
        left_out: tuple[tuple[str, str], ...],
    ):
        self.questions, self.windows = questions, windows
        self.tokenizer, self.left_out = tokenizer, left_out

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"window": self.windows[index], "tokenizer": self.tokenizer}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.tokenizer.pieces).encode())
        for window in self.windows:
            line = json.dumps([window.pieces, window.start, window.end])
            digest.update(line.encode())
        return digest.hexdigest()[:16]


def read_logits(outputs: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    if "start_logits" not in outputs:
        raise ValueError(
            "the model has no start_logits; set config.model.head to "
            "{'cls': 'attn_jax.models.bert:SpanHead'}."
        )
    names = ("start_logits", "end_logits")
    start, end = (outputs[name].astype(jnp.float32) for name in names)
    return start, end


def iterate_texts(questions: Iterable[squad.Question]) -> Iterable[str]:
    context = None
    for question in questions:
        if question.context != context:  # shared by the questions of a paragraph
            context = question.context
            yield context
        yield question.question
