"""The benchmarks run, and their verdicts can be negative."""

import dataclasses
import json
import os
import random
import signal
import sys

import processes
import pytest

sys.path.insert(0, str(processes.ROOT / "benchmarks"))

import accelerator
import accuracy
import fault_campaign
import fault_files
import faults
import hopfield_examples
import large_models
import segmentation_baselines
from fault_runner import Commands, Done, Worker

from attn_jax.tasks.reconstruct import Reconstruct

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


# --- faults ---------------------------------------------------------------------------

PROGRESS = "step 20/20  100%  loss 2.3  5 ex/s  mem 0.8 GB\n"


@pytest.mark.parametrize(
    ("status", "err", "found", "outcome"),
    [
        (0, PROGRESS, "same", "intact"),
        (0, "WARNING: config.json is damaged; ...\n", "same", "mended"),
        (0, "WARNING: config.json has changed\n", "other", "warned"),
        (0, PROGRESS, "other", "silent error"),
        (0, "Traceback (most recent call last):\n", "same", "traceback"),
        (1, PROGRESS + "error: the checkpoint is damaged\n", None, "refused"),
        (1, "error: the checkpoint\nis damaged\n", None, "traceback"),
        (1, "", None, "traceback"),
        (-11, "error: the checkpoint is damaged\n", None, "traceback"),
        (None, "", None, "hang"),
    ],
)
def test_the_outcome_of_a_trial(status, err, found, outcome):
    assert fault_campaign.judge(Done(status, "", err, 1.0), found, "same") == outcome
    assert outcome in faults.OUTCOMES


def test_every_damage_changes_what_is_read(tmp_path):
    def read(path):
        return path.read_bytes() if path.is_file() else None

    seen = set()
    for seed in range(80):
        folder = tmp_path / f"trial_{seed}"
        folder.mkdir()
        file, other = folder / "file", folder / "other"
        file.write_bytes(bytes(range(1, 201)))
        other.write_bytes(b"other")
        how = fault_files.damage(file, [other], random.Random(seed))
        seen.add(how.split()[0])
        if how == "unreadable":
            assert file.stat().st_mode & 0o777 == 0
        else:
            assert read(file) != bytes(range(1, 201)), how
        fault_files.repair(file, other)
        assert read(file) == other.read_bytes()
    assert len(seen) == 11


def test_a_worker_ends_commands_as_processes_do(tmp_path):
    commands = Commands(tmp_path, timeout=100)
    worker = Worker(commands)
    arguments = ["-m", "attn_jax", "evaluate", f"--workdir={tmp_path / 'none'}"]
    found = [worker.run(*arguments), worker.run(*arguments), commands.run(*arguments)]
    [(status, out, err)] = {done[:3] for done in found}
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ") and "/none holds no run" in err
    commands.timeout = 0
    os.kill(worker.process.pid, signal.SIGSTOP)  # so that it cannot answer in time
    assert worker.run(*arguments).status is None
    worker.close()


def test_the_table_counts_each_action_and_shows_what_is_wrong():
    record = {"trial": 7, "what": "bit of byte 3 in config.json", "messages": {}}
    records = [
        {**record, "outcomes": {"resume": "intact"}},
        {**record, "outcomes": {"resume": "silent error"}},
    ]
    table = faults.make_table(records)
    assert "| resume | 1 | 0 | 0 | 0 | 0 | 1 | 0 | 0 |" in table
    assert "- resume, silent error: trial 7, bit of byte 3 in config.json" in table


def test_an_example_is_solved_once_it_stays_solved():
    find = hopfield_examples.find_solved
    assert find([(96, 1.0), (192, 1.0)]) == 1
    assert find([(96, 1.0), (192, 0.99), (288, 1.0)]) == 3
    assert find([(96, 1.0), (192, 0.99)]) is None
    result = (0.9, [(480, 0.6), (960, 0.75)], 60.0)
    row = hopfield_examples.tabulate("bit_patterns", {"base": [result, result]})[-1]
    assert (
        row
        == "| Hopfield, adapted | 88.0% | 84.6% | 90.0% | 75.0% | 75.0%, 75.0% | 60 |"
    )


def test_seeds_that_failed_count_in_the_mean_and_are_named():
    rows = [
        {"test/fg_ari": 0.9, "test/stripes": 0.0},
        {"test/fg_ari": 0.96, "test/stripes": 0.0},
        {"test/fg_ari": float("nan"), "test/stripes": 1.0},
    ]
    table = accuracy.summarize(rows[:2], ["test/fg_ari"])
    assert table == ["| mean | 93.00% | | |", "| deviation | 4.24% | | |"]
    assert accuracy.summarize(rows[:1], ["test/fg_ari"]) == []
    found = accuracy.describe_failures(
        dict(zip((3, 5, 7), rows, strict=True)), "test/fg_ari", 0.95
    )
    assert found == [
        "",
        "Failed, test/fg_ari below 95%: 2 of 3 seeds (3, 7).",
        "Stripes: 1 of 3 seeds (7).",
    ]
    assert accuracy.describe_failures({0: {"test/auc": 1.0}}, "test/auc", None) == []


def test_k_means_finds_colours_and_one_slot_finds_nothing():
    task = Reconstruct("tetrominoes", image_size=12, tile_pixels=3, num_objects=1)
    task = dataclasses.replace(task, test_images=3)
    found = segmentation_baselines.measure_baselines(task, "test", 3, [0.0, 50.0], 0)
    colours, positions = list(found)[:2]
    assert list(found)[2:] == ["one slot", "random"]
    # Three brightnesses of a piece on black: the background apart, the piece in two.
    assert found[colours]["ari"] > 0.5 > found[positions]["ari"]
    assert found["one slot"]["ari"] == 0 and found["one slot"]["fg_ari"] == 1
    assert abs(found["random"]["ari"]) < 0.1
    errors = [found[name]["squared_error"] for name in (colours, positions, "one slot")]
    assert errors == sorted(errors)
