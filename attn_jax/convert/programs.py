"""Writes a model as a program that runs without attn_jax: StableHLO; ONNX is in onnx.py.

The parameters are inside. The size of the batch is open, all other sizes are fixed.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.export

from attn_jax.convert.inference import Inference

BATCH = "batch"  # the size that is open
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # that a StableHLO file runs on


@functools.cache
def open_batch() -> Any:
    """The size of a batch as a symbol, the same for all: traces are cached by its name."""
    (batch,) = jax.export.symbolic_shape(BATCH)
    return batch


def write_stablehlo(
    inference: Inference, file: pathlib.Path, about: Mapping[str, Any]
) -> None:
    """Writes FILE, which `jax.export.deserialize` reads, and `about` to FILE.json.

    Raises:
        ValueError: an operation of the model needs a batch of a known size.
    """
    function = jax.jit(inference.call)
    shapes = inference.shape_inputs(open_batch())
    try:
        exported = jax.export.export(function, platforms=PLATFORMS)(**shapes)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"the model cannot be written as StableHLO: {error}"
        ) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(exported.serialize())
    write_description(inference, file, about)


def write_description(
    inference: Inference, file: pathlib.Path, about: Mapping[str, Any]
) -> None:
    """Writes FILE.json, with shapes and dtypes of inputs and outputs, and `about`."""

    def describe(shapes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: {"shape": [BATCH, *shape.shape[1:]], "dtype": str(shape.dtype)}
            for name, shape in shapes.items()
        }

    content = {
        "inputs": describe(inference.shape_inputs(1)),
        "outputs": describe(inference.shape_outputs()),
        **about,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    file.with_suffix(".json").write_text(text, "utf-8")
