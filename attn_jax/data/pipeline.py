"""Batches by number: the only place that shuffles, repeats, batches, shards, prefetches.

Batch k of a run is a pure function of (seed, k): rows kB to (k+1)B of one endless stream
of shuffled epochs, whatever the number of processes and workers. A resumed
run needs the step alone. A source may plan its own rows (several ragged records in one);
else a row is a record.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Int

Batch = dict[str, np.ndarray]


def training_batches(
    source: Any,
    task: Any,
    *,
    seed: int,
    batch_size: int,
    rows: Int[np.ndarray, " R"],
    start_step: int = 0,
    threads: int = 4,
    prefetch: int = 4,
    workers: int = 0,
) -> Iterator[Batch]:
    """This process's part of every batch from `start_step` on, without end.

    Args:
        batch_size: rows of the global batch.
        rows: which of them this process holds (`rows_of_process`).
    """
    if hasattr(source, "rows"):
        stream = grain.MapDataset.source(PlannedStream(source, seed)).seed(seed)
    else:
        stream = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    stream = stream.map(functools.partial(fetch, source))
    # Augmentation is drawn before the stream is split: after it, every process would
    # draw the same numbers.
    stream = stream.random_map(functools.partial(augment, task))
    return batched(stream, batch_size, rows, start_step, threads, prefetch, workers)


def evaluation_batches(
    source: Any,
    task: Any,
    *,
    batch_size: int,
    rows: Int[np.ndarray, " R"],
    threads: int = 4,
    prefetch: int = 4,
    workers: int = 0,
) -> Iterator[Batch]:
    """This process's part of every row of the source, in order, once.

    The last batch is filled up with repeats of the last row, `valid` False.
    """
    plan = source.rows(0, 0) if hasattr(source, "rows") else None
    size = len(source) if plan is None else len(plan)
    padded = -(-size // batch_size) * batch_size
    stream = grain.MapDataset.range(padded).map(
        functools.partial(evaluation_row, source, task, plan, size)
    )
    return batched(stream, batch_size, rows, 0, threads, prefetch, workers)


def batched(
    stream: grain.MapDataset,
    batch_size: int,
    rows: np.ndarray,
    start_step: int,
    threads: int,
    prefetch: int,
    workers: int,
) -> Iterator[Batch]:
    batches = ProcessRows(stream, batch_size, rows).batch(
        len(rows), drop_remainder=True
    )
    batches = batches[start_step:].to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    )
    if workers:
        if (
            not flags.FLAGS.is_parsed()
        ):  # the workers get their values, as after app.run
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=prefetch
        )
        batches = batches.mp_prefetch(options)
    return iter(batches)


def rows_of_process(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """The global batch rows that this process's devices hold, in order.

    Not `process_index` times a part: where the tensor axis spans processes, several of
    them hold the same rows.
    """
    every = np.arange(batch_size)
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([every[index] for index in slices]))


def place(
    batch: Mapping[str, np.ndarray],
    sharding: jax.sharding.Sharding,
    batch_size: int,
    rows: Int[np.ndarray, " R"],
) -> dict[str, jax.Array]:
    """This process's rows as global arrays [batch_size, ...] on the mesh."""
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)

    def globally(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            wanted = np.arange(batch_size)[index[0]]
            return local[np.searchsorted(rows, wanted)]

        shape = (batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: globally(local) for name, local in batch.items()}


def batch_shapes(
    source: Any, task: Any, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every array of a global batch, read off the first row."""
    plan = source.rows(0, 0) if hasattr(source, "rows") else None
    example = evaluation_row(source, task, plan, 1, 0)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *value.shape), value.dtype)
        for name, value in example.items()
    }


def rows_per_epoch(source: Any) -> int:
    """How many rows a pass over the source gives."""
    return getattr(source, "rows_per_epoch", None) or len(source)


class PlannedStream:
    """An endless stream of a source's planned rows: position -> record numbers."""

    def __init__(self, source: Any, seed: int):
        self.source, self.seed = source, seed
        # Threads read across the border of two epochs, so both plans are kept.
        self.plan = functools.lru_cache(maxsize=2)(source.rows)

    def __reduce__(self) -> tuple:  # a cache does not travel to a worker process
        return PlannedStream, (self.source, self.seed)

    def __len__(self) -> int:
        return 2**61 // self.source.rows_per_epoch * self.source.rows_per_epoch

    def __getitem__(self, position: int) -> tuple[int, ...]:
        epoch, row = divmod(int(position), self.source.rows_per_epoch)
        return tuple(self.plan(self.seed, epoch)[row])


class ProcessRows(grain.MapDataset):
    """Of a stream of examples, those that one process holds of each global batch."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: np.ndarray):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        step, place = divmod(int(index), len(self._rows))
        return self._parent[step * self._batch_size + int(self._rows[place])]


# What runs in a worker process must be found by name there: hence no closures.


def fetch(source: Any, row: int | tuple[int, ...]) -> tuple[int, Any]:
    """(the row's first record number, its record, or records where rows are planned)."""
    if isinstance(row, tuple):
        return int(row[0]), [source[int(i)] for i in row]
    return row, source[row]


def augment(task: Any, numbered: tuple[int, Any], rng: np.random.Generator) -> Batch:
    number, record = numbered
    return marked(task.example(record, rng), number, True)


def evaluation_row(
    source: Any, task: Any, plan: Sequence | None, size: int, position: int
) -> Batch:
    row = min(int(position), size - 1)
    _, record = fetch(source, row if plan is None else tuple(plan[row]))
    return marked(task.example(record, None), row, position < size)


def marked(example: Mapping[str, Any], number: int, valid: bool) -> Batch:
    arrays: Batch = {name: np.asarray(value) for name, value in example.items()}
    marks: Batch = {"index": np.array(number, np.int32), "valid": np.array(valid)}
    return arrays | marks
