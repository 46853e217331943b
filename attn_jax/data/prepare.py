"""Prepares text for training: units of documents -> token ids in shards.

A shard is a function of its unit and the settings, so any number of machines and processes makes
the same files.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from attn_jax.data import corpora, shards
from attn_jax.data.text import SPLITS, Builder, check_known
from attn_jax.data.tokenizing import Tokenizer, describe_difference
from attn_jax.data.units import (
    RULES,
    UNIT_BYTES,
    Piece,
    Plan,
    Settings,
    plan_units,
    read_piece,
)
from attn_jax.data.vocabulary import parse_vocabulary, train_vocabulary

TRAINING_BYTES = 100_000_000  # of text, to train a vocabulary


class Job(NamedTuple):
    """All that a process needs to make shards."""

    folder: pathlib.Path
    root: str  # of the input files
    units: tuple[tuple[Piece, ...], ...]
    settings: Settings
    vocabulary: tuple[str, ...]


def open_job(
    inputs: Sequence[str],
    folder: pathlib.Path,
    settings: Settings,
    vocabulary: Sequence[str] | int,
) -> Job:
    """Plans the units and writes the settings and the vocabulary, unless they are there.

    Args:
        vocabulary: word pieces, or how many to train on at most `TRAINING_BYTES` of the text.

    Raises:
        ValueError: as `plan_units`; the folder was prepared in another way.
    """
    plan = plan_units(inputs, settings)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / shards.VOCABULARY
    if isinstance(vocabulary, int):
        if path.is_file():  # trained when this command was first run
            pieces = parse_vocabulary(path.read_text(encoding="utf-8"))
        else:
            pieces = train(plan, settings, vocabulary)
        if len(pieces) != vocabulary:
            raise ValueError(
                f"{path} has {len(pieces):,} word pieces, not {vocabulary:,}; give another "
                "--out."
            )
    else:
        pieces = tuple(vocabulary)
    lines = "".join(f"{piece}\n" for piece in pieces)
    root = find_root(plan)
    listing = [
        [[piece.name.replace(f"{root}/", ""), *piece[1:]] for piece in unit]
        for unit in plan.units
    ]
    known = {
        "format": shards.FORMAT,
        "rules": RULES,
        "tokenizers": tokenizers.__version__,
        **dataclasses.asdict(settings),
        "vocabulary": hashlib.sha256(lines.encode()).hexdigest(),
        "units": len(plan.units),
        "input": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
        "left_out": [list(entry) for entry in plan.left_out],
    }
    if shards.is_prepared(folder):
        check_same(folder, known, pieces)
    else:
        if any(folder.glob("*.json")) or any(folder.glob("*.npy")):
            raise ValueError(
                f"{folder} holds other files and no {shards.SETTINGS}; give another --out."
            )
        shards.write_whole(path, lines)
        shards.write_whole(folder / shards.SETTINGS, json.dumps(known, indent=1))
    return Job(folder, root, plan.units, settings, pieces)


def find_root(plan: Plan) -> str:
    """The folder that all files have in common; machines may have it at different places."""
    files = {p.name for unit in plan.units for p in unit if p.kind != "tfds"}
    return os.path.commonpath([os.path.dirname(file) for file in files] or [""])


def check_same(
    folder: pathlib.Path, known: dict[str, Any], pieces: tuple[str, ...]
) -> None:
    """Raises ValueError if the folder was prepared in another way."""
    before = shards.read_settings(folder)
    for key, value in known.items():
        if key == "left_out" or before.get(key) == value:
            continue
        there = f"{key}={before.get(key)!r}, not {value!r}"
        if key == "vocabulary":
            assets = shards.read_assets(folder)
            theirs = parse_vocabulary(assets["vocab.txt"])
            there = f"another vocabulary ({describe_difference(theirs, pieces)})"
        elif key in ("input", "units"):
            there = "other files, or files of other sizes"
        raise ValueError(
            f"{folder} was prepared with {there}. Give another --out, or delete it."
        )


def train(plan: Plan, settings: Settings, vocab_size: int) -> tuple[str, ...]:
    """Trains a vocabulary on documents of units that are spread evenly over the input."""
    wanted = max(1, TRAINING_BYTES // UNIT_BYTES)
    step = max(1, -(-len(plan.units) // wanted))

    def read() -> Iterator[str]:
        for unit in plan.units[::step]:
            for piece in unit:
                for _, sentences in read_piece(piece, settings, lambda *_: None):
                    yield from sentences

    return train_vocabulary(read(), vocab_size, lower_case=settings.lower_case)


def is_held_out(sentences: Sequence[str], held_out: float) -> bool:
    """Whether a document is of the validation split; a function of its text alone."""
    key = hashlib.sha256(corpora.find_key(sentences).encode()).digest()
    return int.from_bytes(key[:8], "big") < held_out * 2**64


def prepare_unit(
    job: Job,
    number: int,
    report: Callable[[int, int], None] = lambda size, tokens: None,
) -> dict[str, Any]:
    """Makes one shard, unless it is there; returns its index.

    Args:
        report: called with the bytes that were read and the tokens that were made.
    """
    if shards.find_index(job.folder, number).is_file():
        return shards.read_index(job.folder, number)
    for leftover in job.folder.glob(f".{shards.name_shard(number)}-*"):
        leftover.unlink()
    vocab_size = len(job.vocabulary)
    tokenizer = Tokenizer(job.vocabulary, lower_case=job.settings.lower_case)
    special = tokenizer.special
    dtype = np.uint16 if vocab_size <= 2**16 else np.int32
    builders = {split: Builder(dtype) for split in SPLITS}
    left_out: list[tuple[str, str]] = []

    def leave_out(name: str, reason: str) -> None:
        left_out.append((name.replace(f"{job.root}/", ""), reason))

    for piece in job.units[number]:
        before = 0
        for done, sentences in read_piece(piece, job.settings, leave_out):
            split = SPLITS[is_held_out(sentences, job.settings.held_out)]
            tokens = builders[split].add(tokenizer.encode_all(sentences))
            if piece.kind != "tfds":
                report(done - before, tokens)
            before = done
    texts = {split: builder.build() for split, builder in builders.items()}
    unknown = [text.count_tokens(vocab_size)[special.unk] for text in texts.values()]
    share = sum(unknown) / max(sum(text.num_tokens for text in texts.values()), 1)
    check_known(float(share), job.units[number][0].name)
    return shards.write_shard(job.folder, number, texts, vocab_size, left_out)
