"""Trials of the fault campaign in which a file of a run is damaged.

A kind is a function (campaign, workdir, draw, trial) -> `Trial`.
"""

import pathlib
import random
import shutil
from collections.abc import Callable

from fault_campaign import (
    SHORT,
    Campaign,
    Trial,
    find_message,
    judge,
    last_line,
    training,
)


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
