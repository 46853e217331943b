"""The kinds of trials of the fault campaign: what is done to a run, and how it ends.

A kind is a function (campaign, workdir, draw, trial) -> (what was done, {action: outcome},
{action: message}).
"""

import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from fault_runner import Commands, Done, Worker

STOPPED = (
    75  # status of a run that was stopped, or lost another process: start it again
)
# Fields of metrics.jsonl that time, not the run, decides.
TIMED = ("seconds", "examples_per_second", "data_wait_fraction")
SHORT, LONG = 20, 100  # steps; the long run is the one that is killed

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
                wait_for(lambda: (whole / "config.json").exists(), 120)
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


# --- judging ----------------------------------------------------------------------------


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


# --- damaged files ----------------------------------------------------------------------


def damage(file: pathlib.Path, others: list[pathlib.Path], draw: random.Random) -> str:
    """Damages a file in one of eleven ways; says which.

    Args:
        others: files of the same run, one of which may take its place.
    """
    kind = draw.choice(
        ["bit", "bit", "bit", "bytes", "zeros", "cut", "empty", "append"]
        + ["remove", "swap", "folder", "loop", "unreadable"]
    )
    content = bytearray(file.read_bytes())
    at = draw.randrange(max(len(content), 1))
    if kind == "bit" and content:
        content[at] ^= 1 << draw.randrange(8)
        kind = f"bit of byte {at} in"
    elif kind == "bytes" and content:
        content[at : at + 64] = draw.randbytes(len(content[at : at + 64]))
    elif kind == "zeros":
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    elif kind == "cut":
        del content[at:]
    elif kind == "empty":
        content.clear()
    elif kind == "append":
        content += draw.randbytes(16)
    elif kind == "swap":
        same = [other for other in others if other.name == file.name] or others
        other = draw.choice(same)
        content, mine = bytearray(other.read_bytes()), bytes(content)
        other.write_bytes(mine)
        kind = f"swap {other.relative_to(*parents(other))} and"
    elif kind == "unreadable":
        file.chmod(0)
        return kind
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "loop":  # reading it is an error of the system, for C++ as for Python
        file.symlink_to(file)
    elif kind != "remove":
        file.write_bytes(content)
    return kind


def parents(file: pathlib.Path) -> list[pathlib.Path]:
    return [next(p for p in file.parents if p.name.startswith("trial_"))]


def repair(file: pathlib.Path, original: pathlib.Path) -> None:
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    file.unlink(missing_ok=True)
    shutil.copy2(original, file)


def try_damage(
    campaign: Campaign,
    workdir: pathlib.Path,
    draw: random.Random,
    trial: int,
    choose: Callable[[pathlib.Path], list[pathlib.Path]],
    resumed: float,
) -> Trial:
    """A damaged file; the folder is evaluated, and sometimes the run goes on from it.

    Args:
        choose: the files of a run, one of which is damaged.
        resumed: in which share of the trials the run goes on.
    """
    del trial
    paused = campaign.folder / "paused"
    shutil.copytree(paused, workdir)
    files = choose(workdir)
    # Every other trial by size: most files of a checkpoint are small, and not read.
    sizes = [0 if f.suffix == ".png" else f.stat().st_size for f in files]
    (file,) = draw.choices(files, sizes if draw.random() < 0.5 else None)
    how = damage(file, [other for other in files if other != file], draw)
    name = file.relative_to(workdir)
    outcomes, messages = {}, {}
    for step in ("latest", "best"):
        action = f"evaluate {step}"
        done = campaign.evaluate(workdir, step)
        outcomes[action] = judge(done, last_line(done.out), campaign.paused[step])
        messages[action] = find_message(done)
    if draw.random() >= resumed:
        return f"{how} {name}", outcomes, messages
    command = training(workdir, SHORT)
    outcome, message = campaign.resume(command, workdir)
    outcomes["resume"], messages["resume"] = outcome, message
    if outcome == "refused":
        for each in [file, *(f for f in files if how.startswith("swap"))]:
            repair(each, paused / each.relative_to(workdir))
        outcome, message = campaign.resume(command, workdir)
        outcomes["repair and resume"], messages["repair and resume"] = outcome, message
    if "tensorboard" in f"{how} {name}" and outcomes["resume"] == "intact":
        outcomes["resume"] = "unclear"
    return f"{how} {name}", outcomes, messages


def try_checkpoint(campaign, workdir, draw, trial) -> Trial:
    return try_damage(
        campaign, workdir, draw, trial, lambda run: list_files(run / "checkpoints"), 0.5
    )


def try_side_file(campaign, workdir, draw, trial) -> Trial:
    """A damaged config.json, asset, metrics.jsonl, event file or curve."""
    return try_damage(
        campaign,
        workdir,
        draw,
        trial,
        lambda run: [f for f in list_files(run) if "checkpoints" not in f.parts],
        0.4,
    )


def list_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- ended processes --------------------------------------------------------------------


def try_kill(campaign, workdir, draw, trial) -> Trial:
    """SIGKILL at a random moment; the same command must reach the same end."""
    (process,) = campaign.start_processes(workdir, 1)
    when = "of training"
    if trial % 5:
        wait_for(lambda: (workdir / "config.json").exists(), 60)
        after = draw.uniform(0.0, campaign.seconds)
    else:
        when, after = "of the process", draw.uniform(0.0, 2 * campaign.seconds)
    time.sleep(after)
    process.kill()
    process.communicate()
    outcome, message = campaign.resume(training(workdir, LONG), workdir)
    what = f"SIGKILL {after:.1f} s after the start {when}"
    return what, {"resume": outcome}, {"resume": message}


