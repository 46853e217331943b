"""Reports a run: its progress, metrics on disk, a profile, and curves at the end.

Files in the workdir: `metrics.jsonl` (one object per line), `tensorboard/`, `profile/` and
`curves.png`. Messages go to stdout, the progress to stderr: a bar on a terminal, else a line from
time to time. If a file cannot be written at the start, that is an error; later it is reported
once, and training continues.
"""

import contextlib
import dataclasses
import datetime
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
from etils import epath
from rich.console import Console

from attn_jax.curves import draw_curves
from attn_jax.metrics import mfu
from attn_jax.progress import GAP, ProgressLine, discard
from attn_jax.records import Attempts, MetricsFile, TensorBoard

QUIET_SECONDS = 30.0  # between progress lines without a terminal, as in a batch job


@dataclasses.dataclass
class Activity:
    """What goes on between two steps."""

    name: str
    began: float
    parts: int | None = None
    done: int = 0

    def describe(self, now: float) -> str:
        """Such as "evaluating test 3/40  7 s"; empty without a name."""
        if not self.name:
            return ""
        many = self.parts is not None and self.parts > 1
        of_parts = f" {self.done:,}/{self.parts:,}" if many else ""
        return f"{self.name}{of_parts}  {now - self.began:.0f} s"


class Log:
    """Reports one training session. Close it, or use it in a `with` statement.

    Args:
        start_step: steps taken by earlier sessions. Records of later steps are dropped
            from `metrics.jsonl`, because this session writes them again.
        batch_size: examples per step, over all devices.
        flops_per_step: operations of a step, over all devices.
        peak_flops: operations per second of all devices. `mfu` is reported if both are
            known.
        lead: whether this process writes; exactly one process of a run does.
        profile: first and last step to record with the JAX profiler, or empty.
        tick: called by every `tick` of this object.

    Raises:
        OSError: the workdir cannot be written.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        start_step: int,
        total_steps: int,
        batch_size: int,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
        lead: bool = True,
        profile: Sequence[int] = (),
        tick: Callable[[], None] = lambda: None,
    ):
        self.workdir = epath.Path(workdir)
        self.total_steps, self.batch_size = total_steps, batch_size
        self.flops_per_step, self.peak_flops = flops_per_step, peak_flops
        self.lead, self.profile, self.profiling = lead, profile, False
        self.current_step, self.pass_tick_on = start_step, tick
        self.latest: dict[str, str] = {}  # parts of the progress line
        self.activity: Activity | None = None
        self.line: ProgressLine | None = None
        self.paused_seconds = self.waiting_seconds = 0.0  # since the window began
        # (step, time) of the first step, whose own time is mostly compilation, and of the
        # last training record.
        self.first: tuple[int, float] | None = None
        self.window: tuple[int, float] | None = None
        if not lead:
            return
        self.began = time.monotonic()
        self.attempts = Attempts(self.say)
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self.metrics = MetricsFile(
                self.workdir / "metrics.jsonl", start_step=start_step
            )
            self.tensorboard = TensorBoard(
                self.workdir / "tensorboard", purge_step=start_step + 1
            )
        except OSError as error:
            raise OSError(
                f"the workdir {self.workdir} cannot be written: {error}. Free some space, "
                "or use another --workdir."
            ) from error
        self.started = self.began - self.metrics.seconds
        self.drawn = -math.inf
        self.activity = Activity("compiling ...", self.began)
        console = Console(stderr=True)
        if console.is_terminal and not console.is_dumb_terminal:
            self.line = ProgressLine(console, self._measure_progress, self.attempts)
        if self.metrics.damaged:
            self.say(
                f"WARNING: metrics.jsonl: dropped {self.metrics.damaged} damaged line(s)"
            )
        if self.metrics.lost:
            self.say(
                f"WARNING: metrics.jsonl has no records up to step {start_step:,}; the "
                "curves begin after it"
            )
        self._switch_profiler()

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Prints a line to stdout, or above the progress line if both share a terminal."""
        if self.lead and self.line is not None and sys.stdout.isatty():
            self.line.print(text)
        elif self.lead:
            _print(text, sys.stdout)

    def step(self, step: int, *, seconds_waiting: float) -> None:
        """Call this after every step; `seconds_waiting` is the wait for its batch."""
        if not self.lead:
            return
        self.current_step = step
        if self.first is None or self.window is None:
            self.first = self.window = (step, time.monotonic())
            self.paused_seconds, self.activity = 0.0, None
            seconds = self.first[1] - self.began
            self.say(f"first step after {seconds:.1f} s (compilation included)")
        else:
            self.waiting_seconds += seconds_waiting
        self._switch_profiler()

    @contextlib.contextmanager
    def pause(
        self, pending: Any = None, doing: str = "", parts: int | None = None
    ) -> Iterator[None]:
        """Excludes the time inside, such as an evaluation, from the training speed.

        Waits for the `pending` arrays first: steps are dispatched asynchronously, and the
        time of those still running is training time.

        Args:
            doing: what the terminal shows meanwhile, such as "evaluating test".
            parts: how often `tick` will be called.
        """
        jax.block_until_ready(pending)
        began = time.monotonic()
        before, self.activity = self.activity, Activity(doing, began, parts)
        try:
            yield
        finally:
            self.activity = before
            self.paused_seconds += time.monotonic() - began

    def tick(self) -> None:
        """Call this after each part of what `pause` announced."""
        self.pass_tick_on()
        if self.activity is not None:
            self.activity.done += 1

    def write(self, step: int, metrics: Mapping[str, Any], *, training: bool) -> None:
        """Writes {"name/metric": number} of a step to the files and the console.

        The name is that of an evaluation, or "train" for the training batches. A training
        record also gets the speed since the previous one; its numbers must be on the host,
        so that the steps are known to be done. A non-finite number becomes null, as JSON
        has no NaN.
        """
        if not self.lead:
            return
        values = {name: float(value) for name, value in metrics.items()}
        now = time.monotonic()
        speed = self._speed(step, now) if training else {}
        record: dict[str, float | None] = {
            "step": step,
            "seconds": round(now - self.started, 3),
        }
        finite = {n: v for n, v in (values | speed).items() if math.isfinite(v)}
        record |= {name: finite.get(name) for name in values | speed}
        self.attempts.run("metrics.jsonl", self.metrics.append, record)
        self.attempts.run("TensorBoard files", self.tensorboard.write, finite, step)
        if training:
            self.latest = _format_progress(values, speed)
            late = now - self.drawn > QUIET_SECONDS or step == self.total_steps
            if late and self.line is None:
                self.drawn = now
                _print(GAP.join(self._measure_progress()[1].values()), sys.stderr)
        else:
            for name, text in _format_evaluations(values).items():
                self.say(f"step {step:,}  {name}: {text}")

    def close(self) -> None:
        """Ends the progress line and draws `curves.png`. A second call does nothing."""
        if not self.lead:
            return
        if self.profiling:
            self.profiling = False
            self.attempts.run("the profile", jax.profiler.stop_trace)
        if self.line is not None:
            self.line.stop()
            self.line = None
        self.attempts.run("TensorBoard files", self.tensorboard.close)
        self.attempts.run("curves.png", draw_curves, self.workdir)
        self.lead = False

    def _speed(self, step: int, now: float) -> dict[str, float]:
        """The speed since the last call; empty until the second step of a session."""
        speed: dict[str, float] = {}
        if self.window is not None and step > self.window[0]:
            steps = step - self.window[0]
            seconds = max(now - self.window[1] - self.paused_seconds, 1e-9)
            speed["examples_per_second"] = steps * self.batch_size / seconds
            speed["data_wait_fraction"] = min(self.waiting_seconds / seconds, 1.0)
            if self.flops_per_step and self.peak_flops:
                flops = steps * self.flops_per_step
                speed["mfu"] = mfu(flops, seconds, self.peak_flops)
        if self.window is not None:
            self.window = (step, now)
        self.paused_seconds = self.waiting_seconds = 0.0
        return speed

    def _measure_progress(self) -> tuple[float, dict[str, str]]:
        """(share of all steps, {part of the progress line: its text})."""
        step, total, now = self.current_step, self.total_steps, time.monotonic()
        on_terminal = self.line is not None
        parts = {
            "step": f"{step:,}/{total:,}"
            if on_terminal
            else f"step {step:,}/{total:,}",
            "percent": f"{step / total:.0%}",
        } | self.latest
        if on_terminal and self.activity is not None:
            parts["activity"] = self.activity.describe(now)
        if self.first is not None and step > self.first[0]:
            # Over the whole session, including pauses: the wall-clock time that remains.
            pace = (now - self.first[1]) / (step - self.first[0])
            remaining = datetime.timedelta(seconds=round(pace * (total - step)))
            parts["eta"] = f"ETA {remaining}"
        return step / total, parts

    def _switch_profiler(self) -> None:
        """Starts or stops the JAX profiler, depending on the next step."""
        if not self.profile:
            return
        first, last = self.profile
        inside = first <= self.current_step + 1 <= last
        if inside and not self.profiling:
            folder = str(self.workdir / "profile")
            self.attempts.run("the profile", jax.profiler.start_trace, folder)
        elif self.profiling and not inside:
            # Steps are dispatched asynchronously: the last one may not even have started.
            jax.block_until_ready(jax.live_arrays())
            self.attempts.run("the profile", jax.profiler.stop_trace)
        self.profiling = inside


