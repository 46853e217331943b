"""Runs of a few make-believe steps on a clock that the test moves by hand."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from attn_jax import logs
from attn_jax.curves import find_best
from attn_jax.logs import Log


class Clock:
    """Stands in for the `time` module of `logs`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(logs, "time", clock)
    return clock


def start(workdir, start_step=0, **options):
    options = dict(total_steps=1000, batch_size=8) | options
    return Log(workdir, start_step=start_step, **options)


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    # Python alone would read NaN; anyone else's parser stops there.
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def train(log, clock, steps, seconds=1.0, seconds_waiting=0.0):
    for step in steps:
        clock.now += seconds
        log.step(step, seconds_waiting=seconds_waiting)


def test_a_record_holds_step_metrics_seconds_and_speed(tmp_path, clock):
    with start(tmp_path) as log:
        train(log, clock, range(1, 6), seconds=2.0)
        log.write(5, {"train/loss": jnp.float32(0.5)}, training=True)
        log.write(5, {"validation/accuracy": 0.25}, training=False)
    assert records(tmp_path) == [
        {
            "step": 5,
            "seconds": 10.0,
            "train/loss": 0.5,
            "examples_per_second": 4.0,
            "data_wait_fraction": 0.0,
        },
        {"step": 5, "seconds": 10.0, "validation/accuracy": 0.25},
    ]


def test_the_first_step_does_not_slow_the_speed(tmp_path, clock):
    with start(tmp_path) as log:
        train(log, clock, [1], seconds=500.0)  # compilation
        train(log, clock, [2, 3])
        log.write(3, {"train/loss": 1.0}, training=True)
    assert records(tmp_path)[0]["examples_per_second"] == 8.0


def test_a_first_step_alone_has_no_speed_yet(tmp_path, clock):
    with start(tmp_path) as log:
        train(log, clock, [1])
        log.write(1, {"train/loss": 1.0}, training=True)
        train(log, clock, [2])
        log.write(2, {"train/loss": 1.0}, training=True)
    first, second = records(tmp_path)
    assert "examples_per_second" not in first
    assert second["examples_per_second"] == 8.0


@pytest.mark.parametrize("paused_after", [0, 2])
def test_evaluating_and_saving_do_not_slow_the_speed(tmp_path, clock, paused_after):
    with start(tmp_path) as log:
        for step in range(4):
            if step == paused_after:
                with log.pause(pending=jnp.ones(3)):
                    clock.now += 77.0
            train(log, clock, [step + 1])
        log.write(4, {"train/loss": 1.0}, training=True)
    assert records(tmp_path)[0]["examples_per_second"] == 8.0


def test_every_record_has_the_speed_of_its_own_steps(tmp_path, clock):
    with start(tmp_path) as log:
        train(log, clock, [1, 2, 3], seconds=2.0, seconds_waiting=1.0)
        with log.pause():
            clock.now += 77.0
        log.write(3, {"train/loss": 1.0}, training=True)
        train(log, clock, [4, 5], seconds=0.5)
        log.write(5, {"train/loss": 1.0}, training=True)
    slow, fast = records(tmp_path)
    assert (slow["examples_per_second"], slow["data_wait_fraction"]) == (4.0, 0.5)
    assert (fast["examples_per_second"], fast["data_wait_fraction"]) == (16.0, 0.0)


def test_an_evaluation_has_no_speed_and_leaves_that_of_training_alone(tmp_path, clock):
    with start(tmp_path) as log:
        train(log, clock, [1, 2, 3])
        log.write(3, {"test/accuracy": 0.5}, training=False)
        train(log, clock, [4, 5], seconds=3.0)
        log.write(5, {"train/loss": 1.0}, training=True)
    evaluation, training = records(tmp_path)
    assert evaluation == {"step": 3, "seconds": 3.0, "test/accuracy": 0.5}
    assert training["examples_per_second"] == 4.0  # 4 steps in 8 seconds


def test_waiting_for_data_is_reported_as_a_share_of_the_time(tmp_path, clock):
    with start(tmp_path) as log:
        train(log, clock, range(1, 6), seconds=4.0, seconds_waiting=1.0)
        log.write(5, {"train/loss": 1.0}, training=True)
    assert records(tmp_path)[0]["data_wait_fraction"] == 0.25


