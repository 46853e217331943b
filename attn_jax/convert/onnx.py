"""Writes a model as an ONNX file, by jax2onnx."""

import contextlib
import io
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.convert.inference import Inference
from attn_jax.convert.programs import open_batch, write_description

LARGEST = 2**31 - 2**24  # bytes of a protobuf, less what is not parameters


def write_onnx(
    inference: Inference, file: pathlib.Path, about: Mapping[str, Any]
) -> None:
    """Writes FILE for ONNX Runtime, and `about` to FILE.json.

    Parameters of two gigabytes and more, which no ONNX file can hold, are in FILE.onnx.data.

    Raises:
        ValueError: the extra "onnx" is not installed; ONNX or jax2onnx has no such operation, which
            is named.
    """
    try:
        import jax2onnx
        import onnx
    except ImportError as error:
        raise ValueError(
            f"ONNX needs {error.name}: pip install 'attn_jax[onnx]'."
        ) from None
    names, outputs = list(inference.inputs), list(inference.shape_outputs())

    def call(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        found = inference.call(**dict(zip(names, arrays, strict=True)))
        return tuple(found[name] for name in outputs)

    shapes = list(inference.shape_inputs(open_batch()).values())
    with quiet():
        try:
            # Traced here, so that jax2onnx sees operations of XLA, and not those of Flax and
            # jax.numpy, of which it has translations of its own.
            traced = jax.make_jaxpr(call)(*shapes)
            model = jax2onnx.to_onnx(
                lambda *arrays: evaluate(traced.jaxpr, traced.consts, arrays),
                inputs=shapes,
                input_names=names,
                output_names=outputs,
            )
        except (NotImplementedError, TypeError, ValueError) as error:
            raise ValueError(f"the model cannot be written as ONNX: {error}") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    size = sum(np.asarray(constant).nbytes for constant in traced.consts)
    data = dict(
        save_as_external_data=True, location=f"{file.name}.data", size_threshold=2**20
    )
    onnx.save(model, str(file), **(data if size > LARGEST else {}))
    write_description(inference, file, about)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what jax2onnx prints and warns of, which is about its own work."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        jax.numpy_rank_promotion("allow"),
    ):
        warnings.simplefilter("ignore")
        yield


def evaluate(jaxpr: Any, consts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """Computes a traced function, with transposed convolutions as convolutions of spread inputs.

    jax2onnx gives them a wrong size. Calls are inlined; what is in loops stays as it is. Where
    the computation depends on the platform, the default is taken.
    """
    known: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    known.update(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, arrays, strict=True))
    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        params = equation.params
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if equation.primitive.name in INLINED and hasattr(inner, "consts"):
            found = evaluate(inner.jaxpr, inner.consts, given)
        elif equation.primitive.name == "platform_index":
            found = [None]
        elif params.get("branches_platforms"):
            branch = params["branches"][params["branches_platforms"].index(None)]
            found = evaluate(branch.jaxpr, branch.consts, given[1:])
        elif equation.primitive.name == "conv_general_dilated":
            found = [convolve(*given, **params)]
        else:
            found = equation.primitive.bind(*given, **params)
            found = found if equation.primitive.multiple_results else [found]
        known.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


# Primitives that only call another function.
INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    lhs_dilation: Sequence[int],
    dimension_numbers: Any,
    batch_group_count: int = 1,
    **params: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` without `lhs_dilation`: zeros are put between the inputs."""
    for axis, step in zip(dimension_numbers.lhs_spec[2:], lhs_dilation, strict=True):
        if step == 1:
            continue
        shape, length = x.shape, x.shape[axis]
        zeros = jnp.zeros((*shape[: axis + 1], step - 1, *shape[axis + 1 :]), x.dtype)
        x = jnp.concatenate([jnp.expand_dims(x, axis + 1), zeros], axis + 1)
        x = x.reshape(*shape[:axis], length * step, *shape[axis + 1 :])
        x = jax.lax.slice_in_dim(x, 0, (length - 1) * step + 1, axis=axis)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        **params,
        dimension_numbers=dimension_numbers,
        batch_group_count=batch_group_count,
    )
