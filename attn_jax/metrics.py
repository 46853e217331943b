"""Metrics as sums and counts, the adjusted Rand index, and FLOP counts.

A metric is a pair (sum, count), so that its mean does not depend on the division into
batches and micro-batches. Operations are counted in the traced program, because XLA's
`cost_analysis` counts the body of a scan only once, whatever its length.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Bool, Float, Integer

Sums = Mapping[str, tuple[Any, Any]]

# Dense bfloat16 operations per second of one JAX device, from the makers' data sheets
# (without sparsity; the fastest board of a name unless two are listed).
PEAK_FLOPS = {
    r"H100 PCIe": 756e12,  # NVIDIA H100 data sheet
    r"H100": 989e12,  # the same, SXM5
    r"H200": 989e12,  # NVIDIA H200 data sheet
    r"A100": 312e12,  # NVIDIA A100 data sheet
    r"V100": 125e12,  # NVIDIA V100 data sheet; float16, it has no bfloat16
    r"L4\b": 121e12,  # NVIDIA L4 data sheet
    r"RTX 4090\b(?! D)": 165e12,  # NVIDIA Ada white paper, float32 accumulation
    r"TPU v4$": 275e12,  # this and the rest: Google Cloud TPU documentation, per chip
    r"TPU v5 ?(lite|e)": 197e12,
    r"TPU v5p?$": 459e12,
    r"TPU v6 ?(lite|e)": 918e12,
    r"TPU ?7x": 2307e12 / 2,  # a chip shows as two JAX devices
}


def add(left: Sums, right: Sums) -> dict[str, tuple[Any, Any]]:
    """The sums and counts over two batches.

    Raises:
        ValueError: the two batches report different metrics.
    """
    if left.keys() != right.keys():
        raise ValueError(
            f"metrics {sorted(left)} and {sorted(right)} cannot be added; every batch "
            "must report the same names. Report a metric without examples as (0, 0)."
        )
    return {
        name: (left[name][0] + right[name][0], left[name][1] + right[name][1])
        for name in left
    }


def rank_classes(
    probabilities: Float[np.ndarray, " C"], names: Sequence[str] | None, top: int
) -> list[dict[str, Any]]:
    """The `top` most probable classes, as {"label": name or number, "probability": p}.

    Classes beyond the names are called by their number. Of equal ones the lower is first.
    """
    order = np.argsort(-probabilities, kind="stable")[:top]
    known = len(names or ())
    return [
        {
            "label": names[i] if names and i < known else str(i),
            "probability": float(probabilities[i]),
        }
        for i in map(int, order)
    ]


def compute_means(sums: Sums) -> dict[str, float]:
    """{name: sum / count} as Python floats; NaN if the count is 0."""
    return {
        name: float(total) / float(count) if float(count) else math.nan
        for name, (total, count) in sums.items()
    }


def count_overlaps(
    true: Integer[Array, "B ..."],
    predicted: Integer[Array, "B ..."],
    *,
    num_true: int,
    num_predicted: int,
    where: Bool[Array, "B ..."] | None = None,
) -> Float[Array, "B T P"]:
    """Pixels of each pair of a true and a predicted id, as T x P tables.

    T is `num_true` + 1 and P is `num_predicted` + 1: all ids out of range are counted in the
    last row or column. Exact up to 2^24 pixels an image.

    Args:
        where: the pixels that count.
    """
    batch = true.shape[0]

    def membership(ids: jax.Array, number: int) -> jax.Array:
        inside = (ids >= 0) & (ids < number)  # one_hot would map the others to zeros
        ids = jnp.where(inside, ids, number).reshape(batch, -1)
        return jax.nn.one_hot(ids, number + 1)

    member = membership(true, num_true)
    if where is not None:
        member = member * where.reshape(batch, -1, 1)
    found = membership(predicted, num_predicted)
    return jnp.einsum("BST,BSP->BTP", member, found)


def adjusted_rand_index(
    true: Integer[Array, "B ..."],
    predicted: Integer[Array, "B ..."],
    *,
    num_true: int,
    num_predicted: int,
    where: Bool[Array, "B ..."] | None = None,
) -> Float[Array, " B"]:
    """Agreement of two partitions of the same pixels: 1 if equal, 0 on average by chance.

    (R - E) / (M - E) over all pairs of pixels: R is the number of pairs that are together
    in both partitions, E its expectation by chance, M the mean over both partitions of the
    number of pairs that are together. If both partitions are trivial (a single cluster, or
    one pixel per cluster) this is 0 / 0, and 1 is returned.

    Args:
        true, predicted: cluster ids from 0 to `num_true` - 1 and `num_predicted` - 1. All
            other ids form one additional cluster.
        where: the pixels that count. FG-ARI leaves out the true background, whatever is
            predicted there: `where=true != 0`.

    Source: Hubert and Arabie 1985, eq. 5. Papers on scenes use `adjusted_rand_index` of
    multi_object_datasets, which is NaN if a single object is found perfectly.
    """
    both = count_overlaps(
        true, predicted, num_true=num_true, num_predicted=num_predicted, where=where
    )
    batch = true.shape[0]
    pixels = both.sum(axis=(1, 2))
    pairs = jnp.maximum(pixels * (pixels - 1), 1)

    def apart(sizes: jax.Array) -> jax.Array:
        """Share of pairs in different clusters.

        Unlike 1 - (share of pairs together), this does not cancel in float32.
        """
        sizes = sizes.reshape(batch, -1)
        return (sizes * (pixels[:, None] - sizes)).sum(axis=1) / pairs

    u, v, w = apart(both.sum(axis=2)), apart(both.sum(axis=1)), apart(both)
    below_one = w - (u + v) / 2  # M - R
    most = (u + v) / 2 - u * v  # M - E
    return jnp.where(most == 0, 1.0, 1 - below_one / jnp.where(most == 0, 1.0, most))


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 operations per second of one `jax.Device`; None if not listed."""
    for pattern, peak in PEAK_FLOPS.items():
        if re.search(pattern, device_kind):
            return peak
    return None


