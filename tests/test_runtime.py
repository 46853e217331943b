"""Runs that are stopped, killed or stuck: real processes, ended from outside."""

import json
import pathlib
import signal
import time

import processes
import pytest

from attn_jax.checkpoint_reader import CheckpointReader

TOTAL = 300  # steps of some milliseconds: time enough to be hit in the middle
SETTINGS = [
    f"--config.duration={TOTAL} steps",
    "--config.evals={}",
    "--config.keep_best=null",
    "--config.checkpoint_every=50 steps",
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Where programs are kept between runs. Only the first run, which nobody kills,
    compiles anything worth keeping; so no entry can be torn."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def straight(compiled, tmp_path_factory):
    """The final digests of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("straight")
    resume(folder, compiled)
    return digests(folder)


def start(folder, compiled):
    command = processes.train(folder, *SETTINGS)
    return processes.start(
        *command,
        JAX_COMPILATION_CACHE_DIR=compiled,
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )


def resume(folder, compiled):
    """Runs the command to its end; returns what it printed."""
    status, out, err = processes.finish(start(folder, compiled))
    assert status == 0, err
    return out


def digests(folder):
    """Of every leaf of the final state: bit for bit the same if these are equal."""
    return CheckpointReader(folder).record(TOTAL)["leaves"]


def logged(folder):
    """The steps in metrics.jsonl; a line that is being written does not count yet."""
    path = pathlib.Path(folder) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def saved(folder):
    """The steps of finished checkpoints, and the names of unfinished ones."""
    folder = pathlib.Path(folder) / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    steps = sorted(int(name) for name in names if name.isdigit())
    return steps, [name for name in names if "tmp" in name]


def wait(process, condition, timeout=120):
    """Polls until the condition holds while the process lives."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"ended too early:\n{process.communicate()}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def kill(process):
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_run_stopped_by_sigterm_saves_exits_with_75_and_goes_on_exactly(
    straight, compiled, tmp_path
):
    process = start(tmp_path, compiled)
    wait(process, lambda: logged(tmp_path)[-1:] > [60])
    process.send_signal(signal.SIGTERM)
    status, out, err = processes.finish(process)
    assert status == 75, err
    last = logged(tmp_path)[-1]
    assert last < TOTAL
    steps, unfinished = saved(tmp_path)
    assert (steps[-1], unfinished) == (last, [])  # no step is lost
    assert f"SIGTERM: saved step {last}" in out

    assert f"resumed from step {last}" in resume(tmp_path, compiled)
    assert digests(tmp_path) == straight
    assert logged(tmp_path) == list(range(1, TOTAL + 1))


def test_a_run_killed_between_saves_goes_on_from_the_last_one_exactly(
    straight, compiled, tmp_path
):
    process = start(tmp_path, compiled)
    wait(process, lambda: saved(tmp_path)[0] and logged(tmp_path)[-1] > 60)
    kill(process)
    newest = saved(tmp_path)[0][-1]
    assert logged(tmp_path)[-1] < TOTAL

    assert f"resumed from step {newest}" in resume(tmp_path, compiled)
    assert digests(tmp_path) == straight
    assert logged(tmp_path) == list(range(1, TOTAL + 1))


def test_a_run_killed_while_it_saves_goes_on_from_the_save_before_exactly(
    straight, compiled, tmp_path
):
    for attempt in range(5):  # a save takes a tenth of a second and may be missed
        folder = tmp_path / str(attempt)
        process = start(folder, compiled)
        wait(process, lambda folder=folder: all(saved(folder)))
        kill(process)
        steps, unfinished = saved(folder)
        if unfinished:
            break
    assert unfinished

    assert f"resumed from step {steps[-1]}" in resume(folder, compiled)
    assert digests(folder) == straight
    assert saved(folder)[1] == []  # the torn one has been cleaned away


STUCK = """
import sys
import time

import flax.linen as nn

import train
from attn_jax import config
from attn_jax.data import pipeline

class Toy(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        return {"logits": nn.Dense(10)(images.reshape(len(images), -1))}

def waits_for_ever(batches):
    yield next(batches)
    yield next(batches)
    time.sleep(3600)

original = pipeline.training_batches
pipeline.training_batches = lambda *a, **k: waits_for_ever(original(*a, **k))
recipe = config.load("configs/vit/digits.py:debug").unlock()
recipe.model, recipe.sharding_rules = {"cls": "__main__:Toy"}, []
recipe.watchdog_seconds = 3.0  # the toy compiles in a fraction of it
train.train(recipe, sys.argv[1])
"""


def test_a_step_that_hangs_ends_the_run_with_a_stack_trace_that_names_the_place(
    tmp_path,
):
    (tmp_path / "stuck.py").write_text(STUCK)
    process = processes.start(
        tmp_path / "stuck.py", tmp_path / "run", PYTHONPATH=str(processes.ROOT)
    )
    began = time.monotonic()
    wait(process, lambda: logged(tmp_path / "run") == [1, 2])
    status, _, err = processes.finish(process)
    assert status == 1
    assert time.monotonic() - began < 60  # mostly imports; it would sleep for an hour
    assert "Timeout (0:00:03)!" in err
    place = next(n for n, line in enumerate(STUCK.splitlines(), 1) if "sleep" in line)
    assert f'stuck.py", line {place} in waits_for_ever' in err
    assert 'train.py", line ' in err
