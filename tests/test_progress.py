"""The line at the bottom of a terminal, on a pseudo-terminal."""

import contextlib
import os
import re
import sys
import time

import pytest

from attn_jax.logs import Activity, Log
from attn_jax.progress import REDRAW_SECONDS, arrange

SHOW_CURSOR = "\x1b[?25h"
PARTS = {
    "step": "1,200/4,000",
    "percent": "30%",
    "loss": "loss 0.3123",
    "rate": "812 ex/s",
    "wait": "data wait 1.2%",
    "eta": "ETA 0:46:40",
}


@pytest.mark.parametrize(
    ("columns", "bar", "text"),
    [
        (
            120,
            30,
            "1,200/4,000  30%  loss 0.3123  812 ex/s  data wait 1.2%  ETA 0:46:40",
        ),
        (80, 26, "1,200/4,000  30%  loss 0.3123  812 ex/s  ETA 0:46:40"),
        (60, 19, "30%  loss 0.3123  812 ex/s  ETA 0:46:40"),
        (45, 9, "loss 0.3123  812 ex/s  ETA 0:46:40"),
        (30, 17, "ETA 0:46:40"),
        (14, 0, "ETA 0:46:40"),
        (5, 0, "30%"),
    ],
)
def test_the_remaining_time_is_the_last_to_be_cut(columns, bar, text):
    assert arrange(PARTS, columns) == (bar, text)


def test_no_line_is_wider_than_the_terminal():
    for columns in range(1, 120):
        for parts in (PARTS, PARTS | {"activity": "evaluating test 3/40  7 s"}, {}):
            bar, text = arrange(parts, columns)
            assert bar + (2 if bar and text else 0) + len(text) <= columns


def test_an_activity_says_how_far_and_how_long():
    assert Activity("evaluating test", 10.0, 40, 3).describe(17.2) == (
        "evaluating test 3/40  7 s"
    )
    assert Activity("saving step 5", 10.0, 1).describe(11.0) == "saving step 5  1 s"


@contextlib.contextmanager
def open_terminal():
    """The other end of a pseudo-terminal of 80 columns that is both stdout and stderr.

    No fixture, because pytest sets both again before the test begins.
    """
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    with (
        pytest.MonkeyPatch.context() as patch,
        open(theirs, "w", encoding="utf-8") as stream,
    ):
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield ours


def start(workdir):
    return Log(workdir, start_step=0, total_steps=4, batch_size=8)


def read_until(terminal, wanted):
    """What was written, without colors, up to a text that must come within 20 s."""
    seen, end = "", time.monotonic() + 20
    while wanted not in seen:
        assert time.monotonic() < end, seen
        time.sleep(0.05)
        try:
            seen += os.read(terminal, 1 << 16).decode()
        except BlockingIOError:
            continue
        seen = re.sub(r"\x1b\[[0-9;]*m", "", seen)
    return seen


def test_a_terminal_shows_what_a_run_is_doing(tmp_path):
    long = "evaluate: python -m attn_jax evaluate --workdir=" + 10 * "long/"
    with open_terminal() as terminal, start(tmp_path) as log:
        read_until(terminal, "compiling ...  0 s")
        log.step(1, seconds_waiting=0.0)
        log.step(2, seconds_waiting=0.0)
        log.write(2, {"train/loss": 0.25}, training=True)
        assert "2/4" in read_until(terminal, "loss 0.25")
        with log.pause(None, "evaluating test", 7):
            log.tick()
            read_until(terminal, "evaluating test 1/7  0 s")
        log.say(long)
        # In one piece: of two lines, no one could copy the command.
        read_until(terminal, long)
        log.close()
        read_until(terminal, SHOW_CURSOR)


def test_a_terminal_that_went_away_is_reported_once_and_stops_nothing(
    tmp_path, monkeypatch
):
    said = []
    monkeypatch.setattr(Log, "say", lambda log, text: said.append(text))
    with open_terminal() as terminal, start(tmp_path) as log:
        os.close(terminal)
        time.sleep(4 * REDRAW_SECONDS)  # some frames
        log.step(1, seconds_waiting=0.0)
        log.write(1, {"train/loss": 0.25}, training=True)
    assert '"train/loss": 0.25' in (tmp_path / "metrics.jsonl").read_text()
    [warning] = [text for text in said if text.startswith("WARNING")]
    assert "the progress line" in warning


def test_a_line_for_a_terminal_that_went_away_is_lost_without_an_error(tmp_path):
    with open_terminal() as terminal, start(tmp_path) as log:
        os.close(terminal)
        log.say("hello")
