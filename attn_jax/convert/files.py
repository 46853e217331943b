"""Files of named arrays that other frameworks write, and the JSON beside them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath
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


class Description(dict):
    """A JSON object of a file; a key that it lacks is an error that names the file."""

    def __init__(self, path: epath.PathLike):
        try:
            described = json.loads(epath.Path(path).read_text())
        except ValueError as error:  # of JSON and of UTF-8
            raise ValueError(f"{path} is no JSON: {error}. Fetch it again.") from error
        if not isinstance(described, dict):
            raise ValueError(f"{path} holds no JSON object, but {described!r:.40}.")
        super().__init__(described)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise ValueError(
            f"{self.path} lacks {key!r}, which describes the model. Is it this model's?"
        )


def read_hugging_face(
    folder: pathlib.Path,
) -> tuple[pathlib.Path, Description, dict[str, np.ndarray]]:
    """(path of the arrays, config.json, arrays) of a folder of transformers.

    Raises:
        ValueError: one of the files is missing, damaged or in parts.
    """
    path = folder / "model.safetensors"
    if (folder / "model.safetensors.index.json").exists():
        raise ValueError(
            f"{folder} has its arrays in several files; save the model once more with "
            "save_pretrained(max_shard_size='1TB')."
        )
    if not path.exists():
        raise ValueError(
            f"{folder} has no model.safetensors; a pickled pytorch_model.bin cannot be "
            "read safely. Save the model with safe_serialization=True."
        )
    return path, Description(folder / "config.json"), read_safetensors(path)


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
