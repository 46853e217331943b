"""The official scores of SQuAD 1.1 and 2.0.

Source: evaluate-v1.1.py and evaluate-v2.0.py of rajpurkar/SQuAD-explorer.
"""

import collections
import re
import string
from collections.abc import Mapping, Sequence

from attn_jax.data.squad import Question

ARTICLE = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
Scores = dict[str, tuple[float, float]]  # {id: (exact match, F1)}, from 0 to 1


def normalize(text: str) -> str:
    """Lower-cases, and leaves out ASCII punctuation, articles and spare white space."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(PUNCTUATION)).split())


def compute_f1(predicted: str, true: str, *, empty_counts: bool) -> float:
    """F1 of the words of two answers.

    Args:
        empty_counts: two answers without words agree (SQuAD 2.0).
    """
    ours, theirs = normalize(predicted).split(), normalize(true).split()
    if empty_counts and not (ours and theirs):
        return float(ours == theirs)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def score_questions(
    questions: Sequence[Question], predictions: Mapping[str, str], *, version: str
) -> Scores:
    """The scores of each question, against its best true answer.

    A question without a prediction has 0 in version "1.1"; in "2.0" it is left out.
    """
    second = version == "2.0"
    scores = {}
    for question in questions:
        if question.id not in predictions:
            if not second:
                scores[question.id] = (0.0, 0.0)
            continue
        given, answers = predictions[question.id], list(question.answers)
        if second:  # an answer of articles alone is none
            answers = [answer for answer in answers if normalize(answer)] or [""]
        exact = max(normalize(given) == normalize(answer) for answer in answers)
        f1 = max(compute_f1(given, a, empty_counts=second) for a in answers)
        scores[question.id] = (float(exact), f1)
    return scores


def average_scores(scores: Scores) -> dict[str, float]:
    """`exact_match` and `f1` in percent."""
    if not scores:
        return {"exact_match": 0.0, "f1": 0.0}
    count = len(scores)
    return {
        "exact_match": 100 * sum(exact for exact, _ in scores.values()) / count,
        "f1": 100 * sum(f1 for _, f1 in scores.values()) / count,
    }


def apply_threshold(
    scores: Scores,
    null_odds: Mapping[str, float],
    answerable: Mapping[str, bool],
    threshold: float,
) -> Scores:
    """The scores if no answer is given where `null_odds` is above a threshold."""
    return {
        id: both if null_odds[id] <= threshold else (float(not answerable[id]),) * 2
        for id, both in scores.items()
    }


def find_best_threshold(
    scores: Mapping[str, float],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float],
    answerable: Mapping[str, bool],
) -> tuple[float, float]:
    """(best mean score in percent, the threshold of `null_odds` that reaches it)."""
    total = best = float(sum(not has for has in answerable.values()))
    threshold = 0.0
    for id in sorted(null_odds, key=lambda id: null_odds[id]):
        if id not in scores:
            continue
        total += scores[id] if answerable[id] else -float(bool(predictions[id]))
        if total > best:
            best, threshold = total, null_odds[id]
    return 100 * best / len(scores), threshold