def mfu(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilization: flops / (seconds * peak), from 0 to 1.

    `flops` and `peak` must refer to the same devices: one, or all. The peak is that of
    bfloat16, even if the program computes in float32.

    Source: Chowdhery 2022 (PaLM), appendix B. Recomputed operations (remat) do not count:
    pass the `count_flops` of a step without them.
    """
    return flops / (seconds * peak)


def count_flops(program: ClosedJaxpr) -> int:
    """Operations of all matrix products and convolutions, two per multiply-add.

    Pass `jax.make_jaxpr(step)(*args)` with global shapes; the count is then over all
    devices. A scan counts its body times its length, `cond` its most expensive branch, and
    a `while_loop` one iteration. Products with zeros of padding or dilation do not count,
    so each gradient of a convolution costs as much as the forward pass. Elementwise
    operations count as zero, and so do kernels that are not JAX primitives (cuDNN
    attention): trace the reference path instead.
    """
    return _count(program.jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _count_product(equation)
    if name == "conv_general_dilated":
        return _count_convolution(equation)
    inner = [_count(jaxpr) for jaxpr in _subprograms(params.values())]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":  # the body has the shapes of one device
        axes = params["newly_manual_axes"]
        shards = math.prod(params["mesh"].shape[axis] for axis in axes)
        return shards * sum(inner)
    if name == "pallas_call":  # the body has the shapes of one block
        return math.prod(params["grid_mapping"].grid) * sum(inner)
    return sum(inner)


def _subprograms(values: Any) -> Iterator[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _subprograms(value)


def _count_product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, (output,) = equation.invars[0].aval, equation.outvars
    depth = math.prod(left.shape[dim] for dim in contracted)
    return 2 * math.prod(output.aval.shape) * depth


def _count_convolution(equation: Any) -> int:
    params = equation.params
    image, kernel = (variable.aval.shape for variable in equation.invars)
    output = equation.outvars[0].aval.shape
    dims = params["dimension_numbers"]
    batch, features, *space = dims.out_spec
    _, inputs, *kernel_space = dims.rhs_spec  # input features of one group
    pairs = 1  # of an output position and a kernel tap that meet on a real input
    for i, (dim, kernel_dim) in enumerate(zip(space, kernel_space, strict=True)):
        start = np.arange(output[dim])[:, None] * params["window_strides"][i]
        tap = np.arange(kernel[kernel_dim]) * params["rhs_dilation"][i]
        position = start + tap - params["padding"][i][0]
        spacing = params["lhs_dilation"][i]
        inside = (position >= 0) & (position < image[dims.lhs_spec[2 + i]] * spacing)
        pairs *= int((inside & (position % spacing == 0)).sum())
    # A weight gradient of a grouped convolution holds the groups in its batch instead;
    # `kernel[inputs]` is then the batch of one group already.
    return 2 * output[batch] * output[features] * kernel[inputs] * pairs
