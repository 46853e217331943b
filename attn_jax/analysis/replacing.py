"""Replaces attention heads by the average over the visible tokens, and measures the effect.

Heads of class I (see `attn_jax.analysis.heads`) average over nearly everything, so an average that
looks at nothing should do as well (Ramsauer et al. 2021, sec. 4).
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attn_jax.attention import MultiHeadAttention
from attn_jax.models.hopfield import HopfieldAttention
from attn_jax.restore import evaluate

Head = tuple[int, int]


def parse_heads(text: str) -> list[Head]:
    """[(layer, head)] of "0.0,0.1", each once.

    Raises:
        ValueError: the text is no such list.
    """
    if not re.fullmatch(r"\d+\.\d+(,\d+\.\d+)*", text):
        raise ValueError(
            f"--replace={text} must be a list LAYER.HEAD,LAYER.HEAD, such as 0.0,0.1."
        )
    pairs = (part.split(".") for part in text.split(","))
    return sorted({(int(layer), int(head)) for layer, head in pairs})


@contextlib.contextmanager
def replace_heads(heads: Sequence[Head]) -> Iterator[None]:
    """Inside, these heads of the modules `block_LAYER/attention` average over visible tokens.

    Weights that are sown are those before the replacement. A function that was compiled before
    keeps its heads: compile inside.

    Raises:
        ValueError: a layer has no such head; at the end, a layer was never called.
    """
    inside: list[tuple[Sequence[int], jax.Array | None]] = []
    met = set()

    def intercept(
        call: Callable, args: tuple, kwargs: dict[str, Any], context: Any
    ) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, MultiHeadAttention | HopfieldAttention):
            path = "/".join(module.path)
            chosen = [
                (layer, head)
                for layer, head in heads
                if path == f"block_{layer}/attention"
            ]
            for layer, head in chosen:
                if head >= module.num_heads:
                    raise ValueError(
                        f"--replace={layer}.{head}: layer {layer} has the heads 0 to "
                        f"{module.num_heads - 1}."
                    )
            met.update(chosen)
            mask = args[2] if len(args) > 2 else kwargs.get("mask")
            inside.append(([head for _, head in chosen], mask))
            try:
                return call(*args, **kwargs)
            finally:
                inside.pop()
        # The one dropout of an attention is that of its weights [B, N, Q, K].
        if inside and isinstance(module, nn.Dropout):
            replaced, mask = inside[-1]
            args = (average(args[0], replaced, mask), *args[1:])
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield
    if missing := sorted(set(heads) - met):
        layer, head = missing[0]
        raise ValueError(
            f"--replace={layer}.{head}: the model has no block {layer} with an attention."
        )


def average(
    weights: jax.Array, heads: Sequence[int], mask: jax.Array | None
) -> jax.Array:
    """The weights [B, N, Q, K], uniform over visible keys in these heads."""
    visible = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask
    visible = jnp.broadcast_to(visible, weights.shape).astype(weights.dtype)
    uniform = visible / jnp.maximum(visible.sum(axis=-1, keepdims=True), 1)
    replaced = jnp.isin(jnp.arange(weights.shape[1]), jnp.array(heads, int))
    return jnp.where(replaced.reshape(1, -1, 1, 1), uniform, weights)


def measure_replacement(
    directory: str,
    step: int | str = "latest",
    params: str | None = None,
    heads: Sequence[Head] = (),
    *,
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """{"step", "replaced", "evaluations": {"name/metric": {"before", "after"}}} of a run.

    Args:
        heads: (layer, head), both from 0.

    Raises:
        ValueError: the run has no such head; see `attn_jax.evaluate`.
    """
    with replace_heads(heads):
        after = evaluate(directory, step, params, trust=trust)
    before = evaluate(directory, after["step"], params, trust=trust)
    return {
        "step": before.pop("step"),
        "replaced": [f"{layer}.{head}" for layer, head in heads],
        "evaluations": {
            name: {"before": value, "after": after[name]}
            for name, value in before.items()
        },
    }
