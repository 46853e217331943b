"""Indexed batches: the only place that shuffles, repeats, batches, shards and prefetches.

Batch k of a run is a pure function of (seed, k): rows k * B to (k + 1) * B - 1 of an endless
stream of shuffled epochs, for any number of processes and workers. To resume, a run needs
only its step. A row is a record, unless the source plans its own rows (several records
in one, or some records more often).
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
    """Yields this process's part of every batch from `start_step` on, without end.

    Args:
        batch_size: number of rows of the global batch.
        rows: indices of those that this process holds (`rows_of_process`).
    """
    if hasattr(source, "rows"):
        stream = grain.MapDataset.source(PlannedStream(source, seed)).seed(seed)
    else:
        stream = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    stream = stream.map(functools.partial(fetch, source))
    # Augment before the stream is split among processes: grain seeds by position, so
    # afterwards every process would draw the same numbers.
    stream = stream.random_map(functools.partial(augment, task))
    return make_batches(
        stream, batch_size, rows, start_step, threads, prefetch, workers
    )


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
    """Yields this process's part of every row of the source, in order, once.

    The last batch is padded with repeats of the last row, whose `valid` is False.
    """
    plan, size = plan_evaluation(source)
    padded = -(-size // batch_size) * batch_size
    stream = grain.MapDataset.range(padded).map(
        functools.partial(evaluation_row, source, task, plan, size)
    )
    return make_batches(stream, batch_size, rows, 0, threads, prefetch, workers)


def plan_evaluation(source: Any) -> tuple[Any, int]:
    """(the plan of the rows, or None if rows are records; the number of rows)."""
    plan = source.rows(0, 0) if hasattr(source, "rows") else None
    return plan, len(source) if plan is None else len(plan)


def make_batches(
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
        # Grain reads an absl flag here, which only absl.app.run would have parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=prefetch
        )
        batches = batches.mp_prefetch(options)
    return iter(batches)


def rows_of_process(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """The global batch rows that this process's devices hold, in order; none of a planned mesh.

    Not `process_index` times a part: where the tensor axis spans processes, several of
    them hold the same rows.
    """
    every = np.arange(batch_size)
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([every[:0], *(every[index] for index in slices)]))


def place(
    batch: Mapping[str, np.ndarray],
    sharding: jax.sharding.Sharding,
    batch_size: int,
    rows: Int[np.ndarray, " R"],
) -> dict[str, jax.Array]:
    """Assembles the rows of all processes to global arrays [batch_size, ...] on the mesh."""
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)

    def place_array(local: np.ndarray) -> jax.Array:
        def read_part(index: Any) -> np.ndarray:
            wanted = np.arange(batch_size)[index[0]]
            return local[np.searchsorted(rows, wanted)]

        shape = (batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, sharding, read_part)

    return {name: place_array(local) for name, local in batch.items()}


def batch_shapes(
    source: Any, task: Any, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of every array of a global batch, from the first row."""
    plan = source.rows(0, 0) if hasattr(source, "rows") else None
    example = evaluation_row(source, task, plan, 1, 0)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *value.shape), value.dtype)
        for name, value in example.items()
    }


def rows_per_epoch(source: Any) -> int:
    """Returns the number of rows of a pass over the source."""
    return getattr(source, "rows_per_epoch", None) or len(source)


def read_fingerprint(source: Any) -> str:
    """Returns the fingerprint of the source, by which a resumed run recognizes its data.

    Raises:
        ValueError: the source has no method `fingerprint`, or it returns no string.
    """
    method = getattr(source, "fingerprint", None)
    found = method() if callable(method) else method
    if not callable(method) or not isinstance(found, str):
        raise ValueError(
            f"{type(source).__name__}.fingerprint gives {found!r:.80}; it must be a method "
            "that returns a str, another one for other records."
        )
    return found


class PlannedStream:
    """An endless stream of a source's planned rows: position -> record numbers."""

    def __init__(self, source: Any, seed: int):
        self.source, self.seed = source, seed
        # Around the end of an epoch, threads read from two plans in turn.
        self.plan = functools.lru_cache(maxsize=2)(source.rows)

    def __reduce__(self) -> tuple:  # a cache does not travel to a worker process
        return PlannedStream, (self.source, self.seed)

    def __len__(self) -> int:
        return 2**61 // self.source.rows_per_epoch * self.source.rows_per_epoch

    def __getitem__(self, position: int) -> tuple[int, ...]:
        epoch, row = divmod(int(position), self.source.rows_per_epoch)
        return tuple(self.plan(self.seed, epoch)[row])


class ProcessRows(grain.MapDataset):
    """Selects the examples of a stream that one process holds, batch after batch."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: np.ndarray):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        step, local = divmod(int(index), len(self._rows))
        return self._parent[step * self._batch_size + int(self._rows[local])]


# Worker processes unpickle these functions by name, so they cannot be closures.


def fetch(source: Any, row: int | tuple[int, ...]) -> tuple[int, Any]:
    """Returns (number of the row's first record, the record or a list of planned ones)."""
    if isinstance(row, tuple):
        return int(row[0]), [source[int(i)] for i in row]
    return row, source[row]


def augment(task: Any, numbered: tuple[int, Any], rng: np.random.Generator) -> Batch:
    number, record = numbered
    return add_index(task, task.example(record, rng), number, True)


def evaluation_row(
    source: Any, task: Any, plan: Sequence | None, size: int, position: int
) -> Batch:
    row = min(int(position), size - 1)
    _, record = fetch(source, row if plan is None else tuple(plan[row]))
    return add_index(task, task.example(record, None), row, position < size)


def add_index(task: Any, example: Any, number: int, valid: bool) -> Batch:
    """Adds `index` (of the record) and `valid` (not padding) to the arrays of an example.

    Raises:
        ValueError: the task's `example` returned no dict.
    """
    if not isinstance(example, Mapping):
        raise ValueError(
            f"{type(task).__name__}.example returned {type(example).__name__}; it must "
            "return a dict {name: array}."
        )
    arrays: Batch = {name: np.asarray(value) for name, value in example.items()}
    index, is_valid = np.array(number, np.int32), np.array(valid)
    return arrays | {"index": index, "valid": is_valid}
