"""The end of one of two processes, and what the other one makes of it."""

import contextlib
import os
import signal
import socket
import time

import processes
import pytest
from processes import launch, launch_command

LINE = "error: another process ended; run the same command again"
SETTINGS = [
    "--config.duration=200000 steps",
    "--config.evals={}",
    "--config.keep_best=null",
]

COMMAND = """
import os, sys, time
from attn_jax import runtime

coordinator, number, process = (word.partition("=")[2] for word in sys.argv[2:])
process = int(process)

def command():
    runtime.start_distributed(coordinator, int(number), process)
    exec(sys.argv[1])

runtime.run_command(command)
"""


def end_all(group, limit=60):
    """[(status, stdout, stderr)] of all; none may take longer than the limit."""
    try:
        return [processes.finish(process, timeout=limit) for process in group]
    finally:
        for process in group:
            process.kill()


@pytest.mark.parametrize(
    ("victim", "moment"), [(0, "while the step compiles"), (1, "between steps")]
)
def test_a_process_ends_with_one_line_when_another_is_killed(tmp_path, victim, moment):
    group = launch(2, 1, tmp_path, *SETTINGS)
    for line in group[0].stdout:
        # The step is compiled after "started", and has been at the first record.
        if line.startswith("started" if "compiles" in moment else "first step"):
            break
    group[victim].kill()
    began = time.monotonic()
    ends = end_all(group)
    assert time.monotonic() - began < 15  # 0.1 to 96 s before
    assert ends[victim][0] == -signal.SIGKILL
    status, _, err = ends[1 - victim]
    assert status == 75, err
    lines = err.splitlines()
    assert lines[-1] == LINE
    assert len(lines) <= 3, err  # 63 to 300 lines before; progress may be among them


def run(body, **variables):
    command = ["-c", COMMAND, body]
    return end_all(launch_command(2, 1, command, **variables))


def test_an_error_of_one_process_alone_ends_the_other():
    body = "if process: raise ValueError('only here')\ntime.sleep(60)"
    (status, _, err), (failed, _, own) = run(body)
    assert (failed, own) == (1, "error: only here\n")
    assert (status, err) == (75, LINE + "\n")


@pytest.mark.parametrize("late", [0, 1])
def test_an_error_of_all_is_reported_by_each(late):
    body = f"time.sleep(2 * (process == {late}))\nraise ValueError('the same')"
    assert run(body) == [(1, "", "error: the same\n")] * 2


JOIN = """
import sys
from attn_jax import peers, runtime

runtime.JOIN_SECONDS, peers.PATIENCE_SECONDS = 4, 1.0
coordinator, process = sys.argv[1:]
runtime.run_command(lambda: runtime.start_distributed(coordinator, 2, int(process)))
"""


def test_a_process_that_nobody_joins_says_so_in_one_line():
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("localhost", 0)))
            for _ in range(3)
        ]
        one, other, used = (f"localhost:{s.getsockname()[1]}" for s in servers)
        for server in servers[:2]:
            server.close()
        group = [
            processes.start("-c", JOIN, *words)
            for words in ((one, 0), (other, 1), (used, 0))
        ]
        ends = end_all(group)
    for number, (status, _, err) in enumerate(ends[:2]):
        waiting, error = err.splitlines()
        assert status == 1
        assert waiting.startswith("waiting up to 4 s for the 2 processes")
        assert error.startswith(
            "error: not all 2 processes of this run joined within 4 s"
        )
        assert error.endswith(f"(this is process {number}).")
    status, _, err = ends[2]
    assert status == 1
    assert err.startswith("error: process 0 cannot listen at port")
    assert len(err.splitlines()) == 1


def test_processes_with_different_configs_are_refused(tmp_path):
    body = f"""
import train
from attn_jax import config
recipe = "configs/vit/digits.py:debug"
train.train(config.load(recipe, [f"seed={{process}}"]), {str(tmp_path)!r})
"""
    (status, _, err), (refused, _, own) = run(body)
    assert (status, refused) == (1, 1)
    assert "the config of another process is not the same" in err
    assert (
        "error: the config of process 1 is not that of process 0: seed=1, not 0." in own
    )
    assert not (tmp_path / "checkpoints").exists()


def test_the_end_of_a_finished_process_is_no_death():
    body = "time.sleep(2 * process)\nprint(process)"
    assert [status for status, _, _ in run(body)] == [0, 0]


def test_an_abort_of_another_cause_stays_an_abort():
    body = """
if process == 0: time.sleep(60)
os.write(2, b"why it aborts")
os.abort()
"""
    (status, _, err), (aborted, _, own) = run(body)
    assert (aborted, own) == (-signal.SIGABRT, "why it aborts")
    assert (status, err) == (75, LINE + "\n")


def test_what_native_code_writes_is_shown_later_but_in_full():
    body = "os.write(2, b'native\\n'); print('python', file=sys.stderr)"
    for _, _, err in run(body):
        assert err.splitlines() == ["python", "native"]


def test_evaluate_and_analyze_join_the_cluster(tmp_path):
    settings = ["--config.duration=2 steps"]
    status, _, err = processes.finish(
        processes.start(*processes.train(tmp_path, *settings))
    )
    assert status == 0, err
    words = ["-m", "attn_jax", "evaluate", f"--workdir={tmp_path}"]
    [(status, out, err)] = end_all(launch_command(1, 2, words))
    assert status == 0, err
    for command in "evaluate", "analyze":
        words = ["-m", "attn_jax", command, f"--workdir={tmp_path}"]
        (first, printed, err), (second, silent, _) = end_all(
            launch_command(2, 1, words), limit=120
        )
        assert (first, second) == (0, 0), err
        lines = [line for line in printed.splitlines() if "[Gloo]" not in line]
        assert [line for line in silent.splitlines() if "[Gloo]" not in line] == []
        if command == "evaluate":
            assert lines == out.splitlines()[-1:]
        else:
            assert lines and all(os.path.exists(line) for line in lines)
