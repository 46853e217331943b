"""How the fault campaign runs commands: as processes, or fast in one that stays.

`Commands` starts each command as a user does; most of its seconds are imports. `Worker`
calls the same functions, with the same handling of errors, in one process that lives on,
and returns the same: exit status, stdout, stderr.
"""

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import report

RENEW = 150  # commands of one worker: every training leaves compiled programs in memory
START_SECONDS = 60.0  # a worker's imports
CAPABILITIES = (1, 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of capability.h
PR_CAPBSET_DROP = 24


class Done(NamedTuple):
    status: int | None  # None: no end within the timeout; negative: ended by a signal
    out: str
    err: str
    seconds: float


class Commands:
    """Starts commands in the repository's root, with a compilation cache of their own.

    Args:
        folder: where the cache lives.
        timeout: seconds after which a command counts as hanging.
    """

    def __init__(self, folder: pathlib.Path, timeout: float):
        self.timeout = timeout
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(report.ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }

    def start(self, *arguments: object) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=report.ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen) -> Done:
        began = time.monotonic()
        try:
            out, err = process.communicate(timeout=self.timeout)
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            (out, err), status = process.communicate(), None
        return Done(status, out, err, time.monotonic() - began)

    def run(self, *arguments: object) -> Done:
        return self.finish(self.start(*arguments))


class Worker:
    """Runs commands one after the other in a process that is renewed when one hangs.

    Args:
        commands: whose environment and timeout the worker takes.
    """

    def __init__(self, commands: Commands):
        self.commands = commands
        self.process: Any = None

    def run(self, *arguments: object) -> Done:
        """What `Commands.run` returns. Beside train.py and -m attn_jax: results DIR."""
        self.begin(*arguments)
        return self.end()

    def begin(self, *arguments: object) -> None:
        if self.process is None or self.count == RENEW:
            self.renew()
        self.count += 1
        self.began = time.monotonic()
        self.connection.send([str(argument) for argument in arguments])

    def end(self) -> Done:
        done = None
        with contextlib.suppress(EOFError, ConnectionError):
            if self.connection.poll(self.commands.timeout):
                done = self.connection.recv()
            else:
                done = (None, "", "")
        seconds = time.monotonic() - self.began
        if done is None:  # it crashed
            self.process.join()
            done = (self.process.exitcode or -1, "", "the process ended")
            self.process = None
        elif done[0] is None:
            self.close()
        return Done(*done, seconds)

    def renew(self) -> None:
        self.close()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        before = dict(os.environ)
        os.environ |= self.commands.environment
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        os.environ.clear()
        os.environ |= before
        theirs.close()
        self.count = 0
        if not self.connection.poll(START_SECONDS) or not self.connection.recv():
            sys.exit("error: the worker did not start")

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def serve(connection: Any) -> None:
    """The worker's side: receives arguments, sends (status, stdout, stderr)."""
    os.chdir(report.ROOT)
    sys.path.insert(0, str(report.ROOT))
    import attn_jax.commands.evaluate  # noqa: F401
    import train  # noqa: F401  the imports are what the worker saves

    connection.send(True)
    while True:
        connection.send(capture(connection.recv()))


def capture(arguments: list[str]) -> tuple[int, str, str]:
    """Runs a command as its process would; also what native code prints is captured."""
    from attn_jax import runtime

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        saved = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        status = 0
        try:
            runtime.run_command(lambda: call(arguments))
        except SystemExit as error:
            status = int(error.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in zip((1, 2), saved, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return status, texts[0], texts[1]


def call(arguments: list[str]) -> None:
    import attn_jax
    import train
    from attn_jax import __main__, config

    if arguments[0] == "train.py":
        options = dict(text.removeprefix("--").split("=", 1) for text in arguments[1:])
        overrides = [text[9:] for text in arguments if text.startswith("--config.")]
        train.train(config.load(options["config"], overrides), options["workdir"])
    elif arguments[:2] == ["-m", "attn_jax"]:
        __main__.main(arguments[2:])
    else:  # results
        numbers = attn_jax.evaluate(arguments[1])
        print(json.dumps([numbers, digest_params(arguments[1])]))


def digest_params(workdir: str) -> str:
    """One digest of the parameters and the averages of a run's newest checkpoint."""
    import jax

    import attn_jax

    digest = hashlib.sha256()
    for params in ("raw", "ema"):
        _, variables, _ = attn_jax.restore(workdir, params=params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            digest.update(repr((path, leaf.shape, str(leaf.dtype))).encode())
            digest.update(jax.device_get(leaf).tobytes())
    return digest.hexdigest()


def obey_permissions() -> bool:
    """Whether programs started from now on are bound by permission bits, also as root."""
    if os.name != "posix" or os.getuid() != 0:
        return True
    try:
        library = ctypes.CDLL(None)
        dropped = [
            library.prctl(PR_CAPBSET_DROP, each, 0, 0, 0) for each in CAPABILITIES
        ]
    except (OSError, AttributeError):
        return False
    return not any(dropped)
