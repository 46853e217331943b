"""Reads BERT checkpoints of Hugging Face transformers."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.convert.arrays import (
    Entry,
    check_depth,
    check_lengths,
    dense_entries,
    norm_entries,
    parameter_shapes,
    read_parameters,
)
from attn_jax.convert.description import Description
from attn_jax.convert.files import read_hugging_face
from attn_jax.models.bert import Bert

# Their names of activations -> ours.
GELU = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}

# {head: an array that a file has if and only if the model has this head}
HEAD_ARRAYS = {
    "mlm": "cls.predictions.transform.dense.weight",
    "nsp": "cls.seq_relationship.weight",
}

# Redundant arrays: 0, 1, 2, ..., which old versions stored; another name of
# cls.predictions.bias.
REDUNDANT = ("embeddings.position_ids", "cls.predictions.decoder.bias")
DECODER, TOKEN_TABLE = (
    "cls.predictions.decoder.weight",
    "embeddings.word_embeddings.weight",
)


def from_hf(folder: pathlib.Path, **fields: Any) -> tuple[Bert, dict[str, Any]]:
    """Reads (module, variables) of a folder with config.json and model.safetensors.

    Names may lack the prefix `bert.`, parameters of norms may be called gamma and beta, and
    the decoder may be stored although it is tied to the token table. Half precision becomes
    float32.

    Args:
        fields: fields of `Bert` to set, such as `dtype`. If `heads` is among them, other
            heads of the file are ignored.

    Raises:
        ValueError: a file is missing or damaged; the arrays are not those that config.json
            describes.

    Source: transformers modeling_bert.py, configuration_bert.py.
    """
    path, config, arrays = read_hugging_face(folder)
    arrays = {modernize_name(name): array for name, array in arrays.items()}
    module = make_module(config, arrays, str(path), fields)
    params = read_params(module, arrays, str(path), heads_chosen="heads" in fields)
    return module, {"params": params}


def modernize_name(name: str) -> str:
    """Converts a name to today's names of transformers, without the prefix `bert.`."""
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
        "dropout": config.number("hidden_dropout_prob", 0.1, 1),
        "attention_dropout": config.number("attention_probs_dropout_prob", 0.1, 1),
        "norm_epsilon": config.number("layer_norm_eps", 1e-12),
    }
    lengths = {name: n for name, n in settings.items() if type(n) is int}
    check_lengths(lengths, arrays, path)
    return Bert(**{**settings, **fields})


def bert_entries(depth: int) -> dict[str, Entry]:
    """Makes the table of names, for all parameters that a `Bert` may have."""
    entries = {
        "token_embedding/embedding": Entry(TOKEN_TABLE),
        "position_embedding/embedding": Entry("embeddings.position_embeddings.weight"),
        "segment_embedding/embedding": Entry("embeddings.token_type_embeddings.weight"),
        **norm_entries("embedding_norm", "embeddings.LayerNorm"),
        **dense_entries("pooler", "pooler.dense"),
        **dense_entries("mlm_dense", "cls.predictions.transform.dense"),
        **norm_entries("mlm_norm", "cls.predictions.transform.LayerNorm"),
        "mlm_bias": Entry("cls.predictions.bias"),
        **dense_entries("nsp", "cls.seq_relationship"),
    }
    for i in range(depth):
        ours, theirs = f"block_{i}", f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            entries |= dense_entries(
                f"{ours}/attention/{part}", f"{theirs}.attention.self.{part}", "heads"
            )
        entries |= {
            **dense_entries(
                f"{ours}/attention/out", f"{theirs}.attention.output.dense"
            ),
            **norm_entries(f"{ours}/norm_1", f"{theirs}.attention.output.LayerNorm"),
            **dense_entries(f"{ours}/mlp/dense_1", f"{theirs}.intermediate.dense"),
            **dense_entries(f"{ours}/mlp/dense_2", f"{theirs}.output.dense"),
            **norm_entries(f"{ours}/norm_2", f"{theirs}.output.LayerNorm"),
        }
    return entries


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
        ignore += [n for n in arrays if not n.startswith(("embeddings.", "encoder."))]
    if DECODER in arrays:
        ignore.append(DECODER)
        table = arrays.get(TOKEN_TABLE)
        if table is not None and not np.array_equal(arrays[DECODER], table):
            raise ValueError(
                f"{path}: {DECODER} is not the token table, to which BERT ties it; models "
                "with a decoder of their own are not supported."
            )
    return read_parameters(
        bert_entries(module.depth),
        parameter_shapes(module, jax.ShapeDtypeStruct((1, 1), jnp.int32)),
        arrays,
        path,
        ignore=ignore,
        remedy=(
            "check that config.json belongs to this file; heads=() loads the encoder without "
            "any head"
        ),
    )
