"""The gradient of whole models with our layer norm and with Flax's, in turn.

    python benchmarks/layer_norm.py

Both have the same forward numbers; only the derivative is another program. The ratio is of
medians over rounds; a matrix product is timed in every round, since the speed of a shared
machine changes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import report

sys.path.insert(0, str(report.ROOT))

from attn_jax import attention
from attn_jax.models import bert, vit
from attn_jax.models.vit import blocks, model

SIZES = {
    "ViT-Ti/16, 16 images of 224x224": (192, 12, 768, 3, 16),
    "ViT-S/16, 8 images of 224x224": (384, 12, 1536, 6, 8),
    "BERT-base, 8 rows of 128 tokens": (768, 12, 3072, 12, 8),
}


def flax_norm(epsilon: float, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon, use_fast_variance=False, dtype="float32", name=name)


def compile_gradient(name: str, norm: Callable[..., nn.Module]) -> Callable[[], Any]:
    """A compiled gradient of the model, with `norm` as its layer norm."""
    width, depth, mlp_width, num_heads, rows = SIZES[name]
    sizes = dict(width=width, depth=depth, mlp_width=mlp_width, num_heads=num_heads)
    for file in (attention, bert, model, blocks):
        file.layer_norm = norm
    if name.startswith("ViT"):
        module = vit.ViT(num_classes=1000, patch_size=16, **sizes)
        inputs = jax.random.normal(jax.random.key(0), (rows, 224, 224, 3))
        output = "logits"
    else:
        module = bert.Bert(vocab_size=30522, **sizes)
        inputs = jnp.zeros((rows, 128), jnp.int32)
        output = "pooled"
    params = jax.jit(module.init)(jax.random.key(0), inputs)

    def loss(params: Any) -> jax.Array:
        return jnp.sin(module.apply(params, inputs)[output]).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    return lambda: compiled(params)


def seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    square = jax.random.normal(jax.random.key(0), (2048, 2048))
    product = jax.jit(jnp.matmul).lower(square, square).compile()
    ours = attention.layer_norm
    rows = []
    for name in SIZES:
        functions = [compile_gradient(name, norm) for norm in (ours, flax_norm)]
        for function in functions:
            function()  # the first call touches fresh memory
        times: list[list[float]] = [[], [], []]
        for _ in range(options.rounds):
            for kept, function in zip(
                times, [*functions, lambda: product(square, square)], strict=True
            ):
                kept.append(seconds(function))
        mine, theirs, peak = map(statistics.median, times)
        rate = 2 * 2048**3 / peak / 1e9
        rows.append(
            f"| {name} | {1e3 * mine:,.0f} | {1e3 * theirs:,.0f} | {mine / theirs:.2f} | "
            f"{rate:.0f} |"
        )
    report.write(
        "layer norm",
        [
            "### Layer norm: the gradient with its hand-written derivative",
            "",
            f"`python benchmarks/layer_norm.py --rounds={options.rounds}` "
            f"({report.provenance()})",
            "",
            "| model | ours, ms | Flax's norm, ms | ratio | matrix product, GFLOP/s |",
            "|---|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
