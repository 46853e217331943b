"""The progress of a run on a terminal: one line at its bottom, redrawn by a thread.

A thread, because the training thread is blocked while it compiles or evaluates, and must not
wait for a terminal that is stopped.
"""

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from attn_jax.records import Attempts

REDRAW_SECONDS = 0.2  # faster redrawing only flickers
BAR, WIDER, WIDEST = 8, 16, 30  # columns of the bar: at least, wanted, at most
GAP = "  "  # between two parts

# The parts in their order on the line, and the most important first: where the terminal is too
# narrow, the last ones of the second list are left out.
PLACES = "step percent activity loss rate wait mfu memory eta".split()
IMPORTANCE = "eta activity bar loss rate wider_bar step percent wait mfu memory".split()


class ProgressLine:
    """A bar and its numbers on a terminal. Call `stop` at the end.

    Args:
        console: the terminal.
        measure: called for every frame; (share of the work that is done, {part: text}) with
            parts of `PLACES`. An empty text is left out.
        attempts: reports a terminal that cannot be written, once.
    """

    def __init__(
        self,
        console: Console,
        measure: Callable[[], tuple[float, dict[str, str]]],
        attempts: Attempts,
    ):
        self._console, self._measure, self._attempts = console, measure, attempts
        self._live = Live(
            get_renderable=lambda: self,
            console=console,
            auto_refresh=False,
            # What others print meanwhile must appear above, unless stdout is redirected.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._try(self._live.start)
        self._thread.start()

    def print(self, text: str) -> None:
        """Prints a line above; the terminal wraps it, so that it can be copied as one line."""
        line = functools.partial(self._console.print, Text(text), soft_wrap=True)
        self._try(line)

    def stop(self) -> None:
        """Draws the last state, which stays, and gives the terminal back."""
        self._stopped.set()
        # Not for ever: the terminal may be stopped by Ctrl-S.
        self._thread.join(timeout=5 * REDRAW_SECONDS)
        self._try(self._live.stop)

    def _redraw(self) -> None:
        while not self._stopped.wait(REDRAW_SECONDS):
            self._try(self._live.refresh)

    def _try(self, action: Callable[[], None]) -> None:
        self._attempts.run("the progress line", self._guard, action)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError:
            discard(self._console.file)
            raise

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType | Segment]:
        share, parts = self._measure()
        width, text = arrange(parts, options.max_width)
        if width:
            yield from ProgressBar(1.0, share, width).__rich_console__(console, options)
        line = GAP + text if width and text else text
        yield Text(line, no_wrap=True, overflow="ellipsis")


def arrange(parts: Mapping[str, str], columns: int) -> tuple[int, str]:
    """(columns of the bar, or 0 for none; the parts that fit beside it, in a line of text)."""
    sizes = {name: len(text) + len(GAP) for name, text in parts.items() if text}
    sizes |= {"bar": BAR + len(GAP), "wider_bar": WIDER - BAR}
    left = columns + len(GAP)  # the first part has no gap before it
    shown = set()
    for name in IMPORTANCE:
        if name in sizes and sizes[name] <= left:
            shown.add(name)
            left -= sizes[name]
    if "wider_bar" in shown:
        left += WIDER - BAR
    text = GAP.join(parts[name] for name in PLACES if name in shown)
    return (min(BAR + left, WIDEST) if "bar" in shown else 0), text


def discard(stream: IO[str]) -> None:
    """Lets a stream that cannot be written end in the null device.

    Otherwise the interpreter, which flushes it at exit, would fail.
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
