"""`python -m attn_jax prepare-text`: text files to shards of token ids."""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich import console, progress

from attn_jax import commands
from attn_jax.data import prepare, prepare_beam, shards, units
from attn_jax.data.text import SPLITS
from attn_jax.data.vocabulary import parse_settings, parse_vocabulary, read_vocabulary
from attn_jax.folder import expand_local

EXAMPLES = """examples:
  %(prog)s --input=books/ --out=prepared --vocab_size=8000
  %(prog)s --input=wiki.jsonl --out=prepared --vocabulary=bert-base-uncased --processes=8
  %(prog)s --input=wiki.jsonl --out=prepared --vocabulary=vocab.txt --shard=3/16
  %(prog)s --input=/disk/wiki --out=/disk/prepared --vocabulary=vocab.txt \\
      --beam --runner=FlinkRunner --flink_master=HOST:PORT
"""


def main(arguments: Sequence[str]) -> None:
    """Prints a JSON object with the numbers of documents, sentences and tokens."""
    parser = commands.make_parser(
        "prepare-text", "Tokenize text that is too large for memory, once."
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="PATH",
        help="a *.txt, a *.jsonl, a folder of them, or tfds:NAME; repeatable",
    )
    parser.add_argument("--out", required=True, help="folder to write to")
    vocabulary = parser.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument(
        "--vocabulary", metavar="PATH", help="a vocab.txt, a checkpoint or a run"
    )
    vocabulary.add_argument(
        "--vocab_size", type=int, help="train a vocabulary of this size on the text"
    )
    parser.add_argument(
        "--cased",
        action="store_true",
        help="keep case and accents; default: as the vocabulary says, or lower-case",
    )
    parser.add_argument(
        "--one_sentence_per_line",
        action="store_true",
        help="text has a sentence a line, and in *.txt a blank line between documents; "
        "default: prose, and a *.txt is a document",
    )
    parser.add_argument(
        "--json_key",
        default="text",
        help="of the text in *.jsonl and tfds; default text",
    )
    parser.add_argument(
        "--held_out",
        type=float,
        default=0.1,
        help="share of the documents for validation; default 0.1",
    )
    parser.add_argument(
        "--shard",
        default="0/1",
        metavar="i/n",
        help="make the i-th of n parts, i from 0; n machines make all",
    )
    parser.add_argument("--processes", type=int, default=1, help="default 1")
    parser.add_argument(
        "--beam",
        nargs=argparse.REMAINDER,
        metavar="FLAG",
        help="make the shards on Apache Beam; all that follows are flags of its runner",
    )
    commands.parse_and_run(parser, run, arguments)


def run(options: argparse.Namespace) -> list[str]:
    part, parts = parse_shard(options.shard)
    if options.processes < 1:
        raise ValueError(f"--processes={options.processes} must be 1 or more.")
    pieces, lower_case = read_pieces(options)
    settings = units.Settings(
        lower_case=lower_case,
        held_out=options.held_out,
        one_sentence_per_line=options.one_sentence_per_line,
        json_key=options.json_key,
    )
    folder = expand_local(options.out)
    job = prepare.open_job(options.input, folder, settings, pieces)
    numbers = range(part, len(job.units), parts)
    started = time.perf_counter()
    if options.beam is not None:
        prepare_beam.make_shards(job, numbers, options.beam)
        indexes = [shards.read_index(folder, number) for number in numbers]
    else:
        indexes = list(make_shards(job, numbers, options.processes))
    return [json.dumps(summarize(job, indexes, time.perf_counter() - started))]


def parse_shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ValueError(f"--shard={text} must be i/n, such as 0/4, 1/4, 2/4 and 3/4.")
    return int(part), int(parts)


def read_pieces(options: argparse.Namespace) -> tuple[tuple[str, ...] | int, bool]:
    """(the word pieces, or how many to train; whether text is lower-cased)."""
    if options.vocab_size is not None:
        return options.vocab_size, not options.cased
    assets = read_vocabulary(options.vocabulary)
    if assets is None:
        raise ValueError(
            f"no vocab.txt at --vocabulary={options.vocabulary}; give a vocab.txt, or the "
            "folder of a checkpoint or run."
        )
    known = parse_settings(assets["text.json"]).get("lower_case", not options.cased)
    if options.cased and known:
        raise ValueError(
            f"--cased, but the vocabulary of {options.vocabulary} is of lower-case text; "
            "leave out --cased."
        )
    return parse_vocabulary(assets["vocab.txt"]), bool(known)


def make_shards(
    job: prepare.Job, numbers: Sequence[int], processes: int
) -> Iterator[dict[str, Any]]:
    """Makes the shards, with a progress bar; yields their indexes."""
    # One process is to use one core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    total = sum(
        piece.end - piece.start
        for number in numbers
        for piece in job.units[number]
        if piece.kind != "tfds"
    )
    bar = progress.Progress(
        progress.TextColumn("{task.fields[shown]}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    context = multiprocessing.get_context("spawn")
    size, tokens = context.Value("q", 0), context.Value("q", 0)
    started = time.perf_counter()
    with bar:
        task = bar.add_task("", total=total, shown="")

        def show() -> None:
            rate = tokens.value / max(time.perf_counter() - started, 1e-9)
            shown = f"{tokens.value:,} tokens, {rate:,.0f}/s"
            bar.update(task, completed=size.value, shown=shown)

        if processes == 1:
            set_counters(size, tokens)
            for number in numbers:
                yield make_shard(job, number, show)
            show()
            return
        with concurrent.futures.ProcessPoolExecutor(
            processes, context, set_counters, (size, tokens)
        ) as pool:
            waiting = {pool.submit(make_shard, job, number) for number in numbers}
            try:
                while waiting:
                    done, waiting = concurrent.futures.wait(
                        waiting, 0.2, concurrent.futures.FIRST_COMPLETED
                    )
                    show()
                    for future in done:
                        yield future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


COUNTERS: list[Any] = []  # of a worker: bytes read, tokens made


def set_counters(*counters: Any) -> None:
    COUNTERS[:] = counters


def make_shard(
    job: prepare.Job, number: int, show: Callable[[], None] | None = None
) -> dict[str, Any]:
    def report(*made: int) -> None:
        for counter, value in zip(COUNTERS, made, strict=True):
            with counter.get_lock():
                counter.value += value
        if show is not None:
            show()

    return prepare.prepare_unit(job, number, report)


def summarize(
    job: prepare.Job, indexes: Sequence[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    left_out = [entry for index in indexes for entry in index["left_out"]]
    left_out += shards.read_settings(job.folder)["left_out"]
    sums = {
        key: {
            split: sum(index["splits"][split][key] for index in indexes)
            for split in SPLITS
        }
        for key in ("documents", "sentences", "tokens")
    }
    return {
        "out": str(job.folder),
        "vocab_size": len(job.vocabulary),
        "shards": len(indexes),
        "of_shards": len(job.units),
        **sums,
        "left_out": [f"{name} ({reason})" for name, reason in left_out],
        "seconds": round(seconds, 1),
    }
