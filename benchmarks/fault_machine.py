"""Trials of the fault campaign in which a process ends or a disk is full.

A kind is a function (campaign, workdir, draw, trial) -> `Trial`.
"""

import os
import pathlib
import subprocess
import time

from fault_campaign import (
    LONG,
    START_SECONDS,
    Trial,
    find_message,
    judge,
    training,
    wait_for,
)

# --- ended processes ------------------------------------------------------------------


def try_kill(campaign, workdir, draw, trial) -> Trial:
    """SIGKILL at a random moment; the same command must reach the same end."""
    (process,) = campaign.start_processes(workdir, 1)
    when = "of training"
    if trial % 5:
        wait_for(lambda: (workdir / "config.json").exists(), START_SECONDS)
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
    wait_for(lambda: (workdir / "config.json").exists(), START_SECONDS)
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


# --- full disks -----------------------------------------------------------------------


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
        wait_for(lambda: (workdir / "checkpoints" / str(at)).exists(), START_SECONDS)
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
