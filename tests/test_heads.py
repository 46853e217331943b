"""Heads as Hopfield networks: the golden table, padding, the command."""

import json
import pathlib

import numpy as np
import pytest
from test_hopfield import golden

from attn_jax.__main__ import main
from attn_jax.analysis import heads


def softmax(scores):
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def test_counts_and_classes_are_those_of_the_table():
    case = golden("head_regimes")
    weights = softmax(case["scores"].astype(np.float64))
    np.testing.assert_array_equal(heads.count_entries(weights), case["k"])
    jacobian = heads.measure_jacobian(weights)
    np.testing.assert_allclose(jacobian, case["jacobian_frobenius"], atol=1e-6)
    found = heads.measure_heads(weights)
    np.testing.assert_array_equal(np.median(found.counts, axis=1), case["k_bar"])
    expected = [heads.CLASSES[i - 1] for i in case["head_class"]]
    assert found.classes == expected
    classes = heads.classify_shares(case["boundary_k_bar"] / case["boundary_N"])
    np.testing.assert_array_equal(classes + 1, case["boundary_class"])


def test_padding_is_left_out():
    case = golden("head_regimes")
    inside = np.arange(40)[None] < case["lengths"][:, None]
    scores = np.where(inside[:, None, None], case["scores"].astype(float), -np.inf)
    found = heads.measure_heads(softmax(scores), inside, inside)
    shares = np.median(found.shares, axis=1)
    np.testing.assert_allclose(shares, case["k_relative_median_padded"])
    expected = [heads.CLASSES[i - 1] for i in case["head_class_padded_relative"]]
    assert found.classes == expected
    counts = [
        case["k_padded"][i, :, :length] for i, length in enumerate(case["lengths"])
    ]
    np.testing.assert_array_equal(found.counts, np.concatenate(counts, axis=1))
    with pytest.raises(ValueError, match="example 1 has only padding"):
        heads.measure_heads(softmax(scores)[:2], inside[:2] & [[True], [False]])


def test_slots_are_counted_for_each_input():
    over_slots = softmax(np.random.default_rng(0).normal(size=(2, 1, 9, 3)) * 5)
    found = heads.measure_maps({"slots": np.swapaxes(over_slots, -2, -1)})["slots"]
    expected = heads.measure_heads(over_slots)
    np.testing.assert_array_equal(found.counts, expected.counts)


def test_analyze_heads_draws_and_describes_every_head(copied, capsys):
    main(["analyze", f"--workdir={copied}", "--heads"])
    picture, table = map(pathlib.Path, capsys.readouterr().out.split())
    assert picture.name == "heads.png" and picture.stat().st_size > 1000
    described = json.loads(table.read_text())
    config = json.loads((copied / "config.json").read_text())
    assert len(described) == config["model"]["depth"]
    for layer in described.values():
        assert len(layer) == config["model"]["num_heads"]
        assert all(0 < head["median_share"] <= 1 for head in layer)


def test_heads_are_followed_over_the_checkpoints_of_a_run(copied, capsys):
    main(["analyze", f"--workdir={copied}", "--heads", "--step=all"])
    picture, table = map(pathlib.Path, capsys.readouterr().out.split())
    assert picture.name == "heads_by_step.png" and picture.stat().st_size > 1000
    described = json.loads(table.read_text())
    kept = [int(path.name) for path in (copied / "checkpoints").iterdir()]
    assert sorted(map(int, described)) == sorted(kept) and len(kept) > 1
    main(["analyze", f"--workdir={copied}", "--heads", f"--step={min(kept)}"])
    alone = json.loads((copied / "analysis" / "heads.json").read_text())
    assert described[str(min(kept))] == alone
    with pytest.raises(ValueError, match="--step=all needs --heads"):
        main(["analyze", f"--workdir={copied}", "--step=all"])
