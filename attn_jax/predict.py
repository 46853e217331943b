"""Predicts for new inputs: with a trained run, or with a checkpoint from elsewhere.

A task takes part if it has two verbs, for inputs without labels:

    read_input(given) -> (named, rows)
    describe_outputs(named, rows, outputs, top) -> {name: value}

`given` is what the user gave: a string, a dict or an array. `named` {name: value} is repeated in the
result. Each of `rows` is a dict of arrays like those of `example`; one input may need several.
`outputs` holds the model's arrays for each row. `read_input` raises ValueError for an input that
cannot be read. Where one input may stand for several, `expand_input(given)` lists them.
A task whose results have `segments`, the segment of each pixel, says so by `SEGMENTS = True`; one
with `INTERMEDIATES = True` gets the outputs of a call that asks for intermediates.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from attn_jax import convert, features, sharding
from attn_jax.data import pipeline
from attn_jax.evaluation import make_key
from attn_jax.restore import restore
from attn_jax.step import prepare_batch

Row = dict[str, np.ndarray]
Result = dict[str, Any]


def predict(
    checkpoint: epath.PathLike,
    inputs: Iterable[Any],
    *,
    step: int | str = "latest",
    params: str | None = None,
    top: int = 5,
    embed: str | None = None,
    batch_size: int = 32,
    trust: Iterable[str] = (),
) -> list[Result]:
    """Predicts for each input; returns a dict of JSON values for each, in order.

    Args:
        checkpoint: a run's folder, or whatever `attn_jax.convert.load_pretrained` reads.
        inputs: for images, paths of files or folders, or uint8 arrays [H, W, C]; for text,
            strings, or dicts with the fields of the task, such as "question" and "context".
        step, params: of a run, as for `restore`.
        top: number of classes or words to list, the most probable first.
        embed: return a vector for each input instead, as a float32 array "embedding": "mean"
            of the tokens, "cls" (the first token) or "pooled" (the input of the head).
            With multiple choice it has a row for each ending. "mean:L" and "cls:L" read layer L: 0 is the embedding, -1 the last block.
        batch_size: rows in one call of the model, over all local devices.
        trust: other packages whose classes a run's config may name.

    Returns:
        One dict per input. An input that cannot be read gives {"input", "error"} and does not
        stop the others.

    Raises:
        ValueError: the checkpoint cannot be read, or its task has no predictions; `step`,
            `params` or `trust` is given, but it is no run; `embed` is unknown, or the model
            lacks that layer.
    """
    predictor = open_predictor(
        checkpoint, step=step, params=params, embed=embed, trust=trust
    )
    return list(predictor.run(inputs, top=top, batch_size=batch_size))


def open_predictor(
    checkpoint: epath.PathLike,
    *,
    step: int | str = "latest",
    params: str | None = None,
    embed: str | None = None,
    trust: Iterable[str] = (),
) -> "Predictor":
    """Opens a checkpoint for predictions; arguments and errors as of `predict`."""
    mesh = sharding.make_mesh({"data": -1}, jax.local_devices())
    if convert.is_run(checkpoint):
        module, variables, task = restore(
            checkpoint, step, params, trust=tuple(trust), mesh=mesh
        )
    else:
        check_no_run(checkpoint, step, params, trust)
        module, variables, task = convert.load_with_task(checkpoint)
        variables = jax.device_put(variables, sharding.replicated(mesh))
    verbs = ["read_input"] if embed else ["read_input", "describe_outputs"]
    if missing := [verb for verb in verbs if not hasattr(task, verb)]:
        raise ValueError(
            f"{checkpoint}: the task {type(task).__name__} has no predictions for new inputs "
            f"(it has no {missing[0]}); `python -m attn_jax analyze` draws what its model does."
        )
    if embed is not None:  # before any input is read
        features.parse_kind(embed)
    return Predictor(module, variables, task, mesh, embed)


def check_no_run(
    checkpoint: epath.PathLike,
    step: int | str,
    params: str | None,
    trust: Iterable[str],
) -> None:
    """Raises ValueError if an argument is given that means something only for a run."""
    given = [] if step == "latest" else [f"step={step!r}"]
    given += [] if params is None else [f"params={params!r}"]
    given += [f"trust={list(trust)}"] if list(trust) else []
    if given:
        verb, rest = ("are", "them") if len(given) > 1 else ("is", "it")
        raise ValueError(
            f"{checkpoint}: {', '.join(given)} {verb} for a run's folder, which this is not; "
            f"leave {rest} out."
        )


@dataclasses.dataclass
class Item:
    """An input whose rows are not all computed yet."""

    named: Result
    rows: list[Row]
    outputs: list[Row]


class Predictor:
    """A model on all local devices, with the task that reads inputs and explains outputs."""

    def __init__(
        self,
        module: nn.Module,
        variables: Mapping[str, Any],
        task: Any,
        mesh: jax.sharding.Mesh,
        embed: str | None,
    ):
        self.module, self.variables, self.task = module, variables, task
        self.mesh, self.embed = mesh, embed
        self.apply = jax.jit(self.compute)

    def run(
        self, inputs: Iterable[Any], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[Result]:
        """Yields the result of each input, in order, as soon as its batch is computed."""
        shards = sharding.batch_shards(self.mesh)
        size = -(-batch_size // shards) * shards
        waiting: collections.deque[Item] = collections.deque()
        rows: list[tuple[Item, Row]] = []
        for given in self.expand(inputs):
            item = self.read(given)
            waiting.append(item)
            rows += [(item, row) for row in item.rows]
            while len(rows) >= size:
                self.fill(rows[:size], size)
                rows = rows[size:]
            yield from self.finish(waiting, top)
        if rows:
            self.fill(rows, size)
        yield from self.finish(waiting, top)

    def expand(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """Yields single inputs; an input that cannot be listed is reported by `read`."""
        list_inputs: Callable[[Any], Iterable[Any]] | None = getattr(
            self.task, "expand_input", None
        )
        for given in inputs:
            yield from [given] if list_inputs is None else list_inputs(given)

    def read(self, given: Any) -> Item:
        try:
            named, rows = self.task.read_input(given)
        except ValueError as error:
            return Item({"input": str(given), "error": str(error)}, [], [])
        return Item(named, list(rows), [])

    def fill(self, rows: list[tuple[Item, Row]], size: int) -> None:
        """Computes the outputs of up to `size` rows; the batch is padded to `size`."""
        padded = [row for _, row in rows] + [rows[-1][1]] * (size - len(rows))
        batch = {name: np.stack([row[name] for row in padded]) for name in padded[0]}
        # For tasks that draw from the number of an example.
        batch.setdefault("index", np.arange(size, dtype=np.int32))
        placement = sharding.batch_sharding(self.mesh)
        on_device = pipeline.place(batch, placement, size, np.arange(size))
        outputs = jax.device_get(self.apply(self.variables, on_device))
        for number, (item, _) in enumerate(rows):
            item.outputs.append({name: out[number] for name, out in outputs.items()})

    def finish(self, waiting: collections.deque[Item], top: int) -> Iterator[Result]:
        """Yields the results at the head of the queue whose rows are all computed."""
        while waiting and len(waiting[0].outputs) == len(waiting[0].rows):
            item = waiting.popleft()
            if "error" in item.named:
                yield item.named
            elif self.embed is not None:
                vectors = [row["embedding"] for row in item.outputs]
                yield {**item.named, "embedding": np.mean(vectors, axis=0)}
            else:
                yield self.describe(item, top)

    def describe(self, item: Item, top: int) -> Result:
        try:
            found = self.task.describe_outputs(item.named, item.rows, item.outputs, top)
        except ValueError as error:
            return {**item.named, "error": str(error)}
        return {**item.named, **found}

    def compute(self, variables: Any, batch: Mapping[str, jax.Array]) -> Any:
        """The model's outputs [B, ...] for a batch, or {"embedding": [B, D]} ([B, C, D])."""
        batch = prepare_batch(self.task, dict(batch), make_key(0), train=False)
        inputs = self.task.inputs(batch)
        if self.embed is not None:
            return {
                "embedding": features.embed(self.module, variables, inputs, self.embed)
            }
        sown = ["intermediates"] if getattr(self.task, "INTERMEDIATES", False) else []
        outputs, _ = self.module.apply(variables, **inputs, mutable=sown)
        if not isinstance(outputs, dict):  # a Hopfield layer
            return {"output": outputs}
        # The largest array, which no result is made of, is not copied from the device.
        return {name: array for name, array in outputs.items() if name != "tokens"}
