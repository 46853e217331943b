"""Runs that are stopped, killed or stuck: real processes, ended from outside."""

import json
import os
import pathlib
import signal
import time

import processes
import pytest

from attn_jax import runtime
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


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_run_asked_to_stop_saves_exits_with_75_and_goes_on_exactly(
    straight, compiled, tmp_path, sent
):
    process = start(tmp_path, compiled)
    wait(process, lambda: logged(tmp_path)[-1:] > [60])
    process.send_signal(sent)
    status, out, err = processes.finish(process)
    assert status == 75, err
    last = logged(tmp_path)[-1]
    assert last < TOTAL
    steps, unfinished = saved(tmp_path)
    assert (steps[-1], unfinished) == (last, [])  # no step is lost
    assert f"saved step {last}" in out

    assert f"resumed from step {last}" in resume(tmp_path, compiled)
    assert digests(tmp_path) == straight
    assert logged(tmp_path) == list(range(1, TOTAL + 1))


def test_a_second_interrupt_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with runtime.Preemption() as preemption:
        assert not preemption.requested(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested(2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


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
recipe.watchdog_seconds = 8.0  # the toy compiles in a fraction of it, also under load
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
    assert "Timeout (0:00:08)!" in err
    place = next(n for n, line in enumerate(STUCK.splitlines(), 1) if "sleep" in line)
    assert f'stuck.py", line {place} in waits_for_ever' in err
    assert 'train.py", line ' in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("localhost", 2, 0), "--coordinator=localhost must be HOST:PORT"),
        (("localhost:1", 0, 0), "--num_processes=0 must be 1 or more"),
        (("localhost:1", 2, 2), "--process_id=2 must be from 0 to 1"),
        ((None, 2, None), "num_processes=2 .* need --coordinator"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        runtime.start_distributed(*flags)


# What a command does, its flags, the status, and what it may write to stderr.
COMMANDS = {
    "a user's error is one line": (
        "raise ValueError('patch_size=3 must divide 16.')",
        {},
        1,
        "error: patch_size=3 must divide 16.\n",
    ),
    "nothing is printed after it": (
        """
import atexit, logging, threading
def talk():
    time.sleep(0.5)
    os.write(2, b"native")
    print("python", file=sys.stderr)
    raise OSError("nobody catches this")
threading.Thread(target=talk).start()
atexit.register(print, "at exit")
logging.getLogger("asyncio").error("Future exception was never retrieved")
raise OSError("[Errno 28] No space left on device")
""",
        {},
        1,
        "error: [Errno 28] No space left on device\n",
    ),
    "no memory is one line": (
        "raise MemoryError('Unable to allocate 9 TiB')",
        {},
        1,
        "error: out of memory: Unable to allocate 9 TiB Use a smaller batch_size, or more "
        "micro_batches.\n",
    ),
    "an interrupt is one line": ("raise KeyboardInterrupt", {}, 130, "interrupted\n"),
    "a saved run asks to be started again": ("raise runtime.Preempted(5)", {}, 75, ""),
    "the reader of stdout has gone": ("raise BrokenPipeError(32, 'x')", {}, 141, ""),
    "a text for the end is printed": ("sys.exit('usage: ...')", {}, 1, "usage: ...\n"),
    "a command that ends well says nothing": ("pass", {}, 0, ""),
    "our warnings are shown, and no library's": (
        "from absl import logging; logging.warning('of orbax'); "
        "from attn_jax.restore import warn; warn('WARNING: of ours')",
        {},
        0,
        "WARNING: of ours\n",
    ),
}
RUN = """
import os, sys, time
from attn_jax import runtime
runtime.run_command(lambda: exec(sys.argv[1], globals()), traceback=len(sys.argv) > 2)
"""


@pytest.fixture(scope="module")
def ends():
    """{what: (status, stderr)} of all commands, which run side by side."""
    started = {
        name: processes.start("-c", RUN, body, **variables)
        for name, (body, variables, _, _) in COMMANDS.items()
    }
    ended = {name: processes.finish(process) for name, process in started.items()}
    return {name: (status, err) for name, (status, _, err) in ended.items()}


@pytest.mark.parametrize("what", COMMANDS)
def test_the_end_of_a_command(ends, what):
    _, _, status, err = COMMANDS[what]
    assert ends[what] == (status, err)


@pytest.mark.parametrize(
    ("body", "flags"),
    [("raise ValueError('a user')", ["--traceback"]), ("1 / 0", [])],
    ids=["asked for", "a defect of ours"],
)
def test_a_traceback_is_shown(body, flags):
    process = processes.start("-c", RUN, body, *flags)
    status, _, err = processes.finish(process)
    assert status == 1
    assert err.startswith("Traceback") and "run_command" in err


def test_a_device_that_is_absent_is_one_line():
    body = "runtime.start_distributed()"
    process = processes.start("-c", RUN, body, JAX_PLATFORMS="cuda")
    status, _, err = processes.finish(process)
    assert status == 1
    assert err.startswith(
        "error: JAX_PLATFORMS=cuda asks for a device that JAX does not"
    )
    assert len(err.splitlines()) == 1
