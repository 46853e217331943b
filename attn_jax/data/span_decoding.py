"""Answers from the logits of all windows of a question.

Source: google-research/bert run_squad.py, `write_predictions` and `get_final_text`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from attn_jax.data.squad import Question, Window
from attn_jax.data.vocabulary import make_tokenizer


class Answer(NamedTuple):
    """A candidate; `words` are the first and the last of the passage, None for no answer."""

    text: str
    probability: float  # among the candidates
    start_logit: float
    end_logit: float
    words: tuple[int, int] | None


class Decoded(NamedTuple):
    """The answer, the candidates in their order, and how much "no answer" is ahead.

    `null_odds` is the score of no answer less that of the best answer; None unless questions
    may have no answer.
    """

    text: str
    candidates: list[Answer]
    null_odds: float | None


def decode_answer(
    question: Question,
    windows: Sequence[Window],
    start_logits: Sequence[Float[np.ndarray, " S"]],
    end_logits: Sequence[Float[np.ndarray, " S"]],
    *,
    n_best: int,
    max_length: int,
    may_be_null: bool,
    null_threshold: float,
    lower_case: bool,
) -> Decoded:
    """Decodes the answer to a question.

    Args:
        windows, start_logits, end_logits: of this question, one entry per window.
        n_best: starts and ends considered in each window, and candidates returned.
        max_length: of an answer, in word pieces.
        may_be_null: the question may have no answer (SQuAD 2.0).
        null_threshold: no answer is given if `null_odds` is above this.
    """
    found: list[tuple[int, int, int, float, float]] = []
    null = (math.inf, 0.0, 0.0)
    for number, window in enumerate(windows):
        starts, ends = start_logits[number], end_logits[number]
        if may_be_null:
            # In float32 as in the original, since equal scores depend on rounding.
            score = float(starts[0]) + float(ends[0])
            if score < null[0]:
                null = (score, float(starts[0]), float(ends[0]))
        last = window.offset + len(window.part)
        for start in rank(starts, n_best):
            for end in rank(ends, n_best):
                if (
                    window.offset <= start <= end < last
                    and end - start < max_length
                    and window.is_best[start - window.offset]
                ):
                    logits = float(starts[start]), float(ends[end])
                    found.append((number, start, end, *logits))
    if may_be_null:
        found.append((-1, 0, 0, null[1], null[2]))
    found.sort(key=lambda candidate: candidate[3] + candidate[4], reverse=True)
    kept: dict[str, tuple[float, float, tuple[int, int] | None]] = {}
    for number, start, end, start_logit, end_logit in found:
        if len(kept) >= n_best:
            break
        text, words = "", None
        if number >= 0:
            window = windows[number]
            first, after = start - window.offset, end + 1 - window.offset
            words = window.words[first], window.words[after - 1]
            text = restore_text(
                join_pieces(window.part[first:after]),
                " ".join(question.words[words[0] : words[1] + 1]),
                lower_case,
            )
        if text not in kept:
            kept[text] = (start_logit, end_logit, words)
    if may_be_null and "" not in kept:
        kept[""] = (null[1], null[2], None)
    if not kept:
        kept["empty"] = (0.0, 0.0, None)
    return choose(kept, null[0] if may_be_null else None, null_threshold)


def choose(
    kept: dict[str, tuple[float, float, tuple[int, int] | None]],
    null_score: float | None,
    null_threshold: float,
) -> Decoded:
    totals = np.array([start + end for start, end, _ in kept.values()])
    shares = np.exp(totals - totals.max())
    candidates = [
        Answer(text, float(share), start, end, words)
        for (text, (start, end, words)), share in zip(
            kept.items(), shares / shares.sum(), strict=True
        )
    ]
    if null_score is None:
        return Decoded(candidates[0].text, candidates, None)
    best = next((c for c in candidates if c.text), None)
    if best is None:  # the original fails here
        return Decoded("", candidates, math.inf)
    odds = null_score - best.start_logit - best.end_logit
    return Decoded("" if odds > null_threshold else best.text, candidates, odds)


def rank(logits: Float[np.ndarray, " S"], number: int) -> list[int]:
    """The positions of the highest logits, the earlier first on ties."""
    return np.argsort(-logits, kind="stable")[:number].tolist()


def join_pieces(pieces: Sequence[str]) -> str:
    text = " ".join(pieces).replace(" ##", "").replace("##", "")
    return " ".join(text.split())


def restore_text(pieces: str, original: str, lower_case: bool) -> str:
    """The part of the original text that consists of these pieces, with case and accents.

    The words of the original are split as the tokenizer does and compared without spaces. If
    they do not correspond character by character, all of the original is returned.
    """
    split = " ".join(split_basic(original, lower_case))
    start = split.find(pieces)
    if start == -1:
        return original
    end = start + len(pieces) - 1
    places, split_places = find_letters(original), find_letters(split)
    if len(places) != len(split_places):
        return original
    number = {place: i for i, place in enumerate(split_places)}
    if start not in number or end not in number:
        return original
    return original[places[number[start]] : places[number[end]] + 1]


def find_letters(text: str) -> list[int]:
    return [place for place, character in enumerate(text) if character != " "]


def split_basic(text: str, lower_case: bool) -> list[str]:
    """The words and punctuation of a text, before it is split into pieces."""
    tokenizer = BASIC[lower_case]
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


BASIC = {lower: make_tokenizer(None, lower_case=lower) for lower in (False, True)}
