"""Batches by number: the same whoever reads them, each record as often as promised."""

import hashlib
import itertools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from jax.sharding import Sharding

from attn_jax import sharding
from attn_jax.data import pipeline, sources

SIZE, BATCH = 20, 8  # 2.5 batches an epoch: batches reach across its end


class Numbers:
    """Record i is the number i."""

    labels = None

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        return {"number": index}

    def fingerprint(self):
        return str(self.size)


class Noisy:
    """A number and the noise that training adds to it."""

    def example(self, record, rng):
        noise = 0.0 if rng is None else rng.random()
        return {"number": record["number"], "noise": np.float64(noise)}


class Sequences:
    """Record i is `lengths[i]` times the number i + 1; a row has up to `row_length`."""

    labels = None

    def __init__(self, lengths, row_length, rows_per_epoch):
        self.lengths = np.asarray(lengths)
        self.row_length, self.rows_per_epoch = row_length, rows_per_epoch

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"tokens": np.full(self.lengths[index], index + 1, np.int32)}

    def fingerprint(self):
        return hashlib.sha256(self.lengths.tobytes()).hexdigest()

    def rows(self, seed, epoch):
        """First fit in shuffled order; what is over `rows_per_epoch` is left out."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        rows, free = [], []
        for record in map(int, order):
            fits = [i for i, space in enumerate(free) if space >= self.lengths[record]]
            if not fits:
                rows.append(())
                free.append(self.row_length)
                fits = [len(rows) - 1]
            rows[fits[0]] += (record,)
            free[fits[0]] -= int(self.lengths[record])
        assert len(rows) >= self.rows_per_epoch
        return rows[: self.rows_per_epoch]


class Packed:
    """The records of a row one after another, zeros behind them."""

    def __init__(self, row_length):
        self.row_length = row_length

    def example(self, records, rng):
        tokens = np.concatenate([record["tokens"] for record in records])
        padding = np.zeros(self.row_length - len(tokens), np.int32)
        noise = 0.0 if rng is None else rng.random()
        return {"tokens": np.concatenate([tokens, padding]), "noise": np.float64(noise)}


RAGGED = Sequences([3, 1, 2, 4, 1, 2, 3, 1, 4, 2, 1, 3], row_length=5, rows_per_epoch=5)
SOURCES = {"plain": (Numbers(SIZE), Noisy()), "ragged": (RAGGED, Packed(5))}


def batches(kind="plain", count=6, *, seed=0, rows=None, **options):
    """The first batches of a training stream, stacked: {name: [count, rows, ...]}."""
    source, task = SOURCES[kind] if isinstance(kind, str) else kind
    rows = np.arange(BATCH) if rows is None else np.asarray(rows)
    stream = pipeline.training_batches(
        source, task, seed=seed, batch_size=BATCH, rows=rows, **options
    )
    found = list(itertools.islice(stream, count))
    return {name: np.stack([batch[name] for batch in found]) for name in found[0]}


def check_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.fixture(scope="module", params=SOURCES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def whole(kind):
    return batches(kind)


# --- one stream, whoever reads it -----------------------------------------------------


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_rows_put_together_are_the_whole_batch(kind, whole, groups):
    parts = [batches(kind, rows=rows) for rows in np.split(np.arange(BATCH), groups)]
    together = {
        name: np.concatenate([part[name] for part in parts], axis=1) for name in whole
    }
    check_equal(together, whole)


def test_rows_need_not_be_neighbours(kind, whole):
    rows = [1, 2, 7]
    check_equal(batches(kind, rows=rows), {k: v[:, rows] for k, v in whole.items()})


@pytest.mark.parametrize("options", [{"threads": 1, "prefetch": 1}, {"threads": 7}])
def test_threads_change_nothing(kind, whole, options):
    check_equal(batches(kind, **options), whole)


@pytest.mark.parametrize("start", [1, 2, 5])
def test_a_stream_resumed_at_a_step_goes_on_as_it_would_have(kind, whole, start):
    resumed = batches(kind, count=6 - start, start_step=start)
    check_equal(resumed, {name: value[start:] for name, value in whole.items()})


def test_a_stream_resumes_after_a_million_steps():
    far = batches(count=3, start_step=10**6)
    np.testing.assert_array_equal(
        far["number"][1:], batches(count=2, start_step=10**6 + 1)["number"]
    )


def test_worker_processes_change_nothing():
    """Both kinds of source travel to workers; some rows, from a later step on."""
    flags.FLAGS.unparse_flags()  # as where no absl.app.run has parsed them
    for kind in SOURCES:
        expected = batches(kind, count=3, rows=[2, 3], start_step=1)
        found = batches(kind, count=3, rows=[2, 3], start_step=1, workers=2, threads=1)
        check_equal(found, expected)


def test_another_seed_is_another_order_and_other_noise(kind, whole):
    other = batches(kind, seed=1)
    assert (other["index"] != whole["index"]).any()
    assert (other["noise"] != whole["noise"]).all()


# --- each record as often as promised -------------------------------------------------


def test_every_epoch_holds_each_record_once_and_in_another_order():
    numbers = batches(count=5 * 2)["number"].reshape(4, SIZE)
    for epoch in numbers:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(SIZE))
    for one, other in itertools.combinations(numbers, 2):
        assert (one != other).any()
    assert (numbers != np.arange(SIZE)).any(axis=1).all()


def test_noise_differs_between_all_rows_groups_and_epochs():
    whole = batches(count=10)
    assert len(np.unique(whole["noise"])) == whole["noise"].size
    first, second = batches(rows=[0, 1, 2, 3]), batches(rows=[4, 5, 6, 7])
    assert not set(first["noise"].flat) & set(second["noise"].flat)


def test_rows_of_training_are_valid_and_know_their_record():
    found = batches()
    assert found["valid"].all() and found["valid"].dtype == bool
    np.testing.assert_array_equal(found["index"], found["number"])
    assert found["index"].dtype == np.int32


@pytest.mark.parametrize("batch_size, groups", [(1, 1), (7, 1), (7, 3), (64, 2)])
def test_an_evaluation_reads_every_record_once_in_order(batch_size, groups):
    parts = [
        list(
            pipeline.evaluation_batches(
                *SOURCES["plain"], batch_size=batch_size, rows=rows
            )
        )
        for rows in np.array_split(np.arange(batch_size), groups)
    ]
    seen = []
    for step in zip(*parts, strict=True):
        numbers, valid, index, noise = (
            np.concatenate([part[name] for part in step])
            for name in ("number", "valid", "index", "noise")
        )
        assert len(valid) == batch_size  # one static shape
        np.testing.assert_array_equal(index, numbers)
        assert not noise.any()  # without a generator nothing is augmented
        seen += list(numbers[valid])
        assert (numbers[~valid] == SIZE - 1).all()
    assert seen == list(range(SIZE))


# --- ragged sources -------------------------------------------------------------------


def test_the_made_up_source_is_one():
    assert isinstance(RAGGED, sources.PlannedSource)
    assert not isinstance(Numbers(3), sources.PlannedSource)


def test_rows_come_as_planned_epoch_after_epoch():
    found = batches("ragged", count=5)["tokens"].reshape(-1, 5)  # 8 epochs of 5 rows
    planned = [row for epoch in range(8) for row in RAGGED.rows(0, epoch)]
    assert max(map(len, planned)) >= 2
    for tokens, row in zip(found, planned, strict=True):
        expected = np.concatenate([RAGGED[record]["tokens"] for record in row])
        np.testing.assert_array_equal(tokens[: len(expected)], expected)
        assert not tokens[len(expected) :].any()
    indices = batches("ragged", count=5)["index"].ravel()
    np.testing.assert_array_equal(indices, [row[0] for row in planned])


def test_an_evaluation_reads_the_rows_of_the_first_plan_once():
    source, task = SOURCES["ragged"]
    found = list(
        pipeline.evaluation_batches(source, task, batch_size=3, rows=np.arange(3))
    )
    tokens, valid, index = (
        np.concatenate([batch[name] for batch in found])
        for name in ("tokens", "valid", "index")
    )
    assert list(valid) == [True] * 5 + [False]
    assert list(index) == [
        0,
        1,
        2,
        3,
        4,
        4,
    ]  # of the row: it is the unit of an evaluation
    for row, planned in zip(tokens, source.rows(0, 0), strict=False):
        assert list(dict.fromkeys(row[row > 0])) == [record + 1 for record in planned]


def test_an_epoch_has_the_rows_of_its_source():
    assert pipeline.rows_per_epoch(RAGGED) == 5
    assert pipeline.rows_per_epoch(Numbers(SIZE)) == SIZE


def test_shapes_of_a_batch_are_those_that_come(kind, whole):
    shapes = pipeline.batch_shapes(*SOURCES[kind], BATCH)
    assert {name: (s.shape, s.dtype) for name, s in shapes.items()} == {
        name: (value.shape[1:], value.dtype) for name, value in whole.items()
    }


# --- which rows, and where they go ----------------------------------------------------


class Process(Sharding):
    """A sharding as one of several processes sees it: each of its devices' rows."""

    def __init__(self, *slices):
        self.slices = slices

    def addressable_devices_indices_map(self, shape):
        return {i: (index,) for i, index in enumerate(self.slices)}


