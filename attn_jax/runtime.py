"""The process that runs the loop: distributed start, preemption, watchdog, exit status."""

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
from attn_jax.peers import EXIT_TRY_AGAIN, Peers, listen, report_missing

EXIT_PREEMPTED = EXIT_TRY_AGAIN  # saved on SIGTERM or Ctrl-C, but not finished
EXIT_INTERRUPTED = 130  # as shells report Ctrl-C
EXIT_BROKEN_PIPE = 141  # as shells report that the reader of stdout has ended

JOIN_SECONDS = 300  # for which processes wait for each other at the start

PACKAGE = os.path.dirname(os.path.abspath(__file__))

DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"

_peers: Peers | None = None  # of this process, once it has joined a cluster


class Preempted(SystemExit):
    """The run was asked to stop and has been saved; the same command resumes it."""

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
    none, the run has one process. Call this before any device is used. From then on, this
    process ends with status 75 soon after another one has died.

    Raises:
        ValueError: the arguments do not describe a cluster, or no device is found.
    """
    global _peers
    if coordinator is not None:
        _check_cluster(coordinator, num_processes, process_id)
        with report_missing(JOIN_SECONDS):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=JOIN_SECONDS,
            )
    elif num_processes is not None or process_id is not None:
        raise ValueError(
            f"{num_processes=} and {process_id=} need --coordinator=HOST:PORT, the address "
            "of process 0."
        )
    elif not jax.distributed.is_initialized():
        try:
            with report_missing(JOIN_SECONDS):
                jax.distributed.initialize(initialization_timeout=JOIN_SECONDS)
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
    except (RuntimeError, AssertionError) as error:  # AssertionError: no plugin for it
        platforms = jax.config.values["jax_platforms"]
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS={platforms} asks for a device that JAX does not find{reason}. "
            "Unset it, or install JAX with support for that device."
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
    if process_id == 0:
        try:
            listen(int(port)).close()
        except OSError as error:  # JAX would crash
            raise ValueError(
                f"process 0 cannot listen at port {port} of --coordinator={coordinator} "
                f"({error.strerror or error}); choose another port for all processes."
            ) from error


def ask_for_determinism() -> None:
    """Makes reruns on a GPU bit-identical; call it before any device is used."""
    flags = os.environ.get("XLA_FLAGS", "")
    if DETERMINISTIC_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC_FLAG}".strip()


def check_determinism(wanted: bool) -> None:
    """Raises ValueError if determinism was requested too late to be honored."""
    asked = DETERMINISTIC_FLAG in os.environ.get("XLA_FLAGS", "")
    if wanted and jax.default_backend() == "gpu" and not asked:
        raise ValueError(
            "config.deterministic=True needs an XLA flag that is read when a device is "
            f"first used: start with XLA_FLAGS={DETERMINISTIC_FLAG} (the command train.py "
            "sets it itself)."
        )


class Preemption:
    """Records requests to stop the run: SIGTERM or Ctrl-C (SIGINT).

    With several processes, a signal to any of them must stop all at the same step. JAX's
    preemption service ensures that: its handler of SIGTERM notifies the others. A second
    Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[int, Any] = {}
        self._several = jax.process_count() > 1

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            # With several processes, JAX handles SIGTERM.
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
        """Whether to stop after this step; call it at every step, on every process."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked


class Watchdog:
    """Kills the process and prints every thread's stack if `feed` is not called in time.

    A process that hangs blocks all others forever. No exception can be raised inside a
    collective, so this uses a timer of the interpreter (exit status 1).
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

    A mistake of the user or a failure of the machine becomes one line on stderr and status
    1, and nothing is printed after it. Other statuses: 75, the run was saved and stopped,
    or another process died; 130, Ctrl-C; 141, the reader of stdout has ended. Any other
    exception is a bug in this package and shows its traceback.

    Args:
        traceback: show the traceback of every error, and what libraries log.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(
            stream, "reconfigure"
        ):  # the terminal may not be able to encode names
            stream.reconfigure(errors="backslashreplace")
    if not traceback:
        _silence_libraries()
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
    """(exit status, line for the user); the line is None for a bug in this package."""
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
            # A normal exit would wait up to five minutes for the other processes.
            os._exit(status)
    if not traceback and line is not None:
        # Threads of orbax, grain and XLA still print while the interpreter exits.
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silence, stream)
    raise SystemExit(status)


def _print_our_warning(record: python_logging.LogRecord) -> bool:
    """A filter of absl's logger, which orbax shares: prints our warnings, drops the rest."""
    if record.pathname.startswith(PACKAGE) and record.levelno >= python_logging.WARNING:
        line = record.getMessage().removeprefix("WARNING: ")
        with contextlib.suppress(OSError, ValueError):
            print(f"WARNING: {line}", file=sys.stderr, flush=True)
    return False


def _silence_libraries() -> None:
    """Silences what libraries log before raising it, and uncaught errors in threads."""
    logging.set_verbosity(logging.WARNING)
    logging.set_stderrthreshold(logging.FATAL)
    logging.get_absl_logger().addFilter(_print_our_warning)
    for name in ("asyncio", "jax", "orbax", "grain"):
        python_logging.getLogger(name).setLevel(python_logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    threading.excepthook = lambda arguments: None
