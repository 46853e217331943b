"""The commands of this project, started as a person would start them."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
INHERITED = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR")


def start(*arguments, devices=1, **variables):
    """`python ARGUMENTS` in the repository's root, on so many CPU devices."""
    environment = {k: v for k, v in os.environ.items() if k not in INHERITED}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
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
