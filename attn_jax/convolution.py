"""Convolutions of images that are also fast on a CPU, forwards and backwards.

XLA's convolutions on a CPU are as fast as matrix products, with two exceptions: a weight gradient
over many images is five to ten times slower than one over few, and a convolution of an input spread
by zeros multiplies these zeros. Here, on a CPU alone, the images are convolved in eight parts, and
a transposed convolution of stride s is s * s convolutions of stride 1, whose outputs interleave.
The numbers are the same up to the order of their sums.

Axes: B images, H W and h w positions of input and output, c C channels of input and output.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PARTS = 8
LARGE = 2**16  # pixels of all images, from which parts are faster
DIMENSIONS = ("NHWC", "HWIO", "NHWC")

Convolution = Callable[[jax.Array, jax.Array], jax.Array]


def convolve(
    x: Float[Array, "B H W c"],
    kernel: Float[Array, "k l c C"],
    strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> Float[Array, "B h w C"]:
    """`jax.lax.conv_general_dilated`; pass it to `nn.Conv` as `conv_general_dilated`."""
    direct = partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    return _choose(direct, direct, x, kernel, _count_pixels(x))


def convolve_transposed(
    x: Float[Array, "B H W c"], kernel: Float[Array, "k l C c"], stride: int
) -> Float[Array, "B h w C"]:
    """`jax.lax.conv_transpose` with padding "SAME" and `transpose_kernel=True`, as Keras has it.

    Args:
        kernel: its output channels stand before its input channels.
        stride: h = stride * H, w = stride * W.
    """
    direct = partial(
        jax.lax.conv_transpose,
        strides=(stride, stride),
        padding="SAME",
        transpose_kernel=True,
    )
    divides = 1 < stride <= min(kernel.shape[:2])  # else there are phases without taps
    on_cpu = partial(_convolve_phases, stride) if divides else direct
    return _choose(direct, on_cpu, x, kernel, _count_pixels(x) * stride**2)


def _count_pixels(x: jax.Array) -> int:
    return x.size // x.shape[-1]


def _choose(
    direct: Convolution,
    on_cpu: Convolution,
    x: jax.Array,
    kernel: jax.Array,
    pixels: int,
) -> jax.Array:
    """Applies `on_cpu` on a CPU, in parts if the images have many pixels; else `direct`."""
    if not jax.export.is_symbolic_dim(x.shape[0]) and pixels >= LARGE:
        on_cpu = partial(_convolve_parts, on_cpu)
    if on_cpu is direct:
        return direct(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=direct)


def _convolve_parts(
    convolution: Convolution, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Convolves the images in up to eight parts of every eighth image.

    Neighbours are in different parts, so that a device that holds a range of the batch has its
    share of every part.
    """
    parts = math.gcd(len(x), PARTS)
    x = x.reshape(-1, parts, *x.shape[1:])
    y = jnp.stack([convolution(x[:, i], kernel) for i in range(parts)], axis=1)
    return y.reshape(-1, *y.shape[2:])


def _convolve_phases(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A transposed convolution without the zeros between its inputs.

    Output pixel stride * i + p of an axis is the sum over the taps of phase p.
    """
    kernel = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    rows, columns = (_list_phases(size, stride) for size in kernel.shape[:2])
    y = jnp.stack(
        [
            jnp.stack(
                [
                    jax.lax.conv_general_dilated(
                        x,
                        kernel[row, column],
                        (1, 1),
                        (above, left),
                        dimension_numbers=DIMENSIONS,
                    )
                    for column, left in columns
                ],
                axis=3,
            )
            for row, above in rows
        ],
        axis=2,
    )
    B, H, _, W, _, C = y.shape
    return y.reshape(B, H * stride, W * stride, C)


def _list_phases(size: int, stride: int) -> list[tuple[slice, tuple[int, int]]]:
    """The taps and the padding of each phase along one axis."""
    before = size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)
    phases = []
    for phase in range(stride):
        first = (before - phase) % stride
        last = first + (size - 1 - first) // stride * stride
        padding = (before - phase - first) // stride, (phase + last - before) // stride
        phases.append((slice(first, None, stride), padding))
    return phases