def try_death(campaign, workdir, draw, trial) -> Trial:
    """One of two processes dies; the other must end by itself, and both go on."""
    victim = trial % 2
    processes = campaign.start_processes(workdir, 2)
    wait_for(lambda: (workdir / "config.json").exists(), 60)
    after = draw.uniform(0.0, 0.9 * campaign.seconds)
    time.sleep(after)
    processes[victim].kill()
    done = campaign.commands.finish(processes[1 - victim])
    processes[victim].communicate()
    what = f"death of process {victim} {after:.1f} s after the start of training"
    outcome = judge(done, "", "")
    name = f"process {1 - victim} ends"
    outcomes, messages = {name: outcome}, {name: find_message(done)}
    if outcome != "refused" and done.status == 0:
        what += ", which was too late"
    what += f"; the other ended after {done.seconds:.1f} s"
    ends = [campaign.commands.finish(p) for p in campaign.start_processes(workdir, 2)]
    failed = [done for done in ends if done.status != 0]
    if failed:
        outcome, message = judge(failed[0], None, None), find_message(failed[0])
    else:
        outcome, message = campaign.judge_end(ends[0], workdir)
    return (
        what,
        outcomes | {"both resume": outcome},
        messages | {"both resume": message},
    )


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


# --- full disks -------------------------------------------------------------------------


def try_disk(campaign, workdir, draw, trial) -> Trial:
    """A disk that is full from the start, fills up, or holds only a log."""
    return (try_small_disk, try_filled_disk, try_small_log)[trial % 3](
        campaign, workdir, draw
    )


def try_small_disk(campaign, workdir, draw) -> Trial:
    """Too small for the run; it is enlarged after the run has ended."""
    size = draw.choice([4, 8, 16, 64, 200, 300, 500, 700, 1000])
    with_mount(workdir, size)
    try:
        command = training(workdir, LONG)
        outcome, message = campaign.resume(command, workdir)
        outcomes, messages = {"small disk": outcome}, {"small disk": message}
        if outcome == "refused":
            remount(workdir, 64 * 1024)
            outcome, message = campaign.resume(command, workdir)
            outcomes["enlarge and resume"] = outcome
            messages["enlarge and resume"] = message
        return f"disk of {size} KiB", outcomes, messages
    finally:
        unmount(workdir)


def try_filled_disk(campaign, workdir, draw) -> Trial:
    """Fills up during training, and is freed during training or after its end."""
    with_mount(workdir, 64 * 1024)
    left, freed = draw.choice([0, 4, 40, 150]), draw.random() < 0.5
    try:
        # The end of the run tries a second time, 10 s after the first.
        command = [*training(workdir, LONG), "--config.save_patience_seconds=15.0"]
        at = draw.randrange(4, LONG - 40, 4)
        campaign.worker.begin(*command)
        wait_for(lambda: (workdir / "checkpoints" / str(at)).exists(), 60)
        ballast = workdir / "ballast"
        fill(ballast, left)
        if freed:
            time.sleep(draw.uniform(0.1, 1.0))
            ballast.unlink()
        done = campaign.worker.end()
        name = "disk fills up, is freed" if freed else "disk fills up"
        outcomes, messages = {}, {}
        if done.status == 0:
            outcomes[name], messages[name] = campaign.judge_end(done, workdir)
        else:
            outcomes[name], messages[name] = judge(done, None, None), find_message(done)
            ballast.unlink(missing_ok=True)
            outcome, message = campaign.resume(command, workdir)
            outcomes["free and resume"] = outcome
            messages["free and resume"] = message
        return f"{left} KiB left from step {at} on", outcomes, messages
    finally:
        unmount(workdir)


def try_small_log(campaign, workdir, draw) -> Trial:
    """metrics.jsonl or TensorBoard's folder lie on a disk that fills up."""
    size = draw.choice([4, 8, 12, 16])
    metrics = draw.random() < 0.5
    place = workdir / "logs" if metrics else workdir / "tensorboard"
    with_mount(place, size)
    if metrics:
        (workdir / "metrics.jsonl").symlink_to(place / "metrics.jsonl")
    try:
        outcome, message = campaign.resume(training(workdir, LONG), workdir)
        what = f"{size} KiB for {'metrics.jsonl' if metrics else 'TensorBoard'}"
        return what, {"small disk of a log": outcome}, {"small disk of a log": message}
    finally:
        unmount(place)


def with_mount(place: pathlib.Path, kibibytes: int) -> None:
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
    subprocess.run(mount, check=True)


def remount(place: pathlib.Path, kibibytes: int) -> None:
    size = f"remount,size={kibibytes}k"
    subprocess.run(["mount", "-o", size, str(place)], check=True)


def unmount(place: pathlib.Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(ballast: pathlib.Path, left: int) -> None:
    """Leaves so many KiB of the disk free."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            os.ftruncate(file.fileno(), max(0, file.tell() - left * 1024))


KINDS: Mapping[str, Callable[..., Trial]] = {
    "kill": try_kill,
    "checkpoint": try_checkpoint,
    "side_file": try_side_file,
    "disk": try_disk,
    "death": try_death,
}
