"""Files of named arrays that other frameworks write."""

import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

# The names of the format -> NumPy's; bfloat16 is ml_dtypes', which jax brings along.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """{name: array} of a .safetensors file, without PyTorch.

    Raises:
        ValueError: the file is cut short or no such file, or holds another number type.
    """
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is no whole .safetensors file: {error}. Fetch it again."
        ) from error
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{path}: {name} is of type {entry['dtype']}; only {', '.join(DTYPES)} "
                "can be read. Convert it first."
            )
        flat = np.frombuffer(entry["data"], DTYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A .safetensors file that PyTorch libraries read."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
