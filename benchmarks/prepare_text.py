"""`prepare-text` against the fast tokenizer of transformers: MB/s and memory; start of a run.

    python benchmarks/prepare_text.py --text=novels --sizes=20,200,2000

The text is a folder of *.txt, copied until it has each size in MB. The command runs with one and
with two processes; its memory is the largest sum of the resident memory of its processes, read
every 50 ms. The peer, where transformers is installed, tokenizes the same files line by line with
the same vocabulary, on one core and on all. Then a run is prepared on the shards: seconds until
its first batch, and its memory after 200 batches. `--processes=2 --no_peer` leaves out the rest;
each set of sizes has a table of its own.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

import psutil
import report

SEQUENCE_LENGTH, BATCH = 128, 32

PEER = """
import json, pathlib, sys, time
from transformers import BertTokenizerFast
tokenizer = BertTokenizerFast(sys.argv[2], do_lower_case=True)
began, size, tokens = time.perf_counter(), 0, 0
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.txt")):
    text = path.read_text()
    size += len(text.encode())
    lines = [line for line in text.split("\\n") if line.strip()]
    tokens += sum(map(len, tokenizer(lines, add_special_tokens=False)["input_ids"]))
print(json.dumps({"seconds": time.perf_counter() - began, "MB": size / 1e6}))
"""

TRAIN = """
import json, sys, time
began = time.perf_counter()
import numpy as np
from attn_jax.data import pipeline
from attn_jax.tasks.masked_lm import MaskedLM
size, batch = int(sys.argv[3]), int(sys.argv[4])
task = MaskedLM(data=sys.argv[1], vocab_size=int(sys.argv[2]), sequence_length=size)
source = task.source("train")
source.fingerprint()
task.assets(source)
batches = pipeline.training_batches(source, task, seed=0, batch_size=batch, rows=np.arange(batch))
next(batches)
first = time.perf_counter() - began
for _ in range(200):
    next(batches)
print(json.dumps({"seconds": first, "rows": len(source)}))
"""


def run(command: list[str], **environment: str) -> tuple[dict, float, float]:
    """(the JSON object of the last line, seconds, peak resident MB of all processes)."""
    began, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as out:
        process = psutil.Popen(
            command,
            stdout=out,
            cwd=report.ROOT,
            env={**os.environ, "PYTHONPATH": str(report.ROOT), **environment},
        )
        while process.poll() is None:
            try:
                family = [process, *process.children(recursive=True)]
                peak = max(peak, sum(p.memory_info().rss for p in family))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        out.seek(0)
        lines = out.read().decode().splitlines()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed")
    return json.loads(lines[-1]), seconds, peak / 1e6


def copy_text(source: pathlib.Path, folder: pathlib.Path, megabytes: int) -> float:
    """Copies the files again and again until they have the size; returns it in MB."""
    files = sorted(source.rglob("*.txt"))
    size, copy = 0, 0
    while size < megabytes * 1e6:
        (folder / str(copy)).mkdir(parents=True)
        for file in files:
            if size < megabytes * 1e6:
                shutil.copy(file, folder / str(copy))
                size += file.stat().st_size
        copy += 1
    return size / 1e6


def measure(
    folder: pathlib.Path, megabytes: float, options: argparse.Namespace, say: Callable
) -> None:
    vocabulary = options.vocabulary.resolve()
    pieces = len(vocabulary.read_text().split("\n")) - 1
    text, cells = folder / "text", []
    for processes in (1, 2):
        if processes not in options.processes:
            cells += ["-", "-"]
            continue
        out = folder / "shards"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "attn_jax", "prepare-text", f"--input={text}"]
        command += [f"--out={out}", f"--vocabulary={vocabulary}"]
        found, _, peak = run([*command, f"--processes={processes}"])
        cells += [f"{megabytes / found['seconds']:.2f}", f"{peak:,.0f}"]
    for parallel in ("false", "true"):
        if options.no_peer:
            cells.append("-")
            continue
        try:
            command = [sys.executable, "-c", PEER, str(text), str(vocabulary)]
            found, _, _ = run(command, TOKENIZERS_PARALLELISM=parallel)
            cells.append(f"{found['MB'] / found['seconds']:.2f}")
        except SystemExit:
            cells.append("-")
    command = [sys.executable, "-c", TRAIN, str(folder / "shards"), str(pieces)]
    found, _, peak = run([*command, str(SEQUENCE_LENGTH), str(BATCH)])
    cells += [f"{found['seconds']:.1f}", f"{found['rows']:,}", f"{peak:,.0f}"]
    say(f"| {megabytes:,.0f} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--vocabulary", type=pathlib.Path, required=True)
    parser.add_argument("--sizes", default="20,200,2000")
    parser.add_argument(
        "--processes", type=lambda text: set(map(int, text.split(","))), default={1, 2}
    )
    parser.add_argument("--no_peer", action="store_true")
    options = parser.parse_args()
    rows: list[str] = []
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder)
            megabytes = copy_text(options.text, place / "text", size)
            measure(place, megabytes, options, rows.append)
            print(rows[-1], file=sys.stderr)
    report.write(
        f"prepare text {options.sizes}",
        [
            f"### prepare-text: speed and memory by the size of the text ({options.sizes} MB)",
            "",
            f"`python benchmarks/prepare_text.py --text={options.text.name} "
            f"--vocabulary={options.vocabulary.name} --sizes={options.sizes}"
            f"{'' if options.processes == {1, 2} else f' --processes={min(options.processes)}'}"
            f"{' --no_peer' if options.no_peer else ''}`",
            f"({report.provenance()})",
            "",
            "| text, MB | 1 process, MB/s | its memory, MB | 2 processes, MB/s | their memory, MB "
            "| transformers, one core, MB/s | all cores, MB/s | first batch of a run after, s "
            "| its rows | its memory, MB |",
            "|---" * 10 + "|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
