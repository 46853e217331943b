"""BERT checkpoints of Hugging Face transformers as our module and parameter tree."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from attn_jax.convert.tensors import read_hugging_face
from attn_jax.models.bert import Bert

GELU = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def from_hf(folder: pathlib.Path, **fields: Any) -> tuple[Bert, dict[str, Any]]:
    """(module, variables) of a folder with config.json and model.safetensors.

    Keys may lack the prefix `bert.`, norms may be called gamma and beta, and the decoder
    may be stored although it is the token table. Half precision becomes float32.

    Args:
        fields: fields of `Bert` to set, such as `dtype`; with `heads=()`, or some of
            them, the other heads of the file are left behind.

    Raises:
        ValueError: a file is missing or damaged, or the arrays are not those that
            config.json describes.
    """
    path, config, arrays = read_hugging_face(folder)
    arrays = {plain(name): array for name, array in arrays.items()}
    module = module_of(config, arrays, str(path), fields)
    params = params_of(module, arrays, str(path), heads_chosen="heads" in fields)
    return module, {"params": params}


def plain(name: str) -> str:
    """The name as transformers writes it today, without the prefix `bert.`."""
    name = name.removeprefix("bert.")
    return name.replace(".gamma", ".weight").replace(".beta", ".bias")


def module_of(
    config: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    path: str,
    fields: Mapping[str, Any],
) -> Bert:
    found = {
        "mlm": "cls.predictions.transform.dense.weight",
        "nsp": "cls.seq_relationship.weight",
    }
    activation = config.get("hidden_act", "gelu")
    if activation not in GELU:
        raise ValueError(
            f"{path}: hidden_act={activation!r} is none of {', '.join(GELU)}; only BERT's "
            "own activation is known here."
        )
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ValueError(
            f"{path}: position_embedding_type={kind!r}; only 'absolute' is BERT's."
        )
    settings = {
        "vocab_size": config["vocab_size"],
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "mlp_width": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "max_positions": config["max_position_embeddings"],
        "num_segments": config["type_vocab_size"],
        "heads": tuple(head for head, key in found.items() if key in arrays),
        "pooler": "pooler.dense.weight" in arrays,
        "dialect": "hf",
        "gelu": GELU[activation],
        "dropout": config["hidden_dropout_prob"],
        "attention_dropout": config["attention_probs_dropout_prob"],
        "norm_epsilon": config["layer_norm_eps"],
    }
    return Bert(**{**settings, **fields})


def params_of(
    module: Bert, arrays: Mapping[str, np.ndarray], path: str, *, heads_chosen: bool
) -> dict[str, Any]:
    """Our parameter tree; every array of the file is used or known to be of no use."""
    D, H = module.width, module.num_heads
    C = D // H
    left = dict(arrays)

    def take(name: str, *shape: int) -> np.ndarray:
        if name not in left:
            raise ValueError(
                f"{path} lacks {name}; config.json describes a model that has it."
            )
        array = left.pop(name)
        if array.shape != shape:
            raise ValueError(
                f"{path}: {name} has the shape {array.shape}, but config.json makes it "
                f"{shape}. The two files do not belong together."
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{path}: {name} is {array.dtype}; parameters must be floating point. "
                "A quantised model must be saved in full precision first."
            )
        return np.asarray(array, np.float32)

    def dense(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        kernel = take(f"{name}.weight", outputs, inputs).T
        return {"kernel": kernel, "bias": take(f"{name}.bias", outputs)}

    def to_heads(name: str) -> dict[str, np.ndarray]:
        flat = dense(name, D, D)
        kernel, bias = flat["kernel"].reshape(D, H, C), flat["bias"].reshape(H, C)
        return {"kernel": kernel, "bias": bias}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": take(f"{name}.weight", D), "bias": take(f"{name}.bias", D)}

    def table(kind: str, rows: int) -> dict[str, np.ndarray]:
        return {"embedding": take(f"embeddings.{kind}_embeddings.weight", rows, D)}

    params: dict[str, Any] = {
        "token_embedding": table("word", module.vocab_size),
        "position_embedding": table("position", module.max_positions),
        "segment_embedding": table("token_type", module.num_segments),
        "embedding_norm": norm("embeddings.LayerNorm"),
    }
    for i in range(module.depth):
        layer = f"encoder.layer.{i}"
        out = dense(f"{layer}.attention.output.dense", D, D)
        params[f"block_{i}"] = {
            "attention": {
                **{
                    part: to_heads(f"{layer}.attention.self.{part}")
                    for part in ("query", "key", "value")
                },
                "out": {**out, "kernel": out["kernel"].reshape(H, C, D)},
            },
            "norm_1": norm(f"{layer}.attention.output.LayerNorm"),
            "mlp": {
                "dense_1": dense(f"{layer}.intermediate.dense", D, module.mlp_width),
                "dense_2": dense(f"{layer}.output.dense", module.mlp_width, D),
            },
            "norm_2": norm(f"{layer}.output.LayerNorm"),
        }
    if module.pooler:
        params["pooler"] = dense("pooler.dense", D, D)
    if "mlm" in module.heads:
        head = "cls.predictions"
        params["mlm_dense"] = dense(f"{head}.transform.dense", D, D)
        params["mlm_norm"] = norm(f"{head}.transform.LayerNorm")
        params["mlm_bias"] = take(f"{head}.bias", module.vocab_size)
    if "nsp" in module.heads:
        params["nsp"] = dense("cls.seq_relationship", D, 2)

    left.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: old versions stored it
    decoder = left.pop("cls.predictions.decoder.weight", None)
    word = arrays["embeddings.word_embeddings.weight"]
    if decoder is not None and not np.array_equal(decoder, word):
        raise ValueError(
            f"{path}: cls.predictions.decoder.weight is not the token table, to which "
            "BERT ties it; this model has another decoder."
        )
    left.pop(
        "cls.predictions.decoder.bias", None
    )  # another name of cls.predictions.bias
    unused = sorted(left)
    if heads_chosen:  # then what belongs to other heads may stay behind
        unused = [n for n in unused if n.startswith(("embeddings.", "encoder."))]
    if unused:
        raise ValueError(
            f"{path} holds {unused[0]} ({len(unused)} such arrays), for which Bert with "
            f"heads={module.heads} has no place. Pass heads=() to load the encoder alone."
        )
    return params
