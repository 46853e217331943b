"""The benchmarks run, and their verdicts can be negative."""

import json
import sys

import processes
import pytest

sys.path.insert(0, str(processes.ROOT / "benchmarks"))

import accelerator
import large_models

RECIPE = "configs/hopfield/digit_bags.py"


def test_the_accelerator_benchmark_runs_at_debug_size(tmp_path):
    out = tmp_path / "found.json"
    command = ["benchmarks/accelerator.py", "--debug", f"--recipe={RECIPE}"]
    status, text, err = processes.finish(processes.start(*command, f"--out={out}"))
    assert status == 0, err
    found = json.loads(out.read_text())
    # Another processor than that of the stored losses sums in another order.
    assert found["losses"][RECIPE]["first"] <= accelerator.FIRST_TOLERANCE
    assert found["losses"][RECIPE]["largest"] <= accelerator.TOLERANCE
    assert list(found["models"]) == large_models.DEBUG_CASES
    for row in found["models"].values():
        assert row["step_seconds"] > 0 and row["memory_bytes"] > 0 and row["flops"] > 0
    table = out.with_suffix(".md").read_text()
    assert table.strip() in text
    assert f"| {RECIPE} |" in table and "| agrees |" in table
    assert all(f"| {name} |" in table for name in large_models.DEBUG_CASES)


def test_the_large_models_are_those_of_the_papers():
    cases = {name: case(False) for name, case in large_models.CASES.items()}
    assert cases["ViT-L/16, 224 px"].model["width"] == 1024
    assert cases["ViT-L/16, 224 px"].arrays["images"].shape == (224, 224, 3)
    assert cases["BERT-large, 512 tokens"].model["depth"] == 24
    assert cases["BERT-large, 512 tokens"].arrays["token_ids"].shape == (512,)
    pooling = cases["Hopfield pooling, 100,000 instances"]
    assert pooling.arrays["instances"].shape[0] == 100_000


def test_other_losses_are_seen():
    records = [{"step": 1, "train/loss": 2.0}, {"step": 2, "validation/loss": 1.0}]
    moved = [{"step": 1, "train/loss": 2.0}, {"step": 2, "validation/loss": 1.1}]
    same = accelerator.compare_losses(records, records)
    assert same == {"first": 0, "largest": 0}
    other = accelerator.compare_losses(moved, records)
    assert other == {"first": 0, "largest": pytest.approx(0.1)}
    short = accelerator.compare_losses(records[:1], records)
    assert short["largest"] == float("inf")


def test_a_model_that_fails_is_a_row():
    found = accelerator.measure_apart("no such model", 120)
    assert "no such model" in found["error"]
    assert "no end after 0 s" in accelerator.measure_apart("checks", 0)["error"]
    full = "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying"
    assert accelerator.describe_failure(full) == "out of memory"
    rows = {"a": {"error": "out of memory"}}
    table = accelerator.make_table(
        {"device": "d", "provenance": "p", "losses": rows, "models": rows}
    )
    assert table.count("| a | out of memory | | | | | | |") == 1
