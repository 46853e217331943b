"""Reads and writes files of named arrays of other frameworks.

Files are untrusted: only regular files are read, and no more memory is allocated than the
size of the file and its header account for.
"""

import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16, which safetensors asks NumPy for)
import numpy as np
import safetensors
from safetensors.numpy import save_file

from attn_jax.convert.description import Description, check_regular, shorten
from attn_jax.data import bounded

# Types of the safetensors format that are read.
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL")


def read_hugging_face(
    folder: pathlib.Path,
) -> tuple[pathlib.Path, Description, dict[str, np.ndarray]]:
    """Reads (path of the arrays, config.json, arrays) of a folder of transformers.

    Raises:
        ValueError: a file is missing, damaged or split in parts.
    """
    path = find_weights(folder)
    return path, Description(folder / "config.json"), read_safetensors(path)


def find_weights(folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of a folder's arrays.

    Raises:
        ValueError: the folder has no arrays, or has them in several files.
    """
    path = folder / "model.safetensors"
    if (folder / "model.safetensors.index.json").exists():
        raise ValueError(
            f"{folder} has its arrays in several files; save the model again with "
            "save_pretrained(max_shard_size='1TB')."
        )
    if not path.exists():
        raise ValueError(
            f"{folder} has no model.safetensors; a pickled pytorch_model.bin cannot be "
            "read safely. Save the model with safe_serialization=True."
        )
    return path


def list_arrays(path: pathlib.Path) -> list[str]:
    """Lists the names of the arrays of a .safetensors file."""
    with open_safetensors(path) as file:
        return list(file.keys())


def open_safetensors(path: pathlib.Path) -> Any:
    """Opens a .safetensors file; the library checks its header against its size."""
    check_regular(path)
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no whole .safetensors file: {shorten(error)}. Fetch it again."
        ) from error


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads {name: array} of a .safetensors file, without PyTorch.

    Raises:
        ValueError: the file is cut short or of another format; an array is of another type
            than `DTYPES`, or has no elements.
    """
    arrays = {}
    with open_safetensors(path) as file:
        for name in file.keys():  # noqa: SIM118  (no dictionary)
            header = file.get_slice(name)
            if header.get_dtype() not in DTYPES:
                raise ValueError(
                    f"{path}: {shorten(name)} is of type {header.get_dtype()}; only "
                    f"{', '.join(DTYPES)} can be read. Convert it first."
                )
            check_not_empty(path, name, header.get_shape())
            arrays[name] = file.get_tensor(name)
    return arrays


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads {name: array} of a NumPy archive.

    Raises:
        ValueError: the file is cut short or of another format; an array holds Python objects,
            has no elements, or another number of bytes than its header says; the archive
            is a decompression bomb.
    """
    size = check_regular(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no whole .npz file. Fetch it again.")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            bounded.check_expansion(size, total, path.name)
            for member in members:
                name = member.filename.removesuffix(".npy")
                arrays[name] = bounded.read_npy(archive, member)
                check_not_empty(path, name, arrays[name].shape)
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        OSError,
        EOFError,
        RuntimeError,  # encrypted
        NotImplementedError,  # another compression
    ) as error:
        raise ValueError(
            f"{path} is no whole .npz file: {shorten(error, 300)}. Fetch it again."
        ) from error
    return arrays


def check_not_empty(path: Any, name: str, shape: Any) -> None:
    """Raises ValueError if an array has no elements, as its shape may then be anything."""
    if 0 in shape:
        raise ValueError(
            f"{path}: {shorten(name)} has no elements (shape {shorten(list(shape))})."
        )


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a .safetensors file that PyTorch libraries read."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