def test_utilisation_is_reported_only_where_the_peak_is_known(tmp_path, clock):
    for name, peak in {"known": 100.0, "unknown": None}.items():
        with start(tmp_path / name, flops_per_step=30.0, peak_flops=peak) as log:
            train(log, clock, [1, 2, 3])
            log.write(3, {"train/loss": 1.0}, training=True)
    assert records(tmp_path / "known")[0]["mfu"] == 0.3
    assert "mfu" not in records(tmp_path / "unknown")[0]


def test_what_is_not_finite_is_written_as_null(tmp_path, clock):
    with start(tmp_path) as log:
        log.write(1, {"train/loss": math.nan, "a/b": math.inf}, training=False)
    assert records(tmp_path) == [
        {"step": 1, "seconds": 0.0, "train/loss": None, "a/b": None}
    ]


def test_a_resumed_run_drops_what_lies_beyond_its_checkpoint(tmp_path, clock):
    log = start(tmp_path)
    for step in (10, 20, 30):
        clock.now += 5.0
        log.write(step, {"train/loss": step}, training=False)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "train/lo')  # torn by the kill
    log.tensorboard.close()  # as the operating system does
    clock.now += 1000.0  # the machine stood still
    with start(tmp_path, start_step=20) as log:
        clock.now += 1.0
        log.write(30, {"train/loss": -30}, training=False)
    assert [(line["step"], line["train/loss"]) for line in records(tmp_path)] == [
        (10, 10.0),
        (20, 20.0),
        (30, -30.0),
    ]
    # The seconds go on from the checkpoint: 10 until then, and 1 more.
    assert records(tmp_path)[-1]["seconds"] == 11.0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "curves.png",
        "metrics.jsonl",
        "tensorboard",
    ]


def test_a_run_that_begins_again_at_zero_begins_its_file_again(tmp_path, clock):
    for _ in range(2):  # as when a run is killed before its first checkpoint
        with start(tmp_path) as log:
            log.write(0, {"validation/accuracy": 0.1}, training=False)
    assert len(records(tmp_path)) == 1


def test_only_the_lead_process_writes_or_speaks(tmp_path, clock, capfd):
    with start(tmp_path / "run", lead=False, profile=[1, 2]) as log:
        log.say("hello")
        train(log, clock, [1, 2, 3])
        with log.pause():
            log.write(3, {"train/loss": 1.0}, training=True)
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_the_progress_line_says_how_it_goes_and_how_long_it_takes(
    tmp_path, clock, capsys
):
    with start(
        tmp_path, total_steps=4000, flops_per_step=41.0, peak_flops=100.0
    ) as log:
        train(log, clock, range(1, 1201), seconds_waiting=0.012)
        log.write(1200, {"train/accuracy": 0.9, "train/loss": 0.3123456}, training=True)
    out, err = capsys.readouterr()
    # What a program reads from a pipe has no progress lines.
    assert out == "first step after 1.0 s (compilation included)\n"
    before, _, after = err.partition("  mem ")
    assert before == (
        "step 1,200/4,000  30%  loss 0.3123  8 ex/s  data wait 1.2%  MFU 41%"
    )
    assert after.endswith(" GB  ETA 0:46:40\n")


def test_a_run_that_no_one_watches_speaks_twice_a_minute(tmp_path, clock, capsys):
    with start(tmp_path) as log:
        for step in range(1, 101):  # a second each
            train(log, clock, [step])
            log.write(step, {"train/loss": 1.0}, training=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[0] for line in lines] == [
        "step 1",
        "step 32",
        "step 63",
        "step 94",
    ]


def test_the_last_step_is_always_shown(tmp_path, clock, capsys):
    with start(tmp_path, total_steps=3) as log:
        for step in (1, 2, 3):
            train(log, clock, [step])
            log.write(step, {"train/loss": 1.0}, training=True)
    assert capsys.readouterr().err.splitlines()[-1].startswith("step 3/3  100%  loss 1")


def test_every_evaluation_has_its_own_full_line(tmp_path, clock, capsys):
    with start(tmp_path) as log:
        metrics = {
            "test/loss": 0.07123,
            "test/accuracy": 0.98124,
            "probe/accuracy": 0.5,
        }
        log.write(1200, metrics, training=False)
    assert capsys.readouterr().out.splitlines() == [
        "step 1,200  test: loss 0.07123  accuracy 0.9812",
        "step 1,200  probe: accuracy 0.5",
    ]


