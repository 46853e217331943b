"""The function that a model is after training: named arrays of a batch to named arrays.

StableHLO and ONNX files hold it; see `attn_jax.convert.programs`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import paths
from attn_jax.evaluation import make_key
from attn_jax.step import prepare_batch

# Arguments of training alone: which tokens are guessed, which rows share a line.
TRAINING = (
    "cls_positions",
    "mlm_positions",
    "patch_mask",
    "patch_source",
    "position_ids",
    "sequence_ids",
)
NO_ROW = -1  # `own` of a row that is none of the stored ones

Row = Mapping[str, tuple[tuple[int, ...], Any]]


class Inference(NamedTuple):
    """A model with its parameters, as a function.

    Attributes:
        call: arrays by name, [B, ...] each -> outputs by name.
        inputs: {name: shape and dtype of one row, without B}.
    """

    call: Callable[..., dict[str, jax.Array]]
    inputs: dict[str, jax.ShapeDtypeStruct]

    def shape_outputs(self, batch: Any = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the outputs of a batch."""
        return jax.eval_shape(self.call, **self.shape_inputs(batch))

    def shape_inputs(self, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the inputs of a batch, whose size may be a symbol."""
        return {
            name: jax.ShapeDtypeStruct((batch, *row.shape), row.dtype)
            for name, row in self.inputs.items()
        }


def make_inference(
    module: nn.Module, variables: Mapping[str, Any], task: Any, row: Row
) -> Inference:
    """Makes the function that `predict` computes of rows that are already prepared.

    Its inputs are the arguments of the model's call that differ between rows, such as `images` after
    normalization. All else is fixed: stored rows of a table, and what training alone uses is left
    out. Slots start from those of `predict`, the same in every example, so nothing is random.

    Args:
        task: whose `prepare` and `inputs` make the arguments of a batch.
        row: {name: (shape without the batch, dtype)} of what the task's `example` returns.
    """
    # The same rows in batches of two sizes: what differs in shape is of the rows.
    given, more = (make_arguments(task, row, size) for size in (2, 3))
    starts = "sample_keys" in given
    rows, fixed = {}, {}
    for name, value in given.items():
        if name in TRAINING or name == "sample_keys":
            continue
        if not hasattr(value, "shape") or value.shape == more[name].shape:
            fixed[name] = value
        elif name == "own":
            fixed[name] = None
        else:
            rows[name] = jax.ShapeDtypeStruct(value.shape[1:], value.dtype)
    slots = find_slots(module, variables, given) if starts else None

    def call(**arrays: jax.Array) -> dict[str, jax.Array]:
        size = arrays[next(iter(rows))].shape[0]
        arguments = {**fixed, **arrays}
        if "own" in fixed:
            arguments["own"] = jnp.full((size,), NO_ROW, jnp.int32)
        if slots is not None:
            shape = (size, *slots.shape[1:])
            arguments["initial_slots"] = jnp.broadcast_to(slots, shape)
        outputs: Any = module.apply(variables, **arguments, train=False)
        return outputs if isinstance(outputs, dict) else {"output": outputs}

    return Inference(call, rows)


def make_arguments(task: Any, row: Row, size: int) -> dict[str, Any]:
    """The arguments of the model's call for a batch of rows of zeros."""
    batch: dict[str, Any] = {
        name: jnp.zeros((size, *shape), dtype) for name, (shape, dtype) in row.items()
    }
    batch["index"] = jnp.zeros(size, jnp.int32)
    return task.inputs(prepare_batch(task, batch, make_key(0), train=False))


def find_slots(
    module: nn.Module, variables: Mapping[str, Any], given: Mapping[str, Any]
) -> np.ndarray | None:
    """The slots [1, K, D] that `predict` starts from; None: the model has no such start."""
    name = "initialize_slots"
    _, seen = module.apply(
        variables,
        **given,
        mutable=["intermediates"],
        capture_intermediates=lambda _, method: method == name,
    )
    leaves = paths.named_leaves(seen.get("intermediates", {}))
    found = [leaf for path, leaf in leaves.items() if name in path]
    return np.asarray(found[0][:1]) if found else None


def describe_row(task: Any) -> Row:
    """The row of a task that has no data, of a checkpoint from elsewhere."""
    if hasattr(task, "image_size"):
        sides = task.image_size
        sides = (sides, sides) if isinstance(sides, int) else tuple(sides)
        return {"images": ((*sides, task.channels), np.uint8)}
    shape: tuple[int, ...] = (task.sequence_length,)
    shape = (task.choices, *shape) if hasattr(task, "choices") else shape
    tokens = {name: (shape, np.int32) for name in ("token_ids", "segment_ids")}
    return {**tokens, "mask": (shape, np.bool_), "mlm_positions": ((1,), np.int32)}
