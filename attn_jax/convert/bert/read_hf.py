"""Reads BERT checkpoints of Hugging Face transformers."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.convert.arrays import (
    bias_length,
    check_depth,
    check_lengths,
    parameter_shapes,
    read_parameters,
)
from attn_jax.convert.bert.names import (
    DECODER,
    GELU,
    HEAD_ARRAYS,
    HEADS,
    REDUNDANT,
    TOKEN_TABLE,
    bert_entries,
    check_head,
)
from attn_jax.convert.description import Description, shorten
from attn_jax.convert.files import read_hugging_face
from attn_jax.models.bert import Bert, ChoiceHead, ClassHead, SpanHead, TagHead

# Prefixes that wrappers add to every name: data parallelism, torch.compile.
WRAPPERS = ("module.", "_orig_mod.")
ENCODER = ("embeddings.", "encoder.", "pooler.")


def from_hf(folder: pathlib.Path, **fields: Any) -> tuple[Bert, dict[str, Any]]:
    """Reads (module, variables) of a folder with config.json and model.safetensors.

    Names may lack the prefix `bert.` or have that of a wrapper, parameters of norms may be called
    gamma and beta, and the decoder may be stored although it is tied to the token table. Half
    precision becomes float32.

    Args:
        fields: fields of `Bert` to set, such as `dtype`. If `heads` or `head` is among them,
            other heads of the file are ignored.

    Raises:
        ValueError: a file is missing or damaged; the arrays are not those that config.json
            describes; neither says which head `classifier.weight` is.

    Source: transformers modeling_bert.py, configuration_bert.py.
    """
    path, config, arrays = read_hugging_face(folder)
    arrays = modernize_names(arrays)
    module = make_module(config, arrays, str(path), fields)
    chosen = not fields.keys().isdisjoint(("heads", "head"))
    params = read_params(module, arrays, str(path), heads_chosen=chosen)
    return module, {"params": params}


def modernize_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames arrays as today's transformers do, without wrappers and the prefix `bert.`."""
    names = list(arrays)
    while prefix := next(
        (w for w in WRAPPERS if names and all(n.startswith(w) for n in names)), ""
    ):
        names = [name.removeprefix(prefix) for name in names]
    return {
        modernize_name(name): array
        for name, array in zip(names, arrays.values(), strict=True)
    }


def modernize_name(name: str) -> str:
    name = name.removeprefix("bert.")
    return name.replace(".gamma", ".weight").replace(".beta", ".bias")


def make_module(
    config: Description,
    arrays: Mapping[str, np.ndarray],
    path: str,
    fields: Mapping[str, Any],
) -> Bert:
    """Makes the module that config.json describes, with the heads that the arrays show."""
    activation = config.choice("hidden_act", GELU, "gelu")
    config.choice("position_embedding_type", ("absolute",), "absolute")
    depth = check_depth(config.count("num_hidden_layers"), arrays, path)
    dropout = config.number("hidden_dropout_prob", 0.1, 1)
    settings: dict[str, Any] = {
        "vocab_size": config.count("vocab_size"),
        "width": config.count("hidden_size"),
        "depth": depth,
        "mlp_width": config.count("intermediate_size"),
        "num_heads": config.count("num_attention_heads"),
        "max_positions": config.count("max_position_embeddings"),
        "num_segments": config.count("type_vocab_size", 2),
        "heads": tuple(head for head, name in HEAD_ARRAYS.items() if name in arrays),
        "pooler": "pooler.dense.weight" in arrays,
        "dialect": "hf",
        "gelu": GELU[activation],
        "dropout": dropout,
        "attention_dropout": config.number("attention_probs_dropout_prob", 0.1, 1),
        "norm_epsilon": config.number("layer_norm_eps", 1e-12),
    }
    if fields.keys().isdisjoint(("heads", "head")):
        if config.get("classifier_dropout") is not None:
            dropout = config.number("classifier_dropout", dropout, 1)
        settings["head"] = detect_head(config, arrays, path, dropout)
    lengths = {name: n for name, n in settings.items() if type(n) is int}
    check_lengths(lengths, arrays, path)
    module = Bert(**{**settings, **fields})
    check_head(module, path)
    return module


def detect_head(
    config: Description, arrays: Mapping[str, np.ndarray], path: str, dropout: float
) -> nn.Module | None:
    """The head for fine-tuning that a file has; None if it has none.

    Three classes of transformers call their layer `classifier`. The entry `architectures`
    tells them apart, and without it the arrays do, unless there are a pooler and one output.
    """
    if "qa_outputs.weight" in arrays:
        return SpanHead()
    classes = bias_length(arrays, "classifier.bias", path)
    if not classes:
        return None
    named = config.get("architectures") or [None]
    name = named[0] if isinstance(named, list) else None
    if name is None and "pooler.dense.weight" not in arrays:
        name = HEADS[TagHead][0]
    if name is None and classes > 1:
        name = HEADS[ClassHead][0]
    if name == HEADS[TagHead][0]:
        return TagHead(classes, dropout)
    if name == HEADS[ClassHead][0]:
        return ClassHead(classes, dropout)
    if name == HEADS[ChoiceHead][0]:
        return ChoiceHead(dropout)
    raise ValueError(
        f"{config.path}: architectures={shorten(config.get('architectures'))} does not say "
        f"what classifier.weight with {classes} output(s) is; pass "
        "head=ClassHead(num_classes), TagHead(num_tags) or ChoiceHead(), or head=None to leave "
        "it out."
    )


def read_params(
    module: Bert, arrays: Mapping[str, np.ndarray], path: str, *, heads_chosen: bool
) -> dict[str, Any]:
    """Reads our parameter tree from arrays with today's names.

    Args:
        heads_chosen: the caller chose the heads, so arrays of other heads are ignored.

    Raises:
        ValueError: arrays are missing, unused or of another shape (one table of all); the
            decoder is not the token table.
    """
    ignore = list(REDUNDANT)
    if heads_chosen:
        ignore += [n for n in arrays if not n.startswith(ENCODER)]
        ignore.append("pooler.")
    if DECODER in arrays:
        ignore.append(DECODER)
        table = arrays.get(TOKEN_TABLE)
        if table is not None and not np.array_equal(arrays[DECODER], table):
            raise ValueError(
                f"{path}: {DECODER} is not the token table, to which BERT ties it; models "
                "with a decoder of their own are not supported."
            )
    return read_parameters(
        bert_entries(module.depth, module.head),
        parameter_shapes(module, jax.ShapeDtypeStruct((1, 1), jnp.int32)),
        arrays,
        path,
        ignore=ignore,
        remedy=(
            "check that config.json belongs to this file; heads=() loads the encoder without "
            "any head"
        ),
    )
