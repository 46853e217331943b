"""The process around the loop: distributed start, preemption, watchdog, exit status."""

import contextlib
import faulthandler
import logging as python_logging
import os
import signal
import sys
import threading
import traceback as python_traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import jax
from absl import logging
from jax.experimental import multihost_utils

from attn_jax.compilation_cache import use_compilation_cache
from attn_jax.peers import EXIT_TRY_AGAIN, Peers

# The run was saved on SIGTERM or Ctrl-C and is not finished.
EXIT_PREEMPTED = EXIT_TRY_AGAIN
EXIT_INTERRUPTED = 130  # as shells report Ctrl-C
EXIT_BROKEN_PIPE = 141  # as shells report a reader of stdout that has gone

PACKAGE = os.path.dirname(os.path.abspath(__file__))

DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"

_peers: Peers | None = None  # of this process, once it has joined a cluster


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

    Without arguments JAX looks for a cluster (Cloud TPU, GKE, SLURM, Open MPI); if it finds
    none, the run has one process. Call this before anything touches a device. From then
    on this process ends soon after another one has died, with status 75.

    Raises:
        ValueError: the arguments do not describe a cluster, or no device is found.
    """
    global _peers
    if coordinator is not None:
        _check_cluster(coordinator, num_processes, process_id)
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif num_processes is not None or process_id is not None:
        raise ValueError(
            f"{num_processes=} and {process_id=} need --coordinator=HOST:PORT, the address "
            "of process 0."
        )
    elif not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize()
        except ValueError as error:
            logging.info("one process: no cluster found (%s)", error)
        except RuntimeError as error:  # a device is in use, as in a notebook
            logging.info("one process: too late to join a cluster (%s)", error)
    _check_devices()
    if _peers is None and jax.process_count() > 1:
        _peers = Peers()


def _check_devices() -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter without the plugin
        platforms = jax.config.values["jax_platforms"]
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS={platforms} asks for a device that JAX does not find{reason}. "
            "Unset it, or install JAX for that device."
        ) from error


def _check_cluster(
    coordinator: str, num_processes: int | None, process_id: int | None
) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator={coordinator} must be HOST:PORT of process 0.")
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--num_processes={num_processes} must be 1 or more.")
    if process_id is not None and num_processes is not None:
        if not 0 <= process_id < num_processes:
            raise ValueError(
                f"--process_id={process_id} must be from 0 to {num_processes - 1}, one "
                f"less than --num_processes={num_processes}."
            )


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
    """Whether somebody asked the run to stop, by SIGTERM or Ctrl-C (SIGINT).

    With several processes, a signal to any one of them must stop all at the same step.
    JAX's preemption service does that: its own handler of SIGTERM tells the others. A
    second Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[int, Any] = {}
        self._several = jax.process_count() > 1

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            # With several processes SIGTERM belongs to JAX.
            caught = [signal.SIGINT, *([] if self._several else [signal.SIGTERM])]
            self._previous = {n: signal.signal(n, self._note) for n in caught}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Call once a step, on every process."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked


class Watchdog:
    """Kills the process and prints every thread's stack if `feed` is not called in time.

    A process that is alive but stuck blocks all others forever. No exception can be raised
    inside a collective, so this is a timer of the interpreter (exit status 1).
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    def __enter__(self) -> "Watchdog":
        self.feed()
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def feed(self) -> None:
        # Not file descriptor 2, which `peers` delays.
        file = sys.__stderr__ if _peers is None else sys.stderr
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=file or 2)


def run_command(function: Callable[[], None], *, traceback: bool = False) -> None:
    """Runs the body of a command; ends the process if it fails.

    An error of the user or of the machine becomes one line on stderr and status 1, and
    nothing is printed after it. 75: saved and stopped, or another process died; 130:
    Ctrl-C; 141: the reader of stdout has gone. Any other exception is a defect of ours
    and shows its traceback.

    Args:
        traceback: show the traceback of every error, and what libraries log.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name may not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    if not traceback:
        _quieten_libraries()
    use_compilation_cache()
    try:
        function()
        sys.stdout.flush()
    except SystemExit as error:
        if isinstance(error.code, str):
            _end(1, error, error.code, traceback=False)
        _end(error.code or 0, error, "", traceback=False)
    except BaseException as error:
        if _peers is not None:
            _peers.settle()
            if _peers.failed and not isinstance(error, ValueError | OSError):
                _peers.end()
        status, line = explain(error)
        _end(status, error, line, traceback)
    if _peers is not None:
        _peers.leave(failed=False)


def explain(error: BaseException) -> tuple[int, str | None]:
    """(exit status, line for the user); the line is None for a defect of ours."""
    text = str(error) or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted"
    if isinstance(error, BrokenPipeError):
        return EXIT_BROKEN_PIPE, ""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return 1, (
            f"error: out of memory: {text.splitlines()[0]} Use a smaller batch_size, or "
            "more micro_batches."
        )
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return 1, f"error: {text}"
    return 1, None


def _end(
    status: int, error: BaseException, line: str | None, traceback: bool
) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        if line is None or (traceback and line):
            python_traceback.print_exception(error)
        elif line:
            print(line, file=sys.stderr)
        sys.stderr.flush()
    if _peers is not None:
        _peers.leave(failed=status not in (0, EXIT_PREEMPTED))
        if status not in (0, EXIT_PREEMPTED):
            # Leaving JAX's cluster waits for the others, up to five minutes.
            os._exit(status)
    if not traceback and line is not None:
        # Threads of orbax, grain and XLA still print while the interpreter ends.
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silence, stream)
    raise SystemExit(status)


def _print_our_warning(record: python_logging.LogRecord) -> bool:
    """A filter of absl's logger, which orbax shares: a warning of ours becomes a line."""
    if record.pathname.startswith(PACKAGE) and record.levelno >= python_logging.WARNING:
        line = record.getMessage().removeprefix("WARNING: ")
        with contextlib.suppress(OSError, ValueError):
            print(f"WARNING: {line}", file=sys.stderr, flush=True)
    return False


def _quieten_libraries() -> None:
    """Libraries log what they also raise, and their threads print what nobody catches."""
    logging.set_verbosity(logging.WARNING)
    logging.set_stderrthreshold(logging.FATAL)
    logging.get_absl_logger().addFilter(_print_our_warning)
    for name in ("asyncio", "jax", "orbax", "grain"):
        python_logging.getLogger(name).setLevel(python_logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    threading.excepthook = lambda arguments: None