def test_tensorboard_gets_every_finite_number_at_its_step(tmp_path, clock):
    with start(tmp_path) as log:
        log.write(7, {"train/loss": 0.5, "train/bad": math.nan}, training=False)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert b"train/bad" not in events.read_bytes()


def test_the_curves_show_training_and_evaluations_together(tmp_path, clock):
    from attn_jax.curves import _read_curves

    with start(tmp_path) as log:
        train(log, clock, [1, 2])
        log.write(2, {"train/loss": 3.0, "train/gradient_norm": 1.0}, training=True)
        log.write(2, {"test/loss": math.nan, "test/accuracy": 0.5}, training=False)
    curves = _read_curves(log.workdir / "metrics.jsonl")
    assert curves["loss"]["train"] == [(2, 3.0)]
    assert math.isnan(curves["loss"]["test"][0][1])
    assert curves["accuracy"] == {"test": [(2, 0.5)]}
    assert set(curves) == {"loss", "accuracy"}  # no panel for the gradient norm
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_curves_show_training_beside_an_evaluation_and_no_term_twice(
    tmp_path, clock
):
    from attn_jax.curves import _read_curves

    with start(tmp_path) as log:
        for name, training in (("train", True), ("test", False)):
            values = {"loss": 3.0, "cross_entropy": 3.0, "accuracy": 0.5, "f1": 0.1}
            metrics = {f"{name}/{metric}": v for metric, v in values.items()}
            log.write(2, metrics, training=training)
    curves = _read_curves(log.workdir / "metrics.jsonl")
    assert curves["accuracy"] == {"train": [(2, 0.5)], "test": [(2, 0.5)]}
    assert set(curves) == {"loss", "accuracy", "f1"}


@pytest.mark.parametrize(
    ("better", "best"),
    [("max", (3, 0.9)), ("min", (2, 0.1)), (None, None)],
)
def test_the_marked_point_is_the_best_one(better, best):
    points = [(1, 0.5), (2, 0.1), (3, 0.9), (4, 0.9), (5, math.nan)]
    assert find_best(points, better) == best
    assert find_best([(1, math.nan)], better) is None


def test_a_run_that_wrote_nothing_ends_without_curves(tmp_path, clock):
    start(tmp_path).close()
    assert not (tmp_path / "curves.png").exists()


class Profiler:
    """Remembers during which steps a recording was under way."""

    def __init__(self, monkeypatch):
        self.on, self.folders = False, []
        monkeypatch.setattr(jax.profiler, "start_trace", self.start)
        monkeypatch.setattr(jax.profiler, "stop_trace", self.stop)

    def start(self, folder):
        assert not self.on
        self.on = True
        self.folders.append(folder)

    def stop(self):
        assert self.on
        self.on = False


@pytest.mark.parametrize(
    ("start_step", "profile", "recorded"),
    [
        (0, (3, 5), [3, 4, 5]),
        (0, (1, 1), [1]),
        (0, (7, 9), [7, 8]),  # the session ends inside the window
        (3, (3, 5), [4, 5]),  # and this one begins there
        (5, (3, 5), []),
        (0, (), []),
    ],
)
def test_the_profiler_records_exactly_its_window(
    tmp_path, clock, monkeypatch, start_step, profile, recorded
):
    profiler, seen = Profiler(monkeypatch), []
    with start(tmp_path, start_step=start_step, profile=profile) as log:
        for step in range(start_step + 1, 9):
            if profiler.on:
                seen.append(step)
            train(log, clock, [step])
    assert seen == recorded
    assert not profiler.on
    assert profiler.folders == [str(tmp_path / "profile")] * bool(recorded)


def test_a_failing_run_still_leaves_its_numbers_and_curves(tmp_path, clock):
    with pytest.raises(RuntimeError, match="out of memory"), start(tmp_path) as log:
        log.write(1, {"train/loss": 1.0}, training=False)
        raise RuntimeError("out of memory")
    assert len(records(tmp_path)) == 1
    assert (tmp_path / "curves.png").exists()
