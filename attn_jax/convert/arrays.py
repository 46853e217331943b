"""Converts named arrays of another code base to our parameter tree and back, by a table.

A format is a table {our parameter: `Entry`}, which `read_parameters` and `write_arrays` apply in
the two directions. Every array of a file must match the table; otherwise the error lists all
differences.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from attn_jax import paths
from attn_jax.data import bounded

# How an array is laid out in the file. "same": as ours. "squeezed": as ours, except for axes of
# length 1. "flat": all axes in one. "dense", "heads": a matrix [out, in]; our side has one output
# axis for "dense", two for "heads". "in_out", "in_out_heads": the same, but [in, out]. "conv": [out, in, h, w]. "conv1x1": a matrix kept as
# [out, in, 1, 1]. "conv1d": [out, in, k]. "sequence_first": [T, 1, D] for our [1, T, D].
Layout = Literal[
    "same",
    "squeezed",
    "flat",
    "dense",
    "heads",
    "in_out",
    "in_out_heads",
    "conv",
    "conv1x1",
    "conv1d",
    "sequence_first",
]


class Rows(NamedTuple):
    """The rows [start, stop) of an array that has `total` rows."""

    start: int
    stop: int
    total: int


class Entry(NamedTuple):
    """The place of one of our parameters in a file; `rows` if it shares an array."""

    name: str
    layout: Layout = "same"
    rows: Rows | None = None


MAX_ROWS = 200  # in a table of differences

Entries = Mapping[str, Entry]
Arrays = Mapping[str, np.ndarray]


def dense_entries(
    ours: str, theirs: str, layout: Layout = "dense", rows: Rows | None = None
) -> dict[str, Entry]:
    """Makes the entries of a PyTorch layer with `weight` and `bias`."""
    return {
        f"{ours}/kernel": Entry(f"{theirs}.weight", layout, rows),
        f"{ours}/bias": Entry(f"{theirs}.bias", "flat", rows),
    }


def norm_entries(ours: str, theirs: str) -> dict[str, Entry]:
    """Makes the entries of a PyTorch layer norm."""
    return {
        f"{ours}/scale": Entry(f"{theirs}.weight"),
        f"{ours}/bias": Entry(f"{theirs}.bias"),
    }


def parameter_shapes(
    module: nn.Module, *inputs: jax.ShapeDtypeStruct, **options: Any
) -> dict[str, tuple[int, ...]]:
    """Returns {name: shape} of a module's parameters for such inputs; computes nothing."""

    def init(*inputs: jax.Array) -> Any:
        return module.init(jax.random.key(0), *inputs, **options)

    variables = jax.eval_shape(init, *inputs)
    leaves = paths.named_leaves(variables.get("params", {}))
    return {name: leaf.shape for name, leaf in leaves.items()}


def require_shape(arrays: Arrays, name: str, dims: int, source: str) -> tuple[int, ...]:
    """Returns the shape of an array, from which fields of a module are read.

    Raises:
        ValueError: the array is missing, or has another number of dimensions.
    """
    if name not in arrays:
        raise ValueError(
            f"{source} lacks {name}; it is incomplete, or is of another model."
        )
    shape = np.shape(arrays[name])
    if len(shape) != dims:
        raise ValueError(
            f"{source}: {name} has the shape {list(shape)}; it must have {dims} dimensions. "
            "Is this a checkpoint of this model?"
        )
    return shape


def bias_length(arrays: Arrays, name: str, source: str) -> int:
    """Returns the length of a bias, 0 if there is none.

    Raises:
        ValueError: the array does not have one dimension.
    """
    return require_shape(arrays, name, 1, source)[0] if name in arrays else 0


def check_depth(depth: int, arrays: Arrays, source: str) -> int:
    """Returns the number of layers.

    Raises:
        ValueError: it is larger than the number of arrays.
    """
    if depth > len(arrays):
        raise ValueError(
            f"{source} has {len(arrays)} arrays, which cannot be {depth:,} layers. Is its "
            "configuration, or are its names, those of another model?"
        )
    return depth


def check_lengths(lengths: Mapping[str, int], arrays: Arrays, source: str) -> None:
    """Checks that the numbers of a configuration are not larger than all in the file.

    Raises:
        ValueError: a length of `lengths`, {key: length}, is longer than any axis.
    """
    longest = max((max(np.shape(a), default=1) for a in arrays.values()), default=0)
    for key, length in lengths.items():
        if length > longest:
            raise ValueError(
                f"{source}: its configuration says {key}={length}, but the longest axis of an "
                f"array has {longest}. The two files do not belong together."
            )


