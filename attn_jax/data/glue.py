"""The nine tasks of GLUE in their official files, with labels in the official order.

Source: Wang et al. 2019 (arXiv:1804.07461); the files of gluebenchmark.com; label orders of
google-research/bert run_classifier.py, which for MNLI are not those of other libraries.
"""

from typing import NamedTuple


class Glue(NamedTuple):
    """A task's files and metrics.

    Attributes:
        texts: columns of one or two texts, by name, or by number in a file without a header.
        label: column of the label.
        classes: as written in the files, in order; None: the label is a number.
        names: of the classes, for people.
        metrics: the official ones; the first two are averaged for the GLUE score.
        development: {split of ours: file name}; MNLI has two sets.
    """

    texts: tuple[str | int, ...]
    label: str | int
    classes: tuple[str, ...] | None
    names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    development: tuple[tuple[str, str], ...] = (("validation", "dev"),)


YES_NO = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")

TASKS = {
    "cola": Glue(
        (3,), 1, YES_NO, ("unacceptable", "acceptable"), ("matthews", "accuracy")
    ),
    "sst2": Glue(
        ("sentence",), "label", YES_NO, ("negative", "positive"), ("accuracy",)
    ),
    "mrpc": Glue(
        ("#1 String", "#2 String"),
        "Quality",
        YES_NO,
        ("different", "paraphrase"),
        ("f1", "accuracy"),
    ),
    "qqp": Glue(
        ("question1", "question2"),
        "is_duplicate",
        YES_NO,
        ("different", "duplicate"),
        ("f1", "accuracy"),
    ),
    "stsb": Glue(PAIR, "score", None, None, ("pearson", "spearman")),
    "mnli": Glue(
        PAIR,
        "gold_label",
        ("contradiction", "entailment", "neutral"),
        ("contradiction", "entailment", "neutral"),
        ("accuracy",),
        (("validation", "dev_matched"), ("validation_mismatched", "dev_mismatched")),
    ),
    "qnli": Glue(
        ("question", "sentence"), "label", ENTAILMENT, ENTAILMENT, ("accuracy",)
    ),
    "rte": Glue(PAIR, "label", ENTAILMENT, ENTAILMENT, ("accuracy",)),
    "wnli": Glue(
        PAIR, "label", YES_NO, ("not_entailment", "entailment"), ("accuracy",)
    ),
}
