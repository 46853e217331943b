"""Mixtures of corpora: how often each is read, by whomever."""

import collections
import dataclasses
import pickle

import numpy as np
import pytest
from invented import S, V, check_equal, documents, write

from attn_jax import config
from attn_jax.data import pipeline
from attn_jax.data.mixture import Mixture, divide
from attn_jax.tasks.masked_lm import MaskedLM

pytestmark = pytest.mark.usefixtures("cache")


class Numbers:
    """Record i is the number i, of a name."""

    labels, left_out = None, ()

    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"name": self.name, "own": int(index)}

    def fingerprint(self):
        return f"{self.name}{self.size}"


class Pairs(Numbers):
    """Two records in each row."""

    @property
    def rows_per_epoch(self):
        return self.size // 2

    def rows(self, seed, epoch):
        order = np.random.default_rng([seed, epoch]).permutation(self.size)
        return [tuple(map(int, pair)) for pair in order.reshape(-1, 2)]


A, B, C = Numbers("a", 10), Numbers("b", 4), Pairs("c", 12)


def read(mixture, seed, epoch):
    """(name, numbers) of each row of an epoch."""
    found = []
    for row in mixture.rows(seed, epoch):
        records = [mixture[record] for record in row]
        [name] = {record["name"] for record in records}
        found.append((name, tuple(record["own"] for record in records)))
    return found


def test_without_weights_every_row_is_read_once_an_epoch():
    mixture = Mixture([A, B, C])
    assert mixture.rows_per_epoch == 10 + 4 + 6 == len(mixture.rows(0, 0))
    for epoch in range(3):
        seen = collections.Counter()
        for name, numbers in read(mixture, 7, epoch):
            seen.update((name, number) for number in numbers)
        assert len(seen) == 26 and set(seen.values()) == {1}
    assert read(mixture, 7, 0) != read(mixture, 7, 1) != read(mixture, 8, 1)


def test_with_weights_each_source_has_its_share_and_goes_on_where_it_stopped():
    mixture = Mixture([A, B, C], (1, 2, 1))
    assert mixture.shares == [5, 10, 5]
    taken = collections.defaultdict(list)
    for epoch in range(6):
        rows = read(mixture, 3, epoch)
        counts = collections.Counter(name for name, _ in rows)
        assert counts == {"a": 5, "b": 10, "c": 5}
        for name, numbers in rows:
            taken[name].extend(numbers)
    # In six epochs: 30 rows of ten records, 60 of four, 30 of six pairs.
    assert collections.Counter(taken["a"]) == dict.fromkeys(range(10), 3)
    assert collections.Counter(taken["b"]) == dict.fromkeys(range(4), 15)
    assert collections.Counter(taken["c"]) == dict.fromkeys(range(12), 5)


def test_rows_of_the_sources_are_mixed_in_the_order_of_an_epoch():
    names = [name for name, _ in read(Mixture([A, Numbers("z", 10)]), 0, 0)]
    changes = sum(a != b for a, b in zip(names, names[1:]))  # noqa: B905
    assert changes > 4  # 9.5 on average; 1 if they came one after the other


def test_shares_are_whole_numbers_that_add_up():
    assert divide(10, (1, 1, 1)) == [4, 3, 3]
    assert divide(7, (0.5, 0.25, 0.25)) == [3, 2, 2]
    for weights in [(1, 999), (1e-9, 1), (0.3, 0.3, 0.4)]:
        assert sum(divide(1000, weights)) == 1000


def test_a_source_without_a_share_has_no_row():
    mixture = Mixture([A, B], (1e-9, 1))
    assert {name for epoch in range(3) for name, _ in read(mixture, 0, epoch)} == {"b"}


# --- text -------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    whole = documents()
    return (
        write(tmp_path / "one.txt", whole[:25]),
        write(tmp_path / "two.txt", whole[25:]),
    )


@pytest.fixture
def task(files):
    return MaskedLM(data=files, vocab_size=V, sequence_length=S, weights=(1.0, 3.0))


@pytest.mark.parametrize("packed", [None, 4])
def test_batches_of_a_mixture_are_the_same_whoever_reads_them(task, packed):
    task = dataclasses.replace(task, packed=packed)
    source = task.source("train")
    steps = 2 * source.rows_per_epoch // 4 + 1

    def batches(rows, **options):
        return pipeline.training_batches(
            source, task, seed=1, batch_size=4, rows=np.array(rows), **options
        )

    whole = batches([0, 1, 2, 3])
    read = [next(whole) for _ in range(steps)]
    check_equal(next(batches([0, 1, 2, 3], start_step=steps - 1)), read[-1])
    part = next(batches([1, 3], start_step=3, workers=1))
    check_equal(part, {name: array[[1, 3]] for name, array in read[3].items()})
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint()


def test_an_evaluation_reads_every_record_of_every_corpus_once(task):
    source = task.source("validation")
    assert len({source[i]["number"] for i in range(len(source))}) == len(source)
    rows = (
        sum(source.rows(0, 0), ())
        if False
        else sorted(record for row in source.rows(0, 0) for record in row)
    )
    assert rows == list(range(len(source)))


def test_a_mixture_has_one_vocabulary_trained_on_all_its_texts(task, files):
    source = task.source("train")
    one, two = (part.corpus for part in source.sources)
    assert one.vocabulary == two.vocabulary
    alone = MaskedLM(data=files[0], vocab_size=V, sequence_length=S).source("train")
    assert one.vocabulary != alone.corpus.vocabulary
    assets = task.assets(source)
    assert assets["vocab.txt"].splitlines() == list(one.vocabulary)
    total = sum(part.corpus.splits["train"].num_tokens for part in source.sources)
    assert f'"train": {total}' in assets["text.json"]
    bound = task.bind(task.assets(alone))
    again = bound.source("train")
    assert {part.corpus.vocabulary for part in again.sources} == {
        alone.corpus.vocabulary
    }


def test_weights_and_order_are_part_of_the_fingerprint(task, files):
    changes = ({}, {"weights": None}, {"weights": (3.0, 1.0)}, {"data": files[::-1]})
    prints = {
        dataclasses.replace(task, **change).source("train").fingerprint()
        for change in changes
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weights": (1.0,)}, "1 weights for 2 corpora"),
        ({"weights": (1.0, 0.0)}, "must be positive"),
        ({"weights": (1.0, float("nan"))}, "must be positive"),
        ({"data": (), "weights": None}, "data is empty"),
        ({"data": "one.txt"}, "2 weights for 1 corpora"),
    ],
)
def test_weights_that_do_not_fit_are_refused(task, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(task, **changes)


def test_a_mixture_is_written_on_the_command_line(files):
    settings = [f'task.data=("{files[0]}","{files[1]}")', "task.weights=[1,2.5]"]
    loaded = config.load("configs/bert/pretrain_text.py:debug", settings)
    task = config.build(loaded.task)
    assert task.corpora == files
    assert tuple(task.weights) == (1, 2.5)
