"""Evaluates every example of a split exactly once, on any number of devices."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from attn_jax import metrics, sharding, step
from attn_jax.data import pipeline


class Evaluation:
    """A split of a task, evaluated with any parameters as often as needed.

    The batch size is rounded up to a multiple of the devices that share a batch. It does
    not change results: padded rows never count, and sums are added instead of means.

    Args:
        name: prefix of every metric.
        batch_size: rows of a global batch.
        key: random key, for models that sample.
        reading: `threads`, `prefetch` and `workers` of `pipeline.evaluation_batches`.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        task: Any,
        split: str,
        *,
        mesh: Mesh,
        batch_size: int,
        key: jax.Array,
        reading: Mapping[str, int] | None = None,
    ):
        shards = sharding.batch_shards(mesh)
        self.name, self.task, self.key, self.reading = name, task, key, reading or {}
        self.batch_size = -(-batch_size // shards) * shards
        self.source = task.source(split)
        self.placement = sharding.batch_sharding(mesh)
        self.rows = pipeline.rows_of_process(self.placement, self.batch_size)
        self._eval_step = functools.partial(step.eval_step, model=model, task=task)
        # Predictions are sharded like the batch, so each process holds those of its rows.
        self.step = jax.jit(self._eval_step, out_shardings=(None, self.placement))

    @functools.cached_property
    def num_batches(self) -> int:
        """How often `run` calls `tick`."""
        return -(-pipeline.plan_evaluation(self.source)[1] // self.batch_size)

    def run(
        self, params: Any, tick: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """{`name/metric`: value} over the whole split; calls `tick` after every batch.

        With several processes this is a collective: all call it, and all get every value.
        """
        total: dict[str, tuple[float, float]] = {}
        parts = []
        for batch in pipeline.evaluation_batches(
            self.source,
            self.task,
            batch_size=self.batch_size,
            rows=self.rows,
            **self.reading,
        ):
            on_device = pipeline.place(
                batch, self.placement, self.batch_size, self.rows
            )
            sums, predictions = self.step(params, on_device, self.key)
            # Added up in float64: a thousand float32 additions lose the fifth digit.
            sums = jax.tree.map(float, jax.device_get(sums))
            total = metrics.add(total, sums) if total else sums
            tick()
            if predictions is not None:
                marks = {name: batch[name] for name in ("index", "valid")}
                parts.append({**read_local_rows(predictions), **marks})
        results = metrics.compute_means(total)
        if self.task.coefficients:  # a probe has no loss, rather than one of 0
            results["loss"] = sum(
                weight * results[term]
                for term, weight in self.task.coefficients.items()
            )
        if parts:
            results |= self.task.score(gather_rows(parts), self.source)
        return {f"{self.name}/{metric}": value for metric, value in results.items()}

    def metric_names(self, params: Any) -> set[str] | None:
        """The keys of the result of `run`, by shape evaluation.

        None if the task has a `score` and does not list the names of its metrics in `SCORES`.

        Args:
            params: the parameters or their shapes.
        """
        scores = getattr(self.task, "SCORES", None)
        if hasattr(self.task, "score") and scores is None:
            return None
        batch = pipeline.batch_shapes(self.source, self.task, self.batch_size)
        sums, _ = jax.eval_shape(self._eval_step, params, batch, self.key)
        names = {*sums, *(scores or ()), *(["loss"] if self.task.coefficients else [])}
        return {f"{self.name}/{metric}" for metric in names}


def open_evaluation(
    config: ConfigDict,
    name: str,
    task: Any,
    model: nn.Module,
    mesh: Mesh,
    reading: Mapping[str, int] | None = None,
) -> Evaluation:
    """The evaluation `config.evals[name]` of a task, with its data opened."""
    section = config.evals[name]
    return Evaluation(
        name,
        model,
        task,
        section.split,
        mesh=mesh,
        batch_size=section.batch_size or config.batch_size,
        key=make_key(config.seed),
        reading=reading,
    )


def make_key(seed: int) -> jax.Array:
    """The key that evaluations draw from; different from every key of training."""
    return jax.random.fold_in(jax.random.key(seed), 0xE7A1)


def read_local_rows(arrays: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """The rows of global arrays that this process holds, in order, as NumPy arrays."""

    def read(array: jax.Array) -> np.ndarray:
        # Devices along the tensor axis hold the same rows.
        parts = {s.index[0].start or 0: s.data for s in array.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return {name: read(array) for name, array in arrays.items()}


def gather_rows(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Every valid row of all batches and processes once, sorted by `index`."""
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if jax.process_count() > 1:
        arrays = {
            name: np.asarray(multihost_utils.process_allgather(array, tiled=True))
            for name, array in arrays.items()
        }
    valid = arrays.pop("valid")
    arrays = {name: array[valid] for name, array in arrays.items()}
    # Processes along the tensor axis hold the same rows.
    _, first = np.unique(arrays["index"], return_index=True)
    return {name: array[first] for name, array in arrays.items()}
