"""Vectors that represent inputs: pooled tokens of any layer of an encoder."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

KIND = re.compile(r"(mean|cls)(?::(-?\d{1,4}))?|pooled")


class Kind(NamedTuple):
    """How tokens become one vector, and of which layer; None: the model's output."""

    pool: str
    layer: int | None


def parse_kind(text: str) -> Kind:
    """Parses "mean", "cls", "pooled", "mean:L" or "cls:L".

    Raises:
        ValueError: it is none of them.
    """
    found = KIND.fullmatch(text)
    if found is None:
        raise ValueError(
            f"embed={text!r} must be 'mean', 'cls' or 'pooled', or 'mean:L' or 'cls:L' for the "
            "output of layer L (0: the embeddings, -1: the last block)."
        )
    pool, layer = found.groups()
    return Kind(pool or "pooled", None if layer is None else int(layer))


def embed(
    module: nn.Module,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Any],
    kind: str,
) -> Float[Array, "*B D"]:
    """One float32 vector for each input of a ViT or a BERT; for each ending of a choice.

    Args:
        inputs: arguments of the module's call.
        kind: "mean" of the tokens where the argument `mask` is True, "cls", the first token,
            or "pooled", the input of the model's head. "mean:L" and "cls:L" read the output
            of layer L instead of the model's last.

    Raises:
        ValueError: the kind is unknown, or the model has no such output or layer.
    """
    pool, layer = parse_kind(kind)
    outputs, seen = module.apply(variables, **inputs, mutable=["intermediates"])
    name = "pooled" if pool == "pooled" else "tokens"
    if not isinstance(outputs, dict) or name not in outputs:
        raise ValueError(
            f"embed={kind!r}: {type(module).__name__} has no output {name!r} to read; "
            "embeddings are for a ViT or a BERT."
        )
    if pool == "pooled":
        return outputs["pooled"].astype(jnp.float32)
    tokens = outputs["tokens"]
    if layer is not None:
        lead = tokens.shape[:-2]  # the blocks see questions and endings as one axis
        tokens = choose_layer(seen["intermediates"], layer, kind)
        tokens = tokens.reshape(*lead, *tokens.shape[1:])
    tokens = tokens.astype(jnp.float32)
    if pool == "cls":
        return tokens[..., 0, :]
    mask = inputs.get("mask")
    return jnp.mean(tokens, axis=-2, where=None if mask is None else mask[..., None])


def choose_layer(
    seen: Mapping[str, Any], layer: int, kind: str
) -> Float[jax.Array, "B T D"]:
    """The output of a layer among the sown values: 0 is the embedding, then the blocks."""
    blocks = sorted(
        (name for name in seen if name.startswith("block_")),
        key=lambda name: int(name.removeprefix("block_")),
    )
    if not -len(blocks) <= layer <= len(blocks):
        raise ValueError(
            f"embed={kind!r}: the model has the layers 0 to {len(blocks)}, or -1 for the last."
        )
    if layer == 0:
        if "embedding_output" not in seen:
            raise ValueError(
                f"embed={kind!r}: this model does not return its embeddings; use layer 1 or "
                "above."
            )
        return seen["embedding_output"][0]
    return seen[blocks[layer - 1 if layer > 0 else layer]]["block_output"][0]
