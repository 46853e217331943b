"""The fault campaign: what becomes of a run when its surroundings fail.

    python benchmarks/faults.py --kind=kill          (30 trials)
    python benchmarks/faults.py --kind=checkpoint    (264)
    python benchmarks/faults.py --kind=side_file     (480)
    python benchmarks/faults.py --kind=disk          (18; Linux, as root)
    python benchmarks/faults.py --kind=death         (20, half of each of two processes)

A small run is stopped, damaged or starved. Then it is evaluated, or its own command is
given again; the numbers of `evaluate` and the final parameters are compared, bit by bit,
with those of an undisturbed run. A trial may do several of these on one damaged folder, and
every action ends as one of:

    intact        the results of the undisturbed run
    mended        the same results, and a line that says what was damaged
    refused       a nonzero status and one line that begins with "error:"
    warned        other results, and a line that says why
    unclear       the same results, but a log (metrics.jsonl, TensorBoard) that no result
                  depends on keeps the damage, and nothing says so
    silent error  other results without a word, or of a resumed run at all
    traceback     a nonzero status and anything else, or a crash
    hang          no end within --timeout seconds

A run that refuses to resume is given back the original file, and must then reach the
undisturbed end: an error must leave everything as it was. Most commands are called in one
process that stays (`fault_runner.Worker`), an action in every 20th trial is a real command,
and what is killed is always a real process. Trial i depends on (--seed, i) alone: --first=i
--count=1 repeats it, but for the names and order in which orbax writes files. Trials that
the file of --out has already are not run again, so that a campaign may be interrupted.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator

import fault_files
import fault_machine
import report
from fault_campaign import Campaign
from fault_runner import obey_permissions

OUTCOMES = (
    "intact",
    "mended",
    "refused",
    "warned",
    "unclear",
    "silent error",
    "traceback",
    "hang",
)
# Trial numbers modulo 60 with a real command, and which it is.
REAL = {19: "evaluate latest", 39: "evaluate best", 59: "resume"}
FOLDER = re.compile(r"[^\s']*/(?=trial_\d)")  # of this machine
BAD = OUTCOMES[5:]
SHOWN = OUTCOMES[3:]  # with an example each
KINDS = {
    "kill": fault_machine.try_kill,
    "checkpoint": fault_files.try_checkpoint,
    "side_file": fault_files.try_side_file,
    "disk": fault_machine.try_disk,
    "death": fault_machine.try_death,
}
COUNTS = {"kill": 30, "checkpoint": 264, "side_file": 480, "disk": 18, "death": 20}


def run_trials(
    options: argparse.Namespace, folder: pathlib.Path, trials: list[int]
) -> Iterator[dict]:
    """One record a trial: {"trial", "what", "outcomes": {action: outcome}, "messages"}."""
    commit = report.git("describe", "--always")
    if not trials:
        return
    campaign = Campaign(folder, options.timeout)
    campaign.prepare(options.kind)
    for trial in trials:
        name = f"{options.kind} {options.seed} {trial}".encode()
        draw = random.Random(hashlib.sha256(name).digest())
        campaign.real = REAL.get(trial % 60, "")
        workdir = folder / f"trial_{trial}"
        began = time.monotonic()
        what, outcomes, messages = KINDS[options.kind](campaign, workdir, draw, trial)
        seconds = round(time.monotonic() - began, 1)
        print(f"{trial}: {what}: {outcomes} {seconds} s", file=sys.stderr, flush=True)
        yield {
            "kind": options.kind,
            "commit": commit,
            "trial": trial,
            "what": what,
            "outcomes": outcomes,
            "messages": messages,
            "seconds": seconds,
        }
        if not (options.keep and set(outcomes.values()) & set(SHOWN)):
            shutil.rmtree(workdir, ignore_errors=True)
    campaign.close()


def make_table(records: list[dict]) -> list[str]:
    """Outcomes by action, and an example of each that asks for a look."""
    counts: dict[str, collections.Counter] = collections.defaultdict(
        collections.Counter
    )
    examples: dict[tuple[str, str], str] = {}
    for record in records:
        for action, outcome in record["outcomes"].items():
            counts[action][outcome] += 1
            if outcome in SHOWN:
                example = f"trial {record['trial']}, {record['what']}"
                if message := record["messages"].get(action):
                    example += f": `{FOLDER.sub('', message)}`"
                examples.setdefault((action, outcome), example)
    lines = [f"| action | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 1) + "|"]
    for action, found in counts.items():
        cells = " | ".join(str(found[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {action} | {cells} |")
    if examples:
        lines.append("")
    lines += [f"- {action}, {o}: {text}" for (action, o), text in examples.items()]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--count", type=int, help="default: as listed above")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument(
        "--keep", action="store_true", help="folders that ask for a look"
    )
    parser.add_argument("--out", type=pathlib.Path, help="trials as JSON lines")
    parser.add_argument("--write", action="store_true", help="into docs/results.md")
    options = parser.parse_args()
    options.count = options.count or COUNTS[options.kind]
    if options.kind == "disk" and (sys.platform != "linux" or os.getuid() != 0):
        sys.exit("error: --kind=disk mounts a tmpfs; run it on Linux, as root.")
    if not obey_permissions():
        print("permissions do not bind root here: unreadable files are readable")
    wanted = range(options.first, options.first + options.count)
    records: list[dict] = []
    if options.out and options.out.exists():
        lines = options.out.read_text().splitlines()
        records = [r for r in map(json.loads, lines) if r["trial"] in wanted]
    known = {record["trial"] for record in records}
    trials = [trial for trial in wanted if trial not in known]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="faults_"))
    try:
        for record in run_trials(options, folder, trials):
            records.append(record)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    finally:
        if options.keep:
            print(f"folders: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    minutes = sum(record["seconds"] for record in records) / 60
    commits = ", ".join(sorted({record["commit"] for record in records}))
    total = collections.Counter(o for r in records for o in r["outcomes"].values())
    good, bad = (
        ", ".join(f"{outcome} {total[outcome]}" for outcome in part)
        for part in (OUTCOMES[:5], BAD)
    )
    first = f" --first={options.first}" if options.first else ""
    lines = [
        f"### Faults, {options.kind}: {len(records)} trials; actions: {good}; {bad}",
        "",
        f"`python benchmarks/faults.py --kind={options.kind}{first} "
        f"--count={options.count} --seed={options.seed}` ({minutes:.0f} minutes; trials at {commits}; table at "
        f"{report.provenance()})",
        "",
        *make_table(records),
    ]
    if options.write:
        report.write(f"faults {options.kind}", lines)
    else:
        print("\n".join(lines))
    if any(total[outcome] for outcome in BAD):
        sys.exit("error: some faults were neither harmless nor reported in one line")


if __name__ == "__main__":
    main()
