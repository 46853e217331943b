"""Rows drawn once: equal to the original's create_pretraining_data.py bit for bit."""

import dataclasses
import hashlib
import json
import pathlib
import pickle
import random

import numpy as np
import pytest
from invented import S, V, check_equal

from attn_jax.data import static_rows
from attn_jax.data.tokenizing import Tokenizer
from attn_jax.data.vocabulary import parse_vocabulary
from attn_jax.tasks.masked_lm import MaskedLM

GOLDEN = pathlib.Path(__file__).parent / "golden" / "bert"
RUNS = json.loads((GOLDEN / "pretraining_data" / "meta.json").read_text())


@pytest.fixture(scope="module")
def pieces():
    text = (GOLDEN / "tokenization" / "vocab.txt").read_text(encoding="utf-8")
    return parse_vocabulary(text)


@pytest.fixture(scope="module")
def sample(pieces):
    """The documents of the original's sample text: sentences of token ids."""
    tokenizer = Tokenizer(pieces, lower_case=True)
    text = (GOLDEN / "pretraining_data" / "sample_text.txt").read_text(encoding="utf-8")
    parts = [part.splitlines() for part in text.split("\n\n")]
    documents = [[tokenizer.encode(line) for line in part] for part in parts]
    kept = [[ids for ids in document if ids] for document in documents]
    return [document for document in kept if document]


def draw(sample, pieces, run):
    rules = static_rows.Rules(
        sequence_length=run["max_seq_length"],
        max_predictions=run["max_predictions_per_seq"],
        mask_probability=run["masked_lm_prob"],
        short_sequence_probability=run["short_seq_prob"],
        duplicates=run["dupe_factor"],
        whole_words=run["do_whole_word_mask"],
    )
    rng = random.Random(run["random_seed"])
    return static_rows.draw_rows(sample, pieces, rules, rng), rng


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_rows_are_those_of_the_original_to_the_last_random_number(run, sample, pieces):
    rows, rng = draw(sample, pieces, run)
    lines = []
    for row in rows:
        segments = (np.arange(len(row.token_ids)) >= row.second).astype(int)
        shown = [
            [pieces[token] for token in row.token_ids],
            segments.tolist(),
            row.positions.tolist(),
            [pieces[label] for label in row.labels],
            int(row.is_random_next),
        ]
        lines.append(json.dumps(shown))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == run["sha256"]
    assert rng.random() == run["next_rng_random"]


def test_the_arrays_of_a_row_are_those_that_the_original_writes(sample, pieces):
    [run] = [run for run in RUNS if run["arrays"]]
    rows, _ = draw(sample, pieces, run)
    task = MaskedLM(
        data="unread",
        vocab_size=len(pieces),
        sequence_length=run["max_seq_length"],
        max_predictions=run["max_predictions_per_seq"],
        static_seed=run["random_seed"],
    )
    special = static_rows.vocabulary.find_special_ids(pieces)
    records = [{"static": row, "number": 0, "special_ids": special} for row in rows]
    ours = [task.example(record, None) for record in records]
    with np.load(GOLDEN / "pretraining_data" / run["arrays"]) as theirs:
        names = {
            "token_ids": "input_ids",
            "segment_ids": "segment_ids",
            "mask": "input_mask",
            "mlm_positions": "masked_lm_positions",
            "mlm_labels": "masked_lm_ids",
            "mlm_valid": "masked_lm_weights",
        }
        for name, original in names.items():
            stacked = np.stack([row[name] for row in ours])
            np.testing.assert_array_equal(stacked, theirs[original], err_msg=name)
        np.testing.assert_array_equal(
            [row["is_random_next"] for row in ours],
            theirs["next_sentence_labels"][:, 0],
        )


@pytest.fixture
def task(corpus_file, cache):
    return MaskedLM(
        data=corpus_file, vocab_size=V, sequence_length=S, static_seed=1, duplicates=2
    )


def test_a_static_task_reads_the_same_rows_whatever_random_numbers_it_is_given(task):
    source = task.source("train")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint()
    assert len(source) > 4
    for i in range(len(source)):
        first = task.example(source[i], np.random.default_rng(1))
        check_equal(first, task.example(copy[i], np.random.default_rng(2)))


def test_another_seed_or_another_number_of_duplicates_is_another_source(task):
    prints = {
        dataclasses.replace(task, **change).source("train").fingerprint()
        for change in ({}, {"static_seed": 2}, {"duplicates": 3}, {"whole_words": True})
    }
    assert len(prints) == 4


def test_static_rows_without_sentence_pairs_are_refused(corpus_file):
    with pytest.raises(ValueError, match="static_seed=1 .* a sentence pair"):
        MaskedLM(
            data=corpus_file,
            vocab_size=V,
            sequence_length=S,
            static_seed=1,
            next_sentence=False,
        )