@pytest.mark.parametrize(
    "slices, rows",
    [
        ([slice(0, 4), slice(4, 8)], range(8)),
        ([slice(4, 8)], range(4, 8)),
        ([slice(6, 8), slice(2, 4)], [2, 3, 6, 7]),  # devices in no order
        ([slice(None)] * 4, range(8)),  # the whole batch on each
        # The tensor axis spans two processes: both hold these rows, each device all.
        ([slice(0, 4), slice(0, 4)], range(4)),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(slices, rows):
    found = pipeline.rows_of_process(Process(*slices), batch_size=8)
    np.testing.assert_array_equal(found, list(rows))


def test_a_single_process_reads_every_row_on_any_mesh():
    for sizes in ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}):
        placement = sharding.batch_sharding(sharding.make_mesh(sizes))
        found = pipeline.rows_of_process(placement, batch_size=8)
        np.testing.assert_array_equal(found, np.arange(8))


BATCH_OF_EIGHT = {"x": np.arange(24.0).reshape(8, 3), "valid": np.arange(8) % 2 == 0}


@pytest.mark.parametrize("processes", [1, 2])
def test_placed_rows_lie_as_the_sharding_says(processes, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placement = sharding.batch_sharding(mesh)
    placed = pipeline.place(BATCH_OF_EIGHT, placement, 8, np.arange(8))
    for name, value in BATCH_OF_EIGHT.items():
        assert placed[name].sharding.is_equivalent_to(placement, value.ndim)
        for shard in placed[name].addressable_shards:
            assert shard.data.shape[0] == 2
            np.testing.assert_array_equal(shard.data, value[shard.index])


def test_a_process_hands_each_device_its_own_of_the_local_rows(monkeypatch):
    rows = np.array([2, 3, 6, 7])
    local = {name: value[rows] for name, value in BATCH_OF_EIGHT.items()}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        jax,
        "make_array_from_callback",
        lambda shape, sharding, part: jax.device_put(
            np.concatenate([part((index,)) for index in sharding.slices])
        ),
    )
    placement = Process(slice(6, 8), slice(2, 4), slice(2, 4))
    placed = pipeline.place(local, placement, 8, rows)
    for name, value in BATCH_OF_EIGHT.items():
        np.testing.assert_array_equal(placed[name], value[[6, 7, 2, 3, 2, 3]])


