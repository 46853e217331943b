"""Metrics of a whole split, by the definitions of GLUE, CoNLL and scikit-learn."""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, matthews_corrcoef

Entity = tuple[str, int, int]  # type, first word, word after the last


def score_classes(
    labels: Integer[np.ndarray, " N"],
    predicted: Integer[np.ndarray, " N"],
    classes: int,
) -> dict[str, float]:
    """`accuracy`; for two classes also `f1` of class 1 and `matthews`, 0 where undefined."""
    scores = {"accuracy": float(np.mean(labels == predicted))}
    if classes == 2:
        scores["f1"] = float(f1_score(labels, predicted, zero_division=0))
        with warnings.catch_warnings():  # of a split with one label, where it is 0
            warnings.simplefilter("ignore")
            scores["matthews"] = float(matthews_corrcoef(labels, predicted))
    return scores


def score_numbers(
    targets: Float[np.ndarray, " N"], predicted: Float[np.ndarray, " N"]
) -> dict[str, float]:
    """`pearson` and `spearman` correlation; NaN if one side is constant."""
    with warnings.catch_warnings():  # a constant side is no fault of the caller
        warnings.simplefilter("ignore")
        return {
            "pearson": float(stats.pearsonr(targets, predicted).statistic),
            "spearman": float(stats.spearmanr(targets, predicted).statistic),
        }


def score_rankings(
    labels: Bool[np.ndarray, "N C"], logits: Float[np.ndarray, "N C"]
) -> dict[str, float]:
    """`map`: the mean over the classes of the average precision of their rankings of the rows.

    Classes that no row belongs to are left out; NaN if there are no others.
    """
    there = labels.any(axis=0)
    if not there.any():
        return {"map": float("nan")}
    return {"map": float(average_precision_score(labels[:, there], logits[:, there]))}


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence's tags "B-TYPE", "I-TYPE" and "O".

    As in conlleval, an I- after O or after another type starts an entity.
    """
    found: list[Entity] = []
    for place, tag in enumerate(tags):
        if tag == "O":
            continue
        start, _, kind = tag.partition("-")
        last = found[-1] if found else ("", -1, -1)
        if start == "I" and last[0] == kind and last[2] == place:
            found[-1] = (kind, last[1], place + 1)
        else:
            found.append((kind, place, place + 1))
    return found


def score_entities(
    pairs: Iterable[tuple[Sequence[str], Sequence[str]]],
) -> dict[str, float]:
    """`precision`, `recall` and `f1` of whole entities, and `accuracy` of tags.

    Args:
        pairs: (true tags, predicted tags) of each sentence, of equal lengths.

    Source: the conlleval script of CoNLL-2000 and -2003. 0 where undefined.
    """
    correct = gold = predicted = tags_right = tags = 0
    for true, guess in pairs:
        ours, theirs = set(find_entities(true)), set(find_entities(guess))
        correct += len(ours & theirs)
        gold += len(ours)
        predicted += len(theirs)
        tags += len(true)
        tags_right += sum(a == b for a, b in zip(true, guess, strict=True))
    precision = correct / predicted if predicted else 0.0
    recall = correct / gold if gold else 0.0
    both = precision + recall
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "accuracy": tags_right / tags if tags else 0.0,
    }
