"""Metrics of text tasks: those of scikit-learn, SciPy and conlleval."""

import json

import numpy as np
import pytest

from attn_jax import scores


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "bert" / "metrics"


def test_metrics_of_glue_are_those_of_the_libraries(golden):
    cases = json.loads((golden / "glue_metrics.json").read_text())
    for case in cases["binary"]:
        found = scores.score_classes(
            np.array(case["labels"]), np.array(case["preds"]), 2
        )
        for name, value in found.items():
            assert value == pytest.approx(case[name], abs=1e-9)
    for case in cases["regression"]:
        arrays = (np.array(case[key], float) for key in ("labels", "preds"))
        for name, value in scores.score_numbers(*arrays).items():
            if case[name] is None:
                assert np.isnan(value)
            else:
                assert value == pytest.approx(case[name], abs=1e-9)
    case = cases["multiclass"]
    predicted = np.array(case["logits"]).argmax(-1)
    found = scores.score_classes(np.array(case["labels"]), predicted, 3)
    assert found == {"accuracy": pytest.approx(case["accuracy"], abs=1e-9)}


def test_entities_are_counted_as_conlleval_does(golden):
    for case in json.loads((golden / "entity_f1.json").read_text()):
        pairs = [(s["gold"], s["pred"]) for s in case["sentences"]]
        for name, value in scores.score_entities(pairs).items():
            assert value == pytest.approx(case[name], abs=1e-9), case["name"]


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        (["O", "I-PER", "I-PER", "O"], [("PER", 1, 3)]),
        (["B-PER", "B-PER", "I-PER"], [("PER", 0, 1), ("PER", 1, 3)]),
        (["B-PER", "I-LOC"], [("PER", 0, 1), ("LOC", 1, 2)]),
        (["B-PER", "O", "I-PER"], [("PER", 0, 1), ("PER", 2, 3)]),
        ([], []),
    ],
)
def test_an_entity_starts_at_b_or_at_another_type(tags, entities):
    assert scores.find_entities(tags) == entities
