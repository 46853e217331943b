"""The undisturbed runs of the fault campaign, and the verdict on a disturbed one."""

import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from fault_runner import Commands, Done, Worker

# Fields of metrics.jsonl that time, not the run, decides.
TIMED = ("seconds", "examples_per_second", "data_wait_fraction")
SHORT, LONG = 20, 100  # steps; the long run is the one that is killed
START_SECONDS = 300.0  # until a run has its first file, also on a busy machine

# (what was done, {action: outcome}, {action: message})
Trial = tuple[str, dict[str, str], dict[str, str]]


def training(workdir: pathlib.Path, steps: int) -> list[str]:
    """A run of the digits recipe that takes a second once it is compiled."""
    return [
        "train.py",
        "--config=configs/vit/digits.py:debug",
        f"--workdir={workdir}",
        "--config.model.depth=1",
        "--config.model.width=8",
        "--config.model.mlp_width=8",
        f"--config.duration={steps} steps",
        "--config.checkpoint_every=4 steps",
        "--config.keep_latest=3",
        "--config.keep_best=max:validation/cross_entropy",
        "--config.save_patience_seconds=2.0",
    ]


class Campaign:
    """A folder with the undisturbed runs, and what their results are.

    Attributes:
        seconds: of the long run, from its first file to its end.
        expected: results of the undisturbed run at its end.
        paused: {step: output of `evaluate`} of the run that is to be damaged.
    """

    def __init__(self, folder: pathlib.Path, timeout: float):
        self.folder = folder
        self.commands = Commands(folder, timeout)
        self.worker = Worker(self.commands)
        self.real = ""  # the action that is a real command
        self.seconds = 0.0
        self.expected = self.metrics = ""
        self.paused: dict[str, str] = {}

    def prepare(self, kind: str) -> None:
        """Makes the undisturbed run, and for files to be damaged an unfinished one."""
        whole = self.folder / "whole"
        if kind in ("checkpoint", "side_file"):
            self.check(self.worker.run(*training(whole, SHORT)))
            # As a run looks that was killed while it saved its last state.
            shutil.copytree(whole, self.folder / "paused")
            shutil.rmtree(self.folder / "paused" / "checkpoints" / str(SHORT))
            for step in ("latest", "best"):
                done = self.evaluate(self.folder / "paused", step)
                self.check(done)
                self.paused[step] = last_line(done.out)
            if self.paused["latest"] == self.paused["best"]:
                sys.exit("error: the best checkpoint of the run is its newest")
        else:
            number = 2 if kind == "death" else 1
            for _ in range(2):  # the second time with everything compiled
                shutil.rmtree(whole, ignore_errors=True)
                processes = self.start_processes(whole, number)
                wait_for(lambda: (whole / "config.json").exists(), START_SECONDS)
                began = time.monotonic()
                for done in map(self.commands.finish, processes):
                    self.check(done)
                self.seconds = time.monotonic() - began
        done = self.results(whole)
        self.check(done)
        self.expected, self.metrics = last_line(done.out), read_metrics(whole)

    def check(self, done: Done) -> None:
        if done.status != 0:
            sys.exit(f"error: the undisturbed run failed:\n{done.out}\n{done.err}")

    def run(self, action: str, *arguments: object) -> Done:
        runner = self.commands if self.real == action else self.worker
        return runner.run(*arguments)

    def evaluate(self, workdir: pathlib.Path, step: str) -> Done:
        words = ["-m", "attn_jax", "evaluate", f"--workdir={workdir}", f"--step={step}"]
        return self.run(f"evaluate {step}", *words)

    def results(self, workdir: pathlib.Path) -> Done:
        """Numbers of `evaluate` and a digest of the parameters."""
        return self.worker.run("results", workdir)

    def start_processes(
        self, workdir: pathlib.Path, number: int
    ) -> list[subprocess.Popen]:
        """The long run, by so many processes."""
        command = training(workdir, LONG)
        if number > 1:  # processes agree on every save, which takes them seconds
            command.append("--config.checkpoint_every=20 steps")
        if number == 1:
            return [self.commands.start(*command)]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        cluster = [f"--coordinator=localhost:{port}", f"--num_processes={number}"]
        return [
            self.commands.start(*command, *cluster, f"--process_id={i}")
            for i in range(number)
        ]

    def resume(self, command: list[str], workdir: pathlib.Path) -> tuple[str, str]:
        """Gives the command again: (outcome, message)."""
        done = self.run("resume", *command)
        if done.status != 0:
            return judge(done, None, None), find_message(done)
        return self.judge_end(done, workdir)

    def judge_end(self, done: Done, workdir: pathlib.Path) -> tuple[str, str]:
        """The outcome of a run that came to its end."""
        found = self.results(workdir)
        if found.status != 0:  # a finished run can be evaluated, whatever came before
            return "silent error", find_message(found)
        outcome = judge(done, last_line(found.out), self.expected)
        if outcome == "warned":
            outcome = "silent error"  # no warning makes other parameters right
        elif outcome == "intact" and read_metrics(workdir) != self.metrics:
            outcome = "unclear"
        return outcome, find_message(done)

    def close(self) -> None:
        self.worker.close()


# --- judging --------------------------------------------------------------------------


def judge(done: Done, found: object, expected: object) -> str:
    """The outcome of a command that gave `found` where it should give `expected`."""
    if done.status is None:
        return "hang"
    errors = [line for line in done.err.splitlines() if is_message(line)]
    if any(line.startswith("Traceback") for line in errors):
        return "traceback"
    if done.status != 0:
        others = [line for line in errors if not line.startswith("WARNING: ")]
        one_line = len(others) == 1 and others[0].startswith("error:")
        return "refused" if one_line and done.status > 0 else "traceback"
    told = find_message(done) != ""
    if found == expected:
        return "mended" if told else "intact"
    return "warned" if told else "silent error"


def is_message(line: str) -> bool:
    """Whether a line of stderr is something else than the progress of a run."""
    return bool(line.strip()) and not (line.startswith("step ") and "  mem " in line)


def find_message(done: Done) -> str:
    """The line that tells of an error or of damage; empty if there is none."""
    lines = done.err.splitlines() + done.out.splitlines()
    for sign in ("error:", "damaged", "WARNING", "NOT saved"):
        for line in lines:
            if sign in line:
                return line
    if done.status != 0:
        return " / ".join(done.err.splitlines()[-3:])
    return ""


def last_line(text: str) -> str:
    return text.splitlines()[-1] if text else ""


def read_metrics(workdir: pathlib.Path) -> str:
    """metrics.jsonl without what depends on time; as it is where it does not parse."""
    text = (workdir / "metrics.jsonl").read_text(errors="replace")
    try:
        records = [json.loads(line) for line in text.splitlines()]
        kept = [{k: v for k, v in r.items() if k not in TIMED} for r in records]
    except (ValueError, AttributeError):
        return text
    return "\n".join(json.dumps(record, sort_keys=True) for record in kept)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
