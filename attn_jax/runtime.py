"""The process around the loop: distributed start, preemption, watchdog."""

import faulthandler
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h, "try again": the run was saved on SIGTERM and is not finished.
EXIT_PREEMPTED = 75

DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"


class Preempted(SystemExit):
    """The run was asked to stop, and has saved; the same command goes on with it."""

    def __init__(self, step: int):
        super().__init__(EXIT_PREEMPTED)
        self.step = step


def start_distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes of this run, if there are any.

    Without arguments the cluster is found by itself (Cloud TPU, GKE, SLURM, Open MPI); where
    none is found the run has one process. Call it before anything touches a device.
    """
    if coordinator is not None:
        jax.distributed.initialize(coordinator, num_processes, process_id)
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        logging.info("one process: no cluster found (%s)", error)


def ask_for_determinism() -> None:
    """Makes GPU reruns bit-identical; XLA reads the flag when the first device is used."""
    flags = os.environ.get("XLA_FLAGS", "")
    if DETERMINISTIC_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC_FLAG}".strip()


def check_determinism(wanted: bool) -> None:
    """Raises ValueError where determinism was asked for too late to be honoured."""
    asked = DETERMINISTIC_FLAG in os.environ.get("XLA_FLAGS", "")
    if wanted and jax.default_backend() == "gpu" and not asked:
        raise ValueError(
            "config.deterministic=True needs an XLA flag that is read when Python first "
            f"touches a device: start with XLA_FLAGS={DETERMINISTIC_FLAG} (train.py, run "
            "as a command, does so itself)."
        )


class Preemption:
    """Whether somebody asked the run to stop (SIGTERM).

    One process catches the signal itself. With several, the notice one of them gets
    must stop all at the same step, which JAX's preemption sync point finds out.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None
        self._catch = (
            jax.process_count() == 1
            and threading.current_thread() is threading.main_thread()
        )

    def __enter__(self) -> "Preemption":
        if self._catch:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._catch:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def requested(self, step: int) -> bool:
        """Call once a step, on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked


class Watchdog:
    """Kills the process with every thread's stack if it is not fed in time.

    A rank that is alive but stuck hangs every other one for ever; no exception can
    be raised inside a collective, so the timer is one of the interpreter's own (it exits
    with status 1 and the stacks on stderr).
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    def __enter__(self) -> "Watchdog":
        self.feed()
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def feed(self) -> None:
        faulthandler.dump_traceback_later(
            self._seconds, exit=True, file=sys.__stderr__ or 2
        )
