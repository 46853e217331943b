"""What a run shows: a progress line, numbers on disk, a profile, and in the end curves.

Files in the workdir: `metrics.jsonl` (one object a line), `tensorboard/`, `profile/` and
`curves.png`. Text for a person goes to stdout, the progress line to stderr.
"""

import contextlib
import datetime
import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import tensorboardX
from etils import epath
from rich.console import Console
from rich.live import Live
from rich.text import Text

from attn_jax.curves import draw_curves
from attn_jax.metrics import mfu

REDRAW_SECONDS = 0.2  # of the live line; quicker only flickers
QUIET_SECONDS = 30.0  # between progress lines where no one watches, as in a batch job


class Log:
    """The voice of one training session; close it, or use it in a `with`.

    Args:
        start_step: steps done by earlier sessions. Lines that a killed session wrote
            beyond it are dropped from `metrics.jsonl`, for this one writes them anew.
        batch_size: examples a step, over all devices.
        flops_per_step, peak_flops: of all devices together; `mfu` is reported only
            where both are known.
        lead: whether this process writes; all others stay silent. One per run.
        profile: first and last step to record with the JAX profiler, or empty.

    Raises:
        ValueError: the profile is not a window of steps of this run.
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
    ):
        if profile and not (
            len(profile) == 2 and 1 <= profile[0] <= profile[1] <= total_steps
        ):
            raise ValueError(
                f"config.profile={list(profile)} must be [] or [first, last], two steps "
                f"from 1 to {total_steps}, the last step of this run."
            )
        self.workdir = epath.Path(workdir)
        self.total_steps, self.batch_size = total_steps, batch_size
        self.flops_per_step, self.peak_flops = flops_per_step, peak_flops
        self.lead, self.profile, self.profiling = lead, profile, False
        self.current_step, self.latest = start_step, ""
        self.paused_seconds = self.waiting_seconds = 0.0  # since the window began
        # (step, time); both begin after the first step, which is mostly compilation.
        self.first: tuple[int, float] | None = None
        self.window: tuple[int, float] | None = None
        if not lead:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        earlier_seconds = _drop_lines_after(start_step, self.workdir / "metrics.jsonl")
        self.started = time.monotonic() - earlier_seconds
        self.tensorboard = tensorboardX.SummaryWriter(
            str(self.workdir / "tensorboard"), purge_step=start_step + 1
        )
        self.drawn = -math.inf
        self.live: Live | None = None
        console = Console(stderr=True)
        if console.is_terminal and not console.is_dumb_terminal:
            # Lines printed meanwhile must pass above the progress line; a stdout that
            # goes elsewhere is left alone.
            self.live = Live(
                console=console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),
            )
            self.live.start()
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
        """Prints a line that stays: the header of a run, or an event."""
        if self.lead:
            print(text, flush=True)

    def step(self, step: int, *, seconds_waiting: float) -> None:
        """To be called after every step; `seconds_waiting` it waited for its batch."""
        if not self.lead:
            return
        self.current_step = step
        if self.first is None or self.window is None:
            self.first = self.window = (step, time.monotonic())
            self.paused_seconds = 0.0
        else:
            self.waiting_seconds += seconds_waiting
        self._switch_profiler()
        if self.live and time.monotonic() - self.drawn > REDRAW_SECONDS:
            self._draw()

    @contextlib.contextmanager
    def pause(self, pending: Any = None) -> Iterator[None]:
        """Time spent inside, evaluating or saving, is no time of training.

        `pending` arrays are waited for first: steps run ahead of Python, and those still
        under way belong to training.
        """
        jax.block_until_ready(pending)
        began = time.monotonic()
        try:
            yield
        finally:
            self.paused_seconds += time.monotonic() - began

    def write(self, step: int, metrics: Mapping[str, Any], *, training: bool) -> None:
        """Records `{"name/metric": number}` at `step`, on disk and on the screen.

        The name is that of an evaluation, or "train" for the training batches. A training record is joined by the speed since the last one, so its numbers must
        have left the device already. What is not finite becomes null: JSON has no nan.
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
        for name, value in (values | speed).items():
            record[name] = value if math.isfinite(value) else None
            if math.isfinite(value):
                self.tensorboard.add_scalar(name, value, step)
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if training:
            self.latest = _progress(values, speed)
            if (
                self.live
                or now - self.drawn > QUIET_SECONDS
                or step == self.total_steps
            ):
                self._draw()
        else:
            for name, text in _by_evaluation(values).items():
                self.say(f"step {step:,}  {name}: {text}")

    def close(self) -> None:
        """Ends the progress line and draws `curves.png`. A second call does nothing."""
        if not self.lead:
            return
        self.lead = False
        if self.profiling:
            jax.profiler.stop_trace()
        if self.live:
            self.live.stop()
        self.tensorboard.close()
        draw_curves(self.workdir)

    def _speed(self, step: int, now: float) -> dict[str, float]:
        """Of the steps since the last call; empty if there was none but the first."""
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

    def _draw(self) -> None:
        step, total, now = self.current_step, self.total_steps, time.monotonic()
        parts = [f"step {step:,}/{total:,}", f"{step / total:.0%}", self.latest]
        if self.first is not None and step > self.first[0]:
            # Over the whole session and pauses included: what a person has to wait.
            pace = (now - self.first[1]) / (step - self.first[0])
            remaining = datetime.timedelta(seconds=round(pace * (total - step)))
            parts.append(f"ETA {remaining}")
        text = "  ".join(part for part in parts if part)
        self.drawn = now
        if self.live:
            line = Text(text, no_wrap=True, overflow="ellipsis")
            self.live.update(line, refresh=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _switch_profiler(self) -> None:
        """Starts or ends the recording, by the step that comes next."""
        if not self.profile:
            return
        first, last = self.profile
        inside = first <= self.current_step + 1 <= last
        if inside and not self.profiling:
            jax.profiler.start_trace(str(self.workdir / "profile"))
        elif self.profiling and not inside:
            # Steps run ahead of Python: the last one may not even have begun.
            jax.block_until_ready(jax.live_arrays())
            jax.profiler.stop_trace()
        self.profiling = inside


def _drop_lines_after(last_step: int, path: epath.Path) -> float:
    """Cuts the file back to the checkpoint; returns the seconds that led up to it.

    A line that ends without a newline was torn by the kill. A run from step 0 starts
    the file anew.
    """
    if not path.exists():
        return 0.0
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines()
    records = [json.loads(line) for line in whole] if last_step else []
    kept = [record for record in records if record["step"] <= last_step]
    if len(kept) < len(whole) or not text.endswith("\n"):
        replacement = path.parent / "metrics.jsonl.new"
        replacement.write_text("".join(json.dumps(record) + "\n" for record in kept))
        replacement.replace(path)
    return max((record["seconds"] for record in kept), default=0.0)


def _progress(values: Mapping[str, float], speed: Mapping[str, float]) -> str:
    """The middle of the progress line: loss, speed, memory."""
    parts = [
        f"loss {value:.4g}"
        for name, value in values.items()
        if name.rpartition("/")[2] == "loss"
    ]
    if speed:
        parts.append(f"{_rounded(speed['examples_per_second'])} ex/s")
        parts.append(f"data wait {speed['data_wait_fraction']:.1%}")
    if "mfu" in speed:
        parts.append(f"MFU {speed['mfu']:.0%}")
    parts.append(f"mem {_peak_memory_bytes() / 1e9:.1f} GB")
    return "  ".join(parts)


def _by_evaluation(values: Mapping[str, float]) -> dict[str, str]:
    """{evaluation: its metrics in words}."""
    lines: dict[str, str] = {}
    for name, value in values.items():
        evaluation, _, metric = name.rpartition("/")
        text = f"{metric} {value:.4g}"
        lines[evaluation] = (
            f"{lines[evaluation]}  {text}" if evaluation in lines else text
        )
    return lines


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _peak_memory_bytes() -> int:
    """Of the fullest device here; of this process where devices do not tell (CPU)."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if each]
    if peaks:
        return max(peaks)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024  # Linux: in KiB