# --- errors ---------------------------------------------------------------------------


def test_a_task_whose_example_is_no_dict_is_named():
    class Odd(Noisy):
        def example(self, record, rng):
            return [record["number"]]

    with pytest.raises(
        ValueError, match="Odd.example returned list; it must return a d"
    ):
        pipeline.batch_shapes(Numbers(3), Odd(), 2)
    with pytest.raises(ValueError, match="Odd.example returned list"):
        batches((Numbers(SIZE), Odd()), 1)


@pytest.mark.parametrize("fingerprint", ["abc", None, lambda: 7, lambda: b"abc"])
def test_a_source_whose_fingerprint_is_no_text_is_named(fingerprint):
    source = Numbers(3)
    source.fingerprint = fingerprint
    with pytest.raises(ValueError, match="Numbers.fingerprint gives .* returns a str"):
        pipeline.read_fingerprint(source)
    assert pipeline.read_fingerprint(Numbers(3)) == "3"


def test_worker_processes_start_where_no_flags_were_parsed():
    """As in a notebook: grain reads a flag that absl.app.run would have parsed."""
    script = """
import numpy as np
from test_pipeline import Noisy, Numbers
from attn_jax.data import pipeline
if __name__ == "__main__":
    found = pipeline.training_batches(
        Numbers(20), Noisy(), seed=0, batch_size=4, rows=np.arange(4), workers=1)
    print(sorted(next(found)))
"""
    root = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": f"{root.parent}{os.pathsep}{root}"},
    )
    assert done.stdout == "['index', 'noise', 'number', 'valid']\n", done.stderr[-2000:]
