"""Compiles a run's train step for its mesh, and reads how much memory it takes."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import numpy as np

from attn_jax import metrics, paths
from attn_jax.plan import hlo
from attn_jax.run import Run

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# "... temporaries (25.93G) exceeds available HBM (15.75G)", or "Used 25.34G of 15.75G hbm".
TOO_LARGE = (
    r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        parameters, optimizer, average, batch: by shapes and shardings.
        activations: what a step allocates: activations, gradients, workspace.
        program: the code and its constants.
        padding: what the layouts of the compiler add to state and batch.
        usable: what the compiler has for all of them; None: it did not say.
        error: why the compiler refused; None: it did not.
    """

    parameters: int
    optimizer: int
    average: int
    batch: int
    activations: int
    program: int
    padding: int
    usable: int | None = None
    error: str | None = None

    @property
    def total(self) -> int:
        return (
            self.parameters
            + self.optimizer
            + self.average
            + self.batch
            + self.activations
            + self.program
            + self.padding
        )


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled train step.

    Attributes:
        step: the executable; None: it does not fit.
        program: what it does; None: likewise.
        flops: that a step executes, with what `remat` computes again, over all devices.
        seconds: that the compiler took.
    """

    memory: Memory
    step: Any
    program: hlo.Program | None
    flops: int
    seconds: float


def compile_step(run: Run) -> Compiled:
    """Compiles the train step of a run, from shapes alone."""
    began = time.perf_counter()
    update: Any = run.make_update()  # jitted
    traced = update.trace(run.state_shapes, shape_batch(run))
    flops = metrics.count_flops(traced.jaxpr)
    state = measure_state(run)
    try:
        step = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = read_refusal(str(error), state)
        return Compiled(memory, None, None, flops, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    found = step.memory_analysis()
    # Donated parts of the state are argument and output at once.
    arguments = found.argument_size_in_bytes
    output = found.output_size_in_bytes - found.alias_size_in_bytes
    memory = Memory(
        **state,
        activations=found.temp_size_in_bytes + output,
        program=found.generated_code_size_in_bytes,
        padding=max(0, arguments - sum(state.values())),
    )
    return Compiled(memory, step, hlo.Program(step.as_text()), flops, seconds)


def shape_batch(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch, with their sharding."""
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=run.batch_sharding)
        for name, x in run.batch_shapes.items()
    }


def measure_state(run: Run) -> dict[str, Any]:
    """Bytes on one device of the parts of state and batch."""
    state = run.state_shapes
    return {
        "parameters": count_local(state.params),
        "optimizer": count_local(state.opt_state),
        "average": count_local(state.average),
        "batch": count_local(shape_batch(run)),
    }


def count_local(tree: Any) -> int:
    """Bytes of a tree of sharded shapes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def read_refusal(text: str, state: dict[str, Any]) -> Memory:
    """The memory of a step that does not fit, as far as the compiler's message tells it."""
    for pattern in TOO_LARGE:
        if found := re.search(pattern, text):
            needed, available = (
                round(float(found[i]) * UNITS[found[i + 1]]) for i in (1, 3)
            )
            break
    else:
        needed, available = 0, None
    # The second message counts the state too.
    if "Used " in text:
        needed = max(0, needed - sum(state.values()))
    line = text.strip().splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    return Memory(
        **state,
        activations=needed,
        program=0,
        padding=0,
        usable=available,
        error=line,
    )


def count_parameters(run: Run) -> int:
    leaves = paths.named_leaves(run.param_shapes).values()
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)
