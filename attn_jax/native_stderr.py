"""Delays what native code writes to stderr, so that one line of ours can replace it."""

import atexit
import contextlib
import os
import sys
import threading
import time

HOLD_SECONDS = 1.0  # how long text of native code is held back from stderr


class NativeStderr:
    """Delays what native code writes to file descriptor 2 by a second."""

    def __init__(self) -> None:
        self._direct = os.dup(2)
        self._pipe, write = os.pipe()
        sys.stderr.flush()
        os.dup2(write, 2)
        os.close(write)
        self._python = sys.stderr
        sys.stderr = open(
            self._direct,
            "w",
            buffering=1,
            encoding="utf-8",
            errors="backslashreplace",
            closefd=False,
        )
        self._held: list[tuple[float, bytes]] = []
        self._seconds = HOLD_SECONDS
        self._restored = False
        self._lock = threading.Lock()
        threading.Thread(target=self._pump, name="stderr", daemon=True).start()
        threading.Thread(target=self._release, name="stderr-out", daemon=True).start()
        atexit.register(self.restore)

    def write(self, text: str) -> None:
        """Writes directly to stderr, and drops what is held back."""
        with self._lock:
            self._held = []
            with contextlib.suppress(OSError):
                os.write(self._direct, text.encode())

    def hold(self) -> None:
        """Holds everything back until `restore`."""
        self._seconds = float("inf")

    def restore(self) -> None:
        """Writes what is held back, and stops holding back."""
        if self._restored:
            return
        self._restored = True
        with contextlib.suppress(OSError):
            os.dup2(self._direct, 2)
        time.sleep(0.05)  # until `_pump` has read the rest
        self._write_held(before=float("inf"))

    def _pump(self) -> None:
        while text := os.read(self._pipe, 65536):
            with self._lock:
                self._held.append((time.monotonic(), text))

    def _release(self) -> None:
        while not self._restored:
            time.sleep(HOLD_SECONDS / 4)
            self._write_held(before=time.monotonic() - self._seconds)

    def _write_held(self, *, before: float) -> None:
        with self._lock:
            due = [text for at, text in self._held if at <= before]
            self._held = self._held[len(due) :]
            with contextlib.suppress(OSError):
                for text in due:
                    os.write(self._direct, text)
