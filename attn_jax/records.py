"""The metrics of a run on disk: `metrics.jsonl` and TensorBoard's event files."""

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter, directory_check
from tensorboardX.summary import scalar

Record = dict[str, Any]

FLUSH_SECONDS = 10.0  # a killed process loses this much of its TensorBoard file
RETRY_SECONDS = 60.0  # after a failed write


class MetricsFile:
    """`metrics.jsonl`, one JSON object per line, cut back to where the run resumes.

    Attributes:
        seconds: training time up to the last kept record.
        damaged: number of lines that were dropped because they are not valid records.
        lost: whether a resumed run has no record of its earlier steps.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: epath.Path, *, start_step: int):
        self._path = path
        self._torn = False  # whether the last write may have ended within a line
        self.seconds, self.damaged, self.lost = 0.0, 0, start_step > 0
        if path.exists():
            self._cut_back(start_step)
        probe = path.parent / "metrics.jsonl.new"
        probe.write_text("x" * 4096)  # a full disk still accepts an empty file
        probe.unlink()

    def append(self, record: Mapping[str, float | None]) -> None:
        line = json.dumps(record) + "\n"
        start, self._torn = "\n" if self._torn else "", True
        with self._path.open("a") as file:
            file.write(start + line)
        self._torn = False

    def _cut_back(self, start_step: int) -> None:
        """Drops damaged lines, and records after `start_step`: the run writes them again.

        A run from step 0 starts with an empty file.
        """
        records, self.damaged = read_records(self._path) if start_step else ([], 0)
        kept = [record for record in records if record["step"] <= start_step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        if text.encode() != self._path.read_bytes():
            replacement = self._path.parent / "metrics.jsonl.new"
            replacement.write_text(text)
            replacement.replace(self._path)
        self.lost = start_step > 0 and not kept
        self.seconds = max((record["seconds"] for record in kept), default=0.0)


def read_records(path: epath.Path) -> tuple[list[Record], int]:
    """(records of a `metrics.jsonl`, number of damaged lines).

    The unfinished last line of a killed process does not count.
    """
    if not path.exists():
        return [], 0
    *lines, unfinished = path.read_bytes().split(b"\n")
    del unfinished
    found = [_parse_record(line) for line in lines if line]
    records = [record for record in found if record is not None]
    return records, len(found) - len(records)


def _parse_record(line: bytes) -> Record | None:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    numbers = [value for value in record.values() if value is not None]
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        return None
    step, seconds = record.get("step"), record.get("seconds")
    if type(step) is not int or step < 0 or seconds is None or seconds < 0:
        return None
    return record


class TensorBoard:
    """Writes scalars to TensorBoard event files, in the calling thread.

    tensorboardX's SummaryWriter passes them to a background thread. If that thread dies, as
    on a full disk, its queue fills up and blocks training forever.

    Args:
        purge_step: TensorBoard hides what earlier sessions wrote for this and later steps.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: epath.Path, *, purge_step: int):
        self._folder, self._purge_step = os.fspath(folder), purge_step
        self._writer: RecordWriter | None = None
        self._flushed = self._failed = -math.inf
        self._open()

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Writes {"name/metric": value}; after a failure tries only once per minute."""
        now = time.monotonic()
        if self._writer is None:
            if now < self._failed + RETRY_SECONDS:
                return
            self._open()
        assert self._writer is not None
        try:
            for name, value in values.items():
                summary = scalar(name, value)
                event = Event(wall_time=time.time(), step=step, summary=summary)
                self._writer.write(event.SerializeToString())
            if now > self._flushed + FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = now
        except Exception:
            self._abandon()
            raise

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _open(self) -> None:
        try:
            directory_check(self._folder)
            now = time.time_ns()  # a second session may start within the same second
            name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}"
            self._writer = RecordWriter(os.path.join(self._folder, name))
            for event in (
                Event(wall_time=time.time(), file_version="brain.Event:2"),
                Event(
                    step=self._purge_step,
                    session_log=SessionLog(status=SessionLog.START),
                ),
            ):
                self._writer.write(event.SerializeToString())
            self._writer.flush()
        except Exception:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Gives up this file: half an event would hide all events that follow it."""
        self._failed = time.monotonic()
        with contextlib.suppress(Exception):
            self.close()


class Attempts:
    """Calls functions that write files; reports each kind of failure once, raises none."""

    def __init__(self, report: Callable[[str], None]):
        self._report = report
        self._failed: set[str] = set()

    def run(self, name: str, function: Callable[..., None], *arguments: Any) -> None:
        """Calls the function; `name` is what it writes, for the report."""
        try:
            function(*arguments)
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                reason = str(error) or type(error).__name__
                self._report(
                    f"WARNING: cannot write {name} ({reason}); training continues."
                )
