"""Reads BERT checkpoints of google-research/bert: bert_model.ckpt.* of TensorFlow 1."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.convert.arrays import (
    Entry,
    bias_length,
    check_depth,
    check_lengths,
    parameter_shapes,
    read_parameters,
)
from attn_jax.convert.bert.names import check_head
from attn_jax.convert.description import Description
from attn_jax.convert.tensorflow1 import read_tensorflow1
from attn_jax.models.bert import Bert, ClassHead, SpanHead

# What an optimizer stores beside the parameters.
SLOTS = re.compile(
    r"(.*/)?(adam_m|adam_v|lamb_m|lamb_v|Adam|Adam_1)|global_step|beta[12]_power"
)
CONFIG = "bert_config.json"
# {head: an array that a file has if and only if the model has this head}
HEAD_ARRAYS = {
    "mlm": "cls/predictions/transform/dense/kernel",
    "nsp": "cls/seq_relationship/output_weights",
}
# The layers of run_squad.py and run_classifier.py.
SPAN, CLASSIFIER = "cls/squad/output", "output"


def find_prefix(path: pathlib.Path) -> pathlib.Path | None:
    """Finds the checkpoint that a path names; None if it names none of TensorFlow 1.

    Args:
        path: the prefix, one of the checkpoint's files, or a folder that holds them.

    Raises:
        ValueError: a folder has several checkpoints.
    """
    if path.suffix == ".index":
        return path.with_suffix("")
    if match := re.fullmatch(r"(.+)\.data-\d+-of-\d+", path.name):
        return path.with_name(match[1])
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) > 1:
            names = ", ".join(file.stem for file in found[:5])
            raise ValueError(
                f"{path} holds several checkpoints ({names}); name one of them, such as "
                f"{found[-1].with_suffix('')}."
            )
        if found:
            return found[0].with_suffix("")
        data = sorted(path.glob("*.data-*-of-*"))
        return find_prefix(data[0]) if data and (path / CONFIG).exists() else None
    if not path.exists() and (
        path.with_name(path.name + ".index").exists()
        or list(path.parent.glob(f"{path.name}.data-*"))
    ):
        return path
    return None


def from_tf1(prefix: pathlib.Path, **fields: Any) -> tuple[Bert, dict[str, Any]]:
    """Reads (module, variables) of a checkpoint with bert_config.json beside it.

    Slots of the optimizer and the step are left out.

    Args:
        prefix: such as uncased_L-12_H-768_A-12/bert_model.ckpt.
        fields: fields of `Bert` to set, such as `dtype`. If `heads` or `head` is among them,
            other heads of the checkpoint are ignored.

    Raises:
        ValueError: a file is missing or damaged; the tensors are not those that the config
            describes.

    Source: google-research/bert modeling.py, run_pretraining.py, run_squad.py,
    run_classifier.py.
    """
    file = prefix.with_name(CONFIG)
    if not file.exists():
        raise ValueError(
            f"{prefix} needs {CONFIG} beside it; the tensors do not show the number of heads."
        )
    tensors = read_tensorflow1(prefix)
    arrays = {n: a for n, a in tensors.items() if not SLOTS.fullmatch(n)}
    module = make_module(Description(file), arrays, str(prefix), fields)
    ignore = []
    if not fields.keys().isdisjoint(("heads", "head")):
        ignore = [n for n in arrays if not n.startswith("bert/")] + ["bert/pooler/"]
    params = read_parameters(
        tf1_entries(module),
        parameter_shapes(module, jax.ShapeDtypeStruct((1, 1), jnp.int32)),
        arrays,
        str(prefix),
        ignore=ignore,
        remedy=(
            f"check that {CONFIG} belongs to this checkpoint; heads=() loads the encoder "
            "without any head"
        ),
    )
    return module, {"params": params}


def make_module(
    config: Description,
    arrays: Mapping[str, np.ndarray],
    path: str,
    fields: Mapping[str, Any],
) -> Bert:
    """Makes the module that the config describes, with the heads that the arrays show."""
    config.choice("hidden_act", ("gelu",), "gelu")
    depth = check_depth(config.count("num_hidden_layers"), arrays, path)
    settings: dict[str, Any] = {
        "vocab_size": config.count("vocab_size"),
        "width": config.count("hidden_size"),
        "depth": depth,
        "mlp_width": config.count("intermediate_size"),
        "num_heads": config.count("num_attention_heads"),
        "max_positions": config.count("max_position_embeddings"),
        "num_segments": config.count("type_vocab_size", 16),
        "heads": tuple(head for head, name in HEAD_ARRAYS.items() if name in arrays),
        "pooler": "bert/pooler/dense/kernel" in arrays,
        "dialect": "google",
        "dropout": config.number("hidden_dropout_prob", 0.1, 1),
        "attention_dropout": config.number("attention_probs_dropout_prob", 0.1, 1),
    }
    if fields.keys().isdisjoint(("heads", "head")):
        if f"{SPAN}_weights" in arrays:
            settings["head"] = SpanHead()
        elif classes := bias_length(arrays, f"{CLASSIFIER}_bias", path):
            settings["head"] = ClassHead(classes)
    lengths = {name: n for name, n in settings.items() if type(n) is int}
    check_lengths(lengths, arrays, path)
    module = Bert(**{**settings, **fields})
    check_head(module, path)
    return module


def tf1_entries(module: Bert) -> dict[str, Entry]:
    """Makes the table of names for all parameters that a `Bert` may have."""

    def dense(ours: str, theirs: str, heads: bool = False) -> dict[str, Entry]:
        return {
            f"{ours}/kernel": Entry(
                f"{theirs}/kernel", "in_out_heads" if heads else "in_out"
            ),
            f"{ours}/bias": Entry(f"{theirs}/bias", "flat"),
        }

    def norm(ours: str, theirs: str) -> dict[str, Entry]:
        names = (("scale", "gamma"), ("bias", "beta"))
        return {f"{ours}/{a}": Entry(f"{theirs}/LayerNorm/{b}") for a, b in names}

    def output(ours: str, theirs: str) -> dict[str, Entry]:
        return {
            f"{ours}/kernel": Entry(f"{theirs}_weights", "dense"),
            f"{ours}/bias": Entry(f"{theirs}_bias"),
        }

    tables = {"token": "word", "position": "position", "segment": "token_type"}
    entries = {
        **{
            f"{a}_embedding/embedding": Entry(f"bert/embeddings/{b}_embeddings")
            for a, b in tables.items()
        },
        **norm("embedding_norm", "bert/embeddings"),
        **dense("pooler", "bert/pooler/dense"),
        **dense("mlm_dense", "cls/predictions/transform/dense"),
        **norm("mlm_norm", "cls/predictions/transform"),
        "mlm_bias": Entry("cls/predictions/output_bias"),
        **output("nsp", "cls/seq_relationship/output"),
        **output(
            "head/logits", SPAN if isinstance(module.head, SpanHead) else CLASSIFIER
        ),
    }
    for i in range(module.depth):
        ours, theirs = f"block_{i}", f"bert/encoder/layer_{i}"
        for part in ("query", "key", "value"):
            entries |= dense(
                f"{ours}/attention/{part}", f"{theirs}/attention/self/{part}", True
            )
        entries |= {
            **dense(f"{ours}/attention/out", f"{theirs}/attention/output/dense"),
            **norm(f"{ours}/norm_1", f"{theirs}/attention/output"),
            **dense(f"{ours}/mlp/dense_1", f"{theirs}/intermediate/dense"),
            **dense(f"{ours}/mlp/dense_2", f"{theirs}/output/dense"),
            **norm(f"{ours}/norm_2", f"{theirs}/output"),
        }
    return entries
