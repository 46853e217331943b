"""The fault campaign: what becomes of a run when its surroundings fail.

    python benchmarks/faults.py --kind=kill --count=30
    python benchmarks/faults.py --kind=checkpoint --count=264
    python benchmarks/faults.py --kind=side_file --count=480
    python benchmarks/faults.py --kind=disk --count=18          (Linux, as root)
    python benchmarks/faults.py --kind=death --count=20         (half of each process)

Only commands are used, as a user has them. A small run is stopped, damaged or starved; then
its own command is given again, and the last line of `evaluate` and the final parameters are
compared, bit by bit, with those of an undisturbed run. Every trial ends as one of:

    intact        the results are those of the undisturbed run
    refused       a nonzero status and one line that begins with "error:"
    traceback     a nonzero status and anything else
    silent error  status 0, and other results
    hang          no end within --timeout seconds

Trial i depends on (--seed, i) alone: --first=i --count=1 repeats it.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import report

OUTCOMES = ("intact", "refused", "traceback", "silent error", "hang")
STOPPED = 75  # status of a run that was stopped and saved: the same command goes on
DIGEST = """
import hashlib, sys, attn_jax, jax
_, variables, _ = attn_jax.restore(sys.argv[1])
digest = hashlib.sha256()
for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(repr((path, leaf.shape, str(leaf.dtype))).encode())
    digest.update(jax.device_get(leaf).tobytes())
