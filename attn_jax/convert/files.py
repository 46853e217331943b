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
    """Reads (path of the arrays or their index, config.json, arrays) of transformers' folder.

    Raises:
        ValueError: a file is missing or damaged.
    """
    path = find_weights(folder)
    config = Description(folder / "config.json")
    if path.suffix != ".json":
        return path, config, read_safetensors(path)
    arrays: dict[str, np.ndarray] = {}
    for part, names in read_index(path).items():
        found = read_safetensors(folder / part)
        if different := sorted(found.keys() ^ names):
            raise ValueError(
                f"{folder / part} does not hold the arrays that {path.name} lists for it, such as "
                f"{shorten(different[0])}. Fetch the folder again."
            )
        arrays |= found
    return path, config, arrays


def find_weights(folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of a folder's arrays, or of the index of those in several files.

    Raises:
        ValueError: the folder has no arrays.
    """
    path = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if path.exists():
        return path
    if index.exists():
        return index
    raise ValueError(
        f"{folder} has no model.safetensors; a pickled pytorch_model.bin cannot be "
        "read safely. Save the model with safe_serialization=True."
    )


def read_index(path: pathlib.Path) -> dict[str, set[str]]:
    """Reads {file: names of its arrays} of a model.safetensors.index.json.

    Raises:
        ValueError: it is damaged, or names a file outside its folder.
    """
    parts: dict[str, set[str]] = {}
    for name, part in Description(path).section("weight_map").items():
        plain = isinstance(part, str) and part.endswith(".safetensors")
        if not plain or pathlib.PurePath(part).name != part:
            raise ValueError(
                f"{path}: {shorten(part)} must be the name of a .safetensors file in the same "
                "folder. Fetch it again."
            )
        parts.setdefault(part, set()).add(name)
    if not parts:
        raise ValueError(f"{path} lists no arrays in weight_map. Fetch it again.")
    return parts


def list_arrays(path: pathlib.Path) -> list[str]:
    """Lists the names of the arrays of a .safetensors file or of an index."""
    if path.suffix == ".json":
        return sorted(name for names in read_index(path).values() for name in names)
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
