"""Ends a process when another process of its run has died or never joined.

Without this, JAX notices a death after 68 to 85 seconds, and aborts with pages of C++
text. Here every process keeps a TCP connection to process 0: the operating system closes
the sockets of a killed process at once, and keep-alive packets reveal a lost machine.
Process 0 ends when any other process dies, and the others end when process 0 does.
"""

import contextlib
import ctypes
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jax._src import distributed  # for its key-value store, as orbax uses it

from attn_jax.native_stderr import NativeStderr

EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes the run
MESSAGE = "error: another process ended; run the same command again"
# A process that fails tells the others before it ends. They have this long to report the
# same error themselves; then they end too.
GRACE_SECONDS = 5.0
PATIENCE_SECONDS = 10.0  # after which a process that waits for others says so
KEY = "attn_jax/peers"
FINISHED, FAILED = b"0", b"1"  # the last byte that a process sends before it exits


@contextlib.contextmanager
def report_missing(seconds: int) -> Iterator[None]:
    """Says in one line what JAX is waiting for while the processes of a run join.

    If they do not join within `seconds`, JAX aborts with a page of C++ text. This process
    then ends with one line and status 1 instead.
    """
    run = distributed.global_state
    held: list[NativeStderr] = []

    def end() -> None:
        held[0].write(
            f"error: not all {run.num_processes} processes of this run joined within {seconds} "
            "s. Start each with the same command, number and coordinator, and make sure "
            f"that {run.coordinator_address}, process 0, can be reached from every machine "
            f"(this is process {run.process_id}).\n"
        )
        os._exit(1)

    def wait() -> None:
        if run.coordinator_address is None:
            return  # no cluster
        print(
            f"waiting up to {seconds} s for the {run.num_processes} processes of this run to "
            f"join at {run.coordinator_address}",
            file=sys.stderr,
        )
        held.append(NativeStderr())
        held[0].hold()
        handle_abort(end)

    timer = threading.Timer(PATIENCE_SECONDS, wait)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if held:
            handle_abort(None)
            held[0].restore()


def listen(port: int) -> socket.socket:
    """Listens at a port of every interface; 0: at any free port."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True
        )
    return socket.create_server(("", port))


class Peers:
    """The connections of this process to the other processes of its run.

    Also redirects file descriptor 2: text of native code appears a second later, and not
    at all if this process ends because another one died. `sys.stderr` is not delayed.
    """

    def __init__(self) -> None:
        state = distributed.global_state
        assert state.client is not None and state.coordinator_address is not None
        self._store, self._address = state.client, state.coordinator_address
        self._failed_at: float | None = None  # when another process reported an error
        self._ending = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._connections: list[socket.socket] = []
        self._stderr = NativeStderr()
        if state.process_id == 0:
            self._listen()
        else:
            self._connect()
        threading.Thread(target=self._watch, name="peers", daemon=True).start()
        self._handle_abort()

    def leave(self, *, failed: bool) -> None:
        """Tells the others that this process is about to exit, with or without an error."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(FAILED if failed else FINISHED)
        if failed:  # the error has been reported; drop what libraries add to it
            self._stderr.write("")
        self._stderr.restore()

    def settle(self) -> None:
        """Waits before an error is reported: the death of a process may have caused it.

        In that case the watching thread ends this process during the wait.
        """
        time.sleep(1.0)

    @property
    def failed(self) -> bool:
        """Whether another process has reported an error."""
        return self._failed_at is not None

    def end(self) -> NoReturn:
        """Ends this process at once, with one line on stderr."""
        self._ending.acquire()  # never released: only the first caller writes
        self._stderr.write(f"{MESSAGE}\n")
        os._exit(EXIT_TRY_AGAIN)

    def _listen(self) -> None:
        server = listen(0)
        self._token = secrets.token_hex(16)
        port = server.getsockname()[1]
        self._store.key_value_set(KEY, f"{port} {self._token}")
        self._server = server
        self._selector.register(server, selectors.EVENT_READ)

    def _connect(self) -> None:
        value = self._store.blocking_key_value_get(KEY, 60_000)
        port, token = value.split()
        host = self._address.rpartition(":")[0].strip("[]")
        try:
            connection = socket.create_connection((host, int(port)), timeout=10)
            connection.sendall(token.encode())
        except OSError as error:
            print(
                f"WARNING: no connection to {host}:{port} ({error}); the death of another "
                "process will be noticed only after minutes.",
                file=sys.stderr,
            )
            return
        self._add(connection)

    def _accept(self) -> None:
        connection, _ = self._server.accept()
        connection.settimeout(5.0)
        token = b""
        with contextlib.suppress(OSError):
            token = connection.recv(len(self._token), socket.MSG_WAITALL)
        if secrets.compare_digest(token, self._token.encode()):
            self._add(connection)
        else:
            connection.close()

    def _add(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in ("IDLE", 5), ("INTVL", 5), ("CNT", 3):  # 20 s in all
            if hasattr(socket, f"TCP_KEEP{name}"):
                option = getattr(socket, f"TCP_KEEP{name}")
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._connections.append(connection)
        self._selector.register(connection, selectors.EVENT_READ)

    def _watch(self) -> None:
        while True:
            for key, _ in self._selector.select(timeout=0.5):
                if key.fileobj is getattr(self, "_server", None):
                    self._accept()
                else:
                    self._read(key.fileobj)
            if self._failed_at and time.monotonic() > self._failed_at + GRACE_SECONDS:
                self.end()

    def _read(self, connection: Any) -> None:
        try:
            last = connection.recv(1)
        except OSError:
            last = b""
        if last not in (FINISHED, FAILED):
            self.end()
        if last == FAILED:
            self._failed_at = self._failed_at or time.monotonic()
            self._stderr.hold()  # JAX will print its own view of the failure
        self._selector.unregister(connection)

    def _handle_abort(self) -> None:
        """Delays the abort of JAX, so that `_watch` can end this process first.

        JAX aborts when it loses process 0, often before `_watch` wakes up.
        """

        def wait() -> None:
            self._stderr.hold()
            time.sleep(GRACE_SECONDS + 1.0)
            self._stderr.restore()  # still running, so the abort has another cause
            handle_abort(None)  # abort() continues

        handle_abort(wait)


_abort_handler: Any = None  # ctypes keeps no reference of its own


def handle_abort(function: Callable[[], None] | None) -> None:
    """Sets what happens first when native code aborts this process; None: nothing.

    Python's signal handlers do not run inside abort(), but one set through ctypes does.
    """
    global _abort_handler
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    handler = None
    if function is not None:  # else the last one is kept: it may be running
        _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: function())
        handler = ctypes.cast(_abort_handler, ctypes.c_void_p)
    library.signal(signal.SIGABRT, handler)