def _print(text: str, stream: Any) -> None:
    """Prints a line; if that fails, discards all further output to this stream.

    The reader of a pipe may have ended (`| head`), or a redirect may hit a full disk.
    """
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:
        _print(text.encode("ascii", "backslashreplace").decode(), stream)
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
        discard(stream)
        name, other = "stdout", sys.stderr
        if stream is sys.stderr:
            name, other = "stderr", sys.stdout
        with contextlib.suppress(OSError, ValueError):
            print(
                f"WARNING: cannot write to {name} ({error}); training continues.",
                file=other,
                flush=True,
            )


def _format_progress(
    values: Mapping[str, float], speed: Mapping[str, float]
) -> dict[str, str]:
    """The loss, speed and memory, as parts of the progress line."""
    parts = {}
    if "train/loss" in values:
        parts["loss"] = f"loss {values['train/loss']:.4g}"
    if speed:
        parts["rate"] = f"{_format_rate(speed['examples_per_second'])} ex/s"
        parts["wait"] = f"data wait {speed['data_wait_fraction']:.1%}"
    if "mfu" in speed:
        parts["mfu"] = f"MFU {speed['mfu']:.0%}"
    parts["memory"] = f"mem {_peak_memory_bytes() / 1e9:.1f} GB"
    return parts


def _format_evaluations(values: Mapping[str, float]) -> dict[str, str]:
    """{evaluation: its metrics in one line of text}."""
    lines: dict[str, str] = {}
    for name, value in values.items():
        evaluation, _, metric = name.rpartition("/")
        text = f"{metric} {value:.4g}"
        lines[evaluation] = (
            f"{lines[evaluation]}  {text}" if evaluation in lines else text
        )
    return lines


def _format_rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _peak_memory_bytes() -> int:
    """The peak memory of the fullest local device; on a CPU that of this process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if each]
    if peaks:
        return max(peaks)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024  # Linux: in KiB
