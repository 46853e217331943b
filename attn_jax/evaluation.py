"""One named evaluation: every example of a split exactly once, on whatever devices."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from attn_jax import metrics, sharding, step
from attn_jax.data import pipeline


class Evaluation:
    """A task's split, ready to be run on parameters again and again.

    The batch size is rounded up to what the devices divide: results do not depend on it,
    since padded rows never count and sums are added, not means.
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
        self.step = jax.jit(functools.partial(step.eval_step, model=model, task=task))

    def run(
        self, params: Any, tick: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """{`name/metric`: value} over the whole split; `tick` is called every batch."""
        total: dict[str, tuple[float, float]] = {}
        gathered = []
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
            # Float64 from here on: a thousand float32 additions lose the fifth digit.
            sums = jax.tree.map(float, jax.device_get(sums))
            total = metrics.add(total, sums) if total else sums
            tick()
            if predictions is not None:
                marks = {name: on_device[name] for name in ("index", "valid")}
                gathered.append(gather({**predictions, **marks}))
        results = metrics.ratio(total)
        if self.task.coefficients:  # a probe has no loss, rather than one of 0
            results["loss"] = sum(
                weight * results[term]
                for term, weight in self.task.coefficients.items()
            )
        if gathered:
            arrays = {
                name: np.concatenate([part[name] for part in gathered])
                for name in gathered[0]
            }
            valid = arrays.pop("valid")
            predictions = {name: array[valid] for name, array in arrays.items()}
            results |= self.task.score(predictions, self.source)
        return {f"{self.name}/{metric}": value for metric, value in results.items()}


def gather(arrays: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Global arrays on every host."""
    if jax.process_count() == 1:
        return jax.device_get(arrays)
    return {
        name: np.asarray(multihost_utils.process_allgather(array, tiled=True))
        for name, array in arrays.items()
    }
