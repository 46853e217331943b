"""The commands of this project, started as a person would start them."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
REPLACED = ("JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR")


def start(*arguments, devices=1, folder=ROOT, **variables):
    """`python ARGUMENTS` in the folder, on so many CPU devices."""
    environment = {k: v for k, v in os.environ.items() if k not in REPLACED}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONUNBUFFERED": "1",
        # Most of the time of these processes is compilation, of programs that take a few steps.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **variables,
    }
    if not {"JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"} & variables.keys():
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # leaves the user's alone
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout=240):
    """(exit status, stdout, stderr); a process that outlives the timeout is killed."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {timeout} s:\n{out}\n{err}") from None
    return process.returncode, out, err


def train(workdir, *settings):
    """Arguments of a run of the digits recipe that takes a second once it is compiled."""
    return [
        "train.py",
        "--config=configs/vit/digits.py:debug",
        f"--workdir={workdir}",
        "--config.model.depth=1",
        "--config.model.width=8",
        "--config.model.mlp_width=8",
        *settings,
    ]


def launch(number, devices, folder, *settings, **variables):
    """Training by so many processes of so many devices each."""
    return launch_command(number, devices, train(folder, *settings), **variables)


def launch_command(number, devices, command, **variables):
    """So many processes of so many devices each, which find each other by flags.

    A single one forms a cluster of its own: it then sums over its devices in the same order
    as several processes do. Outside a cluster the order is another, and losses differ in
    the last digit.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        *command,
        f"--coordinator=localhost:{port}",
        f"--num_processes={number}",
    ]
    return [
        start(*command, f"--process_id={i}", devices=devices, **variables)
        for i in range(number)
    ]


def finish_all(group, status=0):
    """Waits for all; returns what the first one printed."""
    try:
        ends = [finish(process) for process in group]
    finally:
        for process in group:
            process.kill()  # one that waits for another that failed
    for code, _, err in ends:
        assert code == status, err
    return ends[0][1]
