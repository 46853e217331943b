"""Several real processes that train as one, over `jax.distributed` on CPU devices."""

import pathlib
import shutil
import signal
import time

import numpy as np
import pytest
from processes import finish_all, launch, launch_command
from runs import numbers

import attn_jax
from attn_jax.checkpoint_reader import CheckpointReader
from attn_jax.paths import named_leaves

# Half of what there is to compile.
QUICK = [
    "--config.model.dropout=0.0",
    "--config.evals={}",
    "--config.keep_best=null",
]

OTHER_TASKS = [
    "configs/bert/pretrain_stdlib.py",
    "configs/hopfield/digit_bags.py",
    "configs/slot_attention/tetrominoes.py",
]


def run(number, devices, folder, *settings):
    return finish_all(launch(number, devices, folder, *settings))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of a run of 8 steps: 1 process x 8 devices."""
    folder = tmp_path_factory.mktemp("one")
    run(1, 8, folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same by 2 processes x 4 devices."""
    folder = tmp_path_factory.mktemp("two")
    run(2, 4, folder)
    return folder


def test_two_processes_log_the_numbers_of_one_bit_for_bit(one, two):
    assert [r["step"] for r in numbers(one)] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert numbers(two) == numbers(one)


def test_four_processes_log_the_numbers_of_one_bit_for_bit(one, tmp_path):
    run(4, 2, tmp_path)
    assert numbers(tmp_path) == numbers(one)


@pytest.fixture
def halfway(two, tmp_path):
    """The folder of two processes as it was after step 4."""
    folder = pathlib.Path(shutil.copytree(two, tmp_path / "halfway"))
    shutil.rmtree(folder / "checkpoints/8")
    return folder


def test_two_processes_resume_what_two_have_saved_bit_for_bit(two, halfway):
    assert "resumed from step 4" in run(2, 4, halfway)
    assert numbers(halfway) == numbers(two)
    ours, theirs = (
        CheckpointReader(folder).record(8)["leaves"] for folder in (halfway, two)
    )
    assert ours == theirs  # with a digest of every leaf


def test_one_process_resumes_what_two_have_saved(two, halfway):
    assert "resumed from step 4" in run(1, 4, halfway)  # half as many devices, too
    ours, theirs = (
        named_leaves(attn_jax.restore(folder, params="raw")[1])
        for folder in (halfway, two)
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        # 4 partial sums over the batch instead of 8: roundings, which Adam passes on in
        # proportion to the rate of 2e-3 at most.
        np.testing.assert_allclose(
            ours[name], theirs[name], rtol=0, atol=1e-6, err_msg=name
        )


def test_processes_that_share_the_rows_of_a_batch_log_the_numbers_of_one(tmp_path):
    # The tensor axis spans the processes, so both hold all rows, not a half each.
    mesh = ["--config.mesh.data=1", "--config.mesh.tensor=2"]
    one = launch(1, 2, tmp_path / "one", *mesh, *QUICK)
    two = launch(2, 1, tmp_path / "two", *mesh, *QUICK)
    finish_all([*one, *two])
    assert numbers(tmp_path / "two") == numbers(tmp_path / "one") != []


@pytest.mark.parametrize("recipe", OTHER_TASKS)
def test_two_processes_log_the_numbers_of_one_whatever_the_task(recipe, tmp_path):
    def start(number, devices):
        folder = f"--workdir={tmp_path / str(number)}"
        command = ["train.py", f"--config={recipe}:debug", folder]
        command += ["--config.duration=4 steps"]
        return launch_command(number, devices, command)

    finish_all([*start(1, 2), *start(2, 1)])
    one, two = numbers(tmp_path / "1"), numbers(tmp_path / "2")
    assert any("train/loss" not in record for record in one)  # an evaluation, too
    assert two == one


def test_a_signal_to_one_process_stops_both_at_the_same_saved_step(tmp_path):
    group = launch(
        2,
        1,
        tmp_path,
        "--config.duration=20000 steps",
        "--config.checkpoint_every=20000 steps",
        *QUICK,
    )
    end = time.monotonic() + 120
    while len(numbers(tmp_path)) < 20:
        assert time.monotonic() < end and group[0].poll() is None
        time.sleep(0.01)
    group[1].send_signal(signal.SIGTERM)  # not the one that writes
    out = finish_all(group, status=75)
    [step] = CheckpointReader(tmp_path).steps()
    assert numbers(tmp_path)[-1]["step"] == step
    assert f"saved step {step:,}" in out
