"""Replaces attention heads by heads that look at nothing, and measures the effect.

Heads of class I (see `attn_jax.analysis.heads`) average over nearly everything, so the average over the
visible tokens should do as well. A Gaussian head has a mean and a deviation for each query instead,

    A_ij ~ exp(-((s_j - mu_i) / sigma_i)^2 / 2),    s_j from -1 (first token) to 1 (last),

so 2 T numbers a head for rows of T tokens (Ramsauer et al. 2021, sec. 4 and A.5). There they are
learned; here they are the moments of the head's mean weights in training examples.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from attn_jax.analysis import attention_maps
from attn_jax.analysis.figures import make_batch
from attn_jax.attention import MultiHeadAttention
from attn_jax.models.hopfield import HopfieldAttention
from attn_jax.restore import evaluate, restore

Head = tuple[int, int]
Kernel = Float[np.ndarray, "Q K"]


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
def replace_heads(heads: Mapping[Head, Kernel | None]) -> Iterator[None]:
    """Inside, these heads of the modules `block_LAYER/attention` have fixed weights.

    They are proportional to the kernel at the visible tokens; None: to 1, an average. Weights that are sown are those before the replacement. A function that was compiled before
    keeps its heads: compile inside.

    Raises:
        ValueError: a layer has no such head, or rows of another length than the kernel; at the
            end, a layer was never called.
    """
    inside: list[tuple[Mapping[int, Kernel | None], jax.Array | None]] = []
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
            inside.append(({head: heads[layer, head] for layer, head in chosen}, mask))
            try:
                return call(*args, **kwargs)
            finally:
                inside.pop()
        # The one dropout of an attention is that of its weights [B, N, Q, K].
        if inside and isinstance(module, nn.Dropout):
            replaced, mask = inside[-1]
            args = (substitute(args[0], replaced, mask), *args[1:])
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield
    if missing := sorted(heads.keys() - met):
        layer, head = missing[0]
        raise ValueError(
            f"--replace={layer}.{head}: the model has no block {layer} with an attention."
        )


def substitute(
    weights: jax.Array,
    kernels: Mapping[int, Kernel | None],
    mask: jax.Array | None,
) -> jax.Array:
    """The weights [B, N, Q, K], in these heads proportional to their kernels at visible keys."""
    visible = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask
    visible = jnp.broadcast_to(visible, weights.shape).astype(weights.dtype)
    for head, kernel in kernels.items():
        row = visible[:, head]
        if kernel is not None:
            if kernel.shape != row.shape[1:]:
                raise ValueError(
                    f"rows have {list(row.shape[1:])} queries and keys, but those to which the "
                    f"Gaussian heads were fitted {list(kernel.shape)}; replace by averages."
                )
            row = row * jnp.asarray(kernel, row.dtype)[None]
        total = row.sum(axis=-1, keepdims=True)
        fixed = row / jnp.where(total > 0, total, 1)
        weights = weights.at[:, head].set(fixed)
    return weights


def fit_gaussian(
    weights: Float[np.ndarray, "B Q K"], mask: Bool[np.ndarray, "B Q"] | None = None
) -> Kernel:
    """The kernel of a Gaussian head with the moments of the mean weights of a head.

    A deviation is at least half of the distance between tokens, for a head that looks at one token. A
    query that is padding in all examples looks at itself, with deviation 1.

    Args:
        mask: False for queries that are padding; keys that are have no weight.
    """
    queries, keys = weights.shape[1:]
    place = np.linspace(-1, 1, keys)
    real = np.ones(weights.shape[:2], bool) if mask is None else mask
    total = (weights * real[:, :, None]).sum(axis=0)
    seen = total.sum(axis=1, keepdims=True)
    mean_weights = total / np.where(seen > 0, seen, 1)
    mean = mean_weights @ place
    square = mean_weights @ place**2 - mean**2
    deviation = np.sqrt(np.maximum(square, 1 / max(keys - 1, 1) ** 2))
    unseen = seen[:, 0] == 0
    mean = np.where(unseen, np.linspace(-1, 1, queries), mean)
    deviation = np.where(unseen, 1, deviation)
    # As exponents: far from a narrow Gaussian all keys that are visible would have weight 0.
    exponent = -(((place - mean[:, None]) / deviation[:, None]) ** 2) / 2
    return np.exp(np.maximum(exponent, -60.0))


def fit_gaussian_heads(
    directory: str,
    step: int | str,
    params: str | None,
    heads: Sequence[Head],
    examples: int,
    trust: Sequence[str],
) -> dict[Head, Kernel | None]:
    """The kernel of each head, from the first `examples` of the training data."""
    module, variables, task = restore(directory, step, params, trust=trust)
    inputs = task.inputs(make_batch(task, task.source("train"), examples))
    maps = attention_maps(module, variables, **inputs)
    mask = np.asarray(inputs["mask"]) if "mask" in inputs else None
    # What does not exist is named by `replace_heads`.
    found: dict[Head, Kernel | None] = dict.fromkeys(heads)
    for layer, head in heads:
        weights = maps.get(f"block_{layer}/attention")
        if weights is not None and head < weights.shape[1]:
            found[layer, head] = fit_gaussian(weights[:, head], mask)
    return found


def measure_replacement(
    directory: str,
    step: int | str = "latest",
    params: str | None = None,
    heads: Sequence[Head] = (),
    *,
    by: Literal["average", "gaussian"] = "average",
    examples: int = 64,
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """{"step", "replaced", "by", "evaluations": {"name/metric": {"before", "after"}}} of a run.

    Args:
        heads: (layer, head), both from 0.
        by: "gaussian": heads fitted to `examples` of the training data.

    Raises:
        ValueError: the run has no such head; see `attn_jax.evaluate`.
    """
    kernels: dict[Head, Kernel | None] = dict.fromkeys(heads)
    if by == "gaussian":
        kernels = fit_gaussian_heads(directory, step, params, heads, examples, trust)
    with replace_heads(kernels):
        after = evaluate(directory, step, params, trust=trust)
    before = evaluate(directory, after["step"], params, trust=trust)
    return {
        "step": before.pop("step"),
        "replaced": [f"{layer}.{head}" for layer, head in heads],
        "by": by,
        "evaluations": {
            name: {"before": value, "after": after[name]}
            for name, value in before.items()
        },
    }
