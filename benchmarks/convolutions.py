"""Gradients of convolutions on a CPU: `attn_jax.convolution` beside XLA's own.

    python benchmarks/convolutions.py

The layers are those of slot_attention/clevr_lite:small: 32 images, 7 slots. Medians over rounds
taken in turn, each beside a matrix product.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import report

from attn_jax.convolution import convolve, convolve_transposed
from attn_jax.metrics import count_flops


class Layer(NamedTuple):
    name: str
    images: int
    side: int  # of the input, in pixels
    channels: tuple[int, int]  # in, out
    stride: int
    transposed: bool


LAYERS = (
    Layer("encoder, first", 32, 64, (3, 32), 1, False),
    Layer("encoder, stride 2", 32, 64, (32, 32), 2, False),
    Layer("decoder, 16 to 32 pixels", 224, 16, (32, 32), 2, True),
    Layer("decoder, 32 to 64 pixels", 224, 32, (32, 32), 2, True),
)


def apply_xla(layer: Layer, x: jax.Array, kernel: jax.Array) -> jax.Array:
    strides = (layer.stride, layer.stride)
    if layer.transposed:
        return jax.lax.conv_transpose(x, kernel, strides, "SAME", transpose_kernel=True)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def apply_ours(layer: Layer, x: jax.Array, kernel: jax.Array) -> jax.Array:
    if layer.transposed:
        return convolve_transposed(x, kernel, layer.stride)
    strides, numbers = (layer.stride, layer.stride), ("NHWC", "HWIO", "NHWC")
    return convolve(x, kernel, strides, "SAME", dimension_numbers=numbers)


def make_gradient(
    layer: Layer, apply: Callable[..., jax.Array]
) -> tuple[Callable[[], Any], int]:
    """(a call of the compiled gradient, its operations)."""
    inside, outside = layer.channels
    shape = (layer.images, layer.side, layer.side, inside)
    kernel_shape = (5, 5, *layer.channels)
    if layer.transposed:
        kernel_shape = (5, 5, outside, inside)
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), kernel_shape)

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.square(apply(layer, x, kernel)).sum()

    gradient = jax.grad(loss, (0, 1))
    flops = count_flops(jax.make_jaxpr(gradient)(x, kernel))
    compiled = jax.jit(gradient).lower(x, kernel).compile()
    return lambda: compiled(x, kernel), flops


def count_seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, help="of each layer; default: as above")
    options = parser.parse_args()
    square = jax.random.normal(jax.random.key(0), (2048, 2048))
    product = jax.jit(jnp.matmul).lower(square, square).compile()
    rows = []
    for layer in LAYERS:
        if options.images:
            layer = layer._replace(images=options.images)
        (ours, flops), (theirs, _) = (
            make_gradient(layer, apply) for apply in (apply_ours, apply_xla)
        )
        functions = [ours, theirs, lambda: product(square, square)]
        for function in functions:
            function()  # the first call touches fresh memory
        times = [[count_seconds(f) for f in functions] for _ in range(options.rounds)]
        mine, xla, peak = map(statistics.median, zip(*times, strict=True))
        rate = 2 * 2048**3 / peak
        rows.append(
            f"| {layer.name} | {layer.images} | {1e3 * mine:,.0f} | {1e3 * xla:,.0f} | "
            f"{xla / mine:.1f} | {1e3 * flops / rate:,.0f} | {rate / 1e9:.0f} |"
        )
    report.write(
        "convolutions",
        [
            "### Gradients of convolutions on a CPU",
            "",
            f"`python benchmarks/convolutions.py --rounds={options.rounds}` "
            f"({report.provenance()})",
            "",
            "| layer, kernels of 5x5 | images | ours, ms | XLA's, ms | ratio "
            "| floor: its products at that rate, ms | matrix product, GFLOP/s |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