def read_parameters(
    entries: Entries,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Arrays,
    source: str,
    *,
    ignore: Iterable[str] = (),
    remedy: str = "correct the fields that were passed, or the file's configuration",
) -> dict[str, Any]:
    """Reads our parameter tree, in float32; every array must be used or ignored.

    Args:
        shapes: {our name: shape} of all parameters of the module.
        source: of the arrays, for messages.
        ignore: prefixes of names of arrays that may be unused.
        remedy: what to do about differences, for messages.

    Raises:
        ValueError: arrays are missing, unused, not floating point or of another shape (one
            table of all).
    """
    found, used, rows = {}, set(), []
    for ours, shape in shapes.items():
        entry = entries[ours]
        wanted = f"{ours} {list(shape)}"
        used.add(entry.name)
        if entry.name not in arrays:
            rows.append((entry.name, "missing", wanted))
            continue
        array = np.asarray(arrays[entry.name])
        if not jnp.issubdtype(array.dtype, jnp.floating):
            rows.append((entry.name, str(array.dtype), "floating point"))
            continue
        value = decode_layout(array, entry, shape)
        if value is None:
            part = f" of {entry.rows.total} rows" if entry.rows else ""
            rows.append((entry.name, str(list(array.shape)), wanted + part))
        else:
            found[ours] = value
    ignored = tuple(ignore)
    rows += [
        (name, str(list(np.shape(array))), "no such parameter")
        for name, array in sorted(arrays.items())
        if name not in used and not name.startswith(ignored)
    ]
    if rows:
        raise ValueError(describe_differences(source, rows, remedy))
    return unflatten_dict(found, sep="/")


def write_arrays(
    entries: Entries, leaves: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns {their name: array}; the inverse of `read_parameters`."""
    arrays: dict[str, np.ndarray] = {}
    shared: dict[str, dict[int, np.ndarray]] = {}
    for ours, leaf in leaves.items():
        entry = entries[ours]
        array = encode_layout(leaf, entry.layout)
        if entry.rows is None:
            arrays[entry.name] = array
        else:
            shared.setdefault(entry.name, {})[entry.rows.start] = array
    for name, parts in shared.items():
        arrays[name] = np.concatenate([parts[start] for start in sorted(parts)])
    return arrays


def decode_layout(
    array: np.ndarray, entry: Entry, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Converts an array of a file to our parameter; None if it does not have that shape."""
    if entry.rows is not None:
        if array.ndim == 0 or len(array) != entry.rows.total:
            return None
        array = array[entry.rows.start : entry.rows.stop]
    layout, expected = entry.layout, shape
    if layout == "flat":
        expected = (math.prod(shape),)
    elif layout in ("dense", "heads"):
        split = len(shape) - (1 if layout == "dense" else 2)
        expected = (math.prod(shape[split:]), math.prod(shape[:split]))
    elif layout in ("in_out", "in_out_heads"):
        split = len(shape) - (1 if layout == "in_out" else 2)
        expected = (math.prod(shape[:split]), math.prod(shape[split:]))
    elif layout == "conv" and len(shape) == 4:
        expected = (shape[3], shape[2], shape[0], shape[1])
    elif layout == "conv1x1":
        expected = (*shape[::-1], 1, 1)
    elif layout == "conv1d":
        expected = shape[::-1]
    elif layout == "sequence_first":
        expected = (shape[1], shape[0], *shape[2:])
    elif layout == "squeezed":
        array = array.reshape([n for n in array.shape if n > 1])
        expected = tuple(n for n in shape if n > 1)
    if array.shape != expected:
        return None
    if layout in ("dense", "heads"):
        array = array.T
    elif layout == "conv":
        array = array.transpose(2, 3, 1, 0)
    elif layout == "conv1x1":
        array = array[:, :, 0, 0].T
    elif layout == "conv1d":
        array = array.T
    elif layout == "sequence_first":
        array = array.swapaxes(0, 1)
    return np.asarray(array, np.float32).reshape(shape)


def encode_layout(array: np.ndarray, layout: Layout) -> np.ndarray:
    """Converts our parameter to an array of a file, all rows; inverts `decode_layout`."""
    array = np.asarray(array, np.float32)
    if layout == "flat":
        return array.reshape(-1)
    if layout == "dense":
        return array.reshape(-1, array.shape[-1]).T
    if layout == "heads":
        return array.reshape(-1, array.shape[-2] * array.shape[-1]).T
    if layout == "in_out":
        return array.reshape(-1, array.shape[-1])
    if layout == "in_out_heads":
        return array.reshape(-1, array.shape[-2] * array.shape[-1])
    if layout == "conv":
        return array.transpose(3, 2, 0, 1)
    if layout == "conv1x1":
        return array.T[:, :, None, None]
    if layout == "conv1d":
        return array.T
    if layout == "sequence_first":
        return array.swapaxes(0, 1)
    return array


def describe_differences(
    source: str, rows: list[tuple[str, str, str]], remedy: str
) -> str:
    """Writes the message about arrays that do not fit, with one table of all."""
    count = len(rows)
    rows = [
        (bounded.printable(key, 120), file, model)
        for key, file, model in rows[:MAX_ROWS]
    ]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    lines = [
        f"  {key:<{widths[0]}}  {file:<{widths[1]}}  {model}"
        for key, file, model in [("key", "in the file", "in the model"), *rows]
    ]
    if count > MAX_ROWS:
        lines.append(f"  ... and {count - MAX_ROWS:,} more")
    if all(model == "floating point" for _, _, model in rows):
        remedy = "save a quantized model in full precision first"
    return f"{source} and the model differ in {count} arrays; {remedy}:\n" + "\n".join(
        lines
    )