print(digest.hexdigest())
"""


class Done(NamedTuple):
    status: int | None  # None: no end
    out: str
    err: str


class Campaign:
    """A folder with the runs of one campaign, and how long a command may take."""

    def __init__(self, folder: pathlib.Path, timeout: float):
        self.folder, self.timeout = folder, timeout
        self.seconds = 0.0  # of the undisturbed run
        self.paused = ("", "")  # results of the run that was stopped early
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }

    def start(self, *arguments: object) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=report.ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen) -> Done:
        try:
            out, err = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return Done(None, *process.communicate())
        return Done(process.returncode, out, err)

    def run(self, *arguments: object) -> Done:
        return self.finish(self.start(*arguments))

    def results(self, workdir: pathlib.Path) -> tuple[Done, tuple[str, str]]:
        """(`evaluate`, (its JSON, digest of the parameters))."""
        done = self.run("-m", "attn_jax", "evaluate", f"--workdir={workdir}")
        if done.status != 0:
            return done, ("", "")
        digest = self.run("-c", DIGEST, workdir)
        return done, (done.out.splitlines()[-1], digest.out.strip())


def training(workdir: pathlib.Path, steps: int) -> list[str]:
    """A run of the digits recipe that takes a second once it is compiled."""
    return [
        "train.py",
        "--config=configs/vit/digits.py:debug",
        f"--workdir={workdir}",
        "--config.model.depth=1",
        f"--config.duration={steps} steps",
        "--config.checkpoint_every=4 steps",
        "--config.save_patience_seconds=2.0",
    ]


def judge(done: Done, found: object, expected: object) -> str:
    """The outcome of the last command of a trial."""
    if done.status is None:
        return "hang"
    if done.status != 0:
        lines = [line for line in done.err.splitlines() if line.strip()]
        refused = bool(lines) and lines[-1].startswith("error:")
        return "refused" if refused and len(lines) == 1 else "traceback"
    return "intact" if found == expected else "silent error"


def damage(file: pathlib.Path, draw: random.Random) -> str:
    """Damages a file in one of six ways; says which."""
    kind = draw.choice(["bit", "bytes", "cut", "empty", "remove", "append"])
    content = bytearray(file.read_bytes())
    if kind == "bit" and content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "bytes" and content:
        at = draw.randrange(len(content))
        content[at : at + 64] = draw.randbytes(len(content[at : at + 64]))
    elif kind == "cut":
        del content[draw.randrange(len(content) + 1) :]
    elif kind == "empty":
        content.clear()
    elif kind == "append":
        content += draw.randbytes(16)
    file.unlink()
    if kind != "remove":
        file.write_bytes(content)
    return kind


# --- kinds of trials: (campaign, workdir, draw) -> (what was done, outcome) -------------


def try_kill(campaign, workdir, draw, expected):
    """SIGKILL at a random moment; the same command must reach the same end."""
    command = training(workdir, 40)
    process = campaign.start(*command)
    after = draw.uniform(0.0, campaign.seconds)
    time.sleep(after)
    process.kill()
    process.communicate()
    return f"SIGKILL after {after:.1f} s", resume(campaign, command, workdir, expected)


def try_checkpoint(campaign, workdir, draw, expected):
    """A damaged file of a checkpoint; the run goes on from it, or from the one before."""
    shutil.copytree(campaign.folder / "paused", workdir)
    file = draw.choice(list_files(workdir / "checkpoints"))
    what = f"{damage(file, draw)} {file.relative_to(workdir)}"
    return what, resume(campaign, training(workdir, 40), workdir, expected)


def try_side_file(campaign, workdir, draw, expected):
    """A damaged config.json, metrics.jsonl, asset, ...; then it is evaluated or resumed."""
    shutil.copytree(campaign.folder / "paused", workdir)
    files = [f for f in list_files(workdir) if "checkpoints" not in f.parts]
    file = draw.choice(files)
    what = f"{damage(file, draw)} {file.relative_to(workdir)}"
    if draw.random() < 0.5:
        return what, resume(campaign, training(workdir, 40), workdir, expected)
    done, found = campaign.results(workdir)
    return f"{what}, evaluated", judge(done, found, campaign.paused)


def try_disk(campaign, workdir, draw, expected):
    """A small disk, which is then enlarged; the same command must reach the end."""
    size = draw.randrange(64, 4096)  # KiB; checkpoints take some hundred each
    workdir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(workdir)]
    subprocess.run(mount, check=True)
    try:
        command = training(workdir, 40)
        done = campaign.run(*command)
        if done.status != 0:
            if (outcome := judge(done, None, None)) != "refused":
                return f"disk of {size} KiB", outcome
            larger = ["mount", "-o", "remount,size=64m", str(workdir)]
            subprocess.run(larger, check=True)
        return f"disk of {size} KiB", resume(campaign, command, workdir, expected)
    finally:
        subprocess.run(["umount", "-l", str(workdir)], check=True)


def try_death(campaign, workdir, draw, expected):
    """One of two processes dies; the other must end by itself, and both go on."""
    victim = draw.randrange(2)
    processes = start_pair(campaign, workdir)
    after = draw.uniform(0.5, 1.0) * campaign.seconds
    time.sleep(after)
    processes[victim].kill()
    done = campaign.finish(processes[1 - victim])
    processes[victim].communicate()
    what = f"death of process {victim} after {after:.1f} s"
    if done.status is None:
        return what, "hang"
    if done.status not in (0, STOPPED) and judge(done, None, None) != "refused":
        return what, "traceback"
    for done in map(campaign.finish, start_pair(campaign, workdir)):
        if done.status != 0:
            return f"{what}, then resumed", judge(done, None, None)
    done, found = campaign.results(workdir)
    return what, judge(done, found, expected)


def start_pair(campaign, workdir):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    cluster = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    return [
        campaign.start(*training(workdir, 40), *cluster, f"--process_id={i}")
        for i in range(2)
    ]


def resume(campaign, command, workdir, expected):
    """Gives the command again, then evaluates."""
    done = campaign.run(*command)
    if done.status != 0:
        return judge(done, None, None)
    done, found = campaign.results(workdir)
    return judge(done, found, expected)


def list_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


KINDS = {
    "kill": try_kill,
    "checkpoint": try_checkpoint,
    "side_file": try_side_file,
    "disk": try_disk,
    "death": try_death,
}


def prepare(campaign: Campaign, kind: str) -> tuple[str, str]:
    """Makes the undisturbed run; returns its results. Also a paused one if needed."""
    whole, paused = campaign.folder / "whole", campaign.folder / "paused"
    began = time.monotonic()
    if kind == "death":
        done = max(map(campaign.finish, start_pair(campaign, whole)))
    else:
        done = campaign.run(*training(whole, 40))
    campaign.seconds = time.monotonic() - began
    if done.status != 0:
        sys.exit(f"error: the undisturbed run failed:\n{done.err}")
    _, expected = campaign.results(whole)
    if kind in ("checkpoint", "side_file"):
        # Stopped by SIGTERM once it has saved two checkpoints.
        process = campaign.start(*training(paused, 40))
        while len(list(paused.glob("checkpoints/*/commit_success.txt"))) < 2:
            if process.poll() is not None:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        if campaign.finish(process).status != STOPPED:
            sys.exit("error: the run to be damaged did not stop as asked.")
        _, campaign.paused = campaign.results(paused)
    return expected


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument("--out", type=pathlib.Path, help="trials as JSON lines")
    options = parser.parse_args()
    if options.kind == "disk" and (sys.platform != "linux" or os.getuid() != 0):
        sys.exit("error: --kind=disk mounts a tmpfs; run it on Linux, as root.")
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(pathlib.Path(folder), options.timeout)
        expected = prepare(campaign, options.kind)
        for trial in range(options.first, options.first + options.count):
            name = f"{options.kind} {options.seed} {trial}".encode()
            draw = random.Random(hashlib.sha256(name).digest())
            workdir = campaign.folder / f"trial_{trial}"
            what, outcome = KINDS[options.kind](campaign, workdir, draw, expected)
            counts[outcome] += 1
            print(f"{trial}: {outcome}: {what}", file=sys.stderr, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    record = {"trial": trial, "outcome": outcome, "what": what}
                    file.write(json.dumps(record) + "\n")
            shutil.rmtree(workdir, ignore_errors=True)
    print(f"| {options.kind} | {' | '.join(OUTCOMES)} |")
    print("|---" * (len(OUTCOMES) + 1) + "|")
    cells = " | ".join(f"{counts[outcome]}" for outcome in OUTCOMES)
    print(f"| {options.count} trials, seed {options.seed} | {cells} |")
    if counts["intact"] + counts["refused"] != options.count:
        sys.exit("error: some faults were neither harmless nor refused in one line")


if __name__ == "__main__":
    main()
