"""Writes BERT as a folder that transformers opens, with its tokenizer."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, processors

from attn_jax.convert.arrays import write_arrays
from attn_jax.convert.bert.names import HEADS, bert_entries, check_head
from attn_jax.convert.files import write_safetensors
from attn_jax.data import vocabulary as vocabulary_lib
from attn_jax.models.bert import Bert, ClassHead, TagHead
from attn_jax.paths import named_leaves

# {`Bert.heads`: class of transformers}
CLASSES = {
    (): "BertModel",
    ("mlm",): "BertForMaskedLM",
    ("mlm", "nsp"): "BertForPreTraining",
    ("nsp",): "BertForNextSentencePrediction",
}


def to_hf(
    module: Bert,
    variables: Mapping[str, Any],
    folder: pathlib.Path,
    vocabulary: Mapping[str, str] | None,
    labels: Sequence[str] | None,
) -> None:
    """Writes config.json and model.safetensors, and the tokenizer if there is a vocabulary.

    Args:
        vocabulary: {"vocab.txt": pieces, "text.json": settings}, as in a run's assets.
        labels: names of the classes or tags of `module.head`, in order.

    Raises:
        ValueError: transformers has no class with these heads or this attention; the
            vocabulary or the labels do not have the size of the model.
    """
    check_head(module, "export")
    if module.attention is not None:
        raise ValueError(
            f"export: transformers has no BERT with {type(module.attention).__name__} for its "
            "attention, so its results would differ there."
        )
    pieces, lower_case = read_pieces(module, vocabulary)
    config = describe_model(module, labels, pieces)
    leaves = {n: np.asarray(a) for n, a in named_leaves(variables["params"]).items()}
    arrays = write_arrays(bert_entries(module.depth, module.head), leaves)
    if config["architectures"] != ["BertModel"]:
        encoder = ("embeddings.", "encoder.", "pooler.")
        arrays = {
            f"bert.{name}" if name.startswith(encoder) else name: array
            for name, array in arrays.items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_safetensors(folder / "model.safetensors", arrays)
    if pieces is not None:
        write_tokenizer(folder, pieces, lower_case, module.max_positions)


def read_pieces(
    module: Bert, vocabulary: Mapping[str, str] | None
) -> tuple[tuple[str, ...] | None, bool]:
    """(word pieces or None, whether text is lower-cased).

    Raises:
        ValueError: the vocabulary does not have the size of the model.
    """
    if vocabulary is None:
        return None, True
    pieces = vocabulary_lib.parse_vocabulary(vocabulary["vocab.txt"])
    if len(pieces) != module.vocab_size:
        raise ValueError(
            f"export: the vocabulary has {len(pieces):,} word pieces, but the model "
            f"{module.vocab_size:,}; give the vocabulary that it was trained with."
        )
    settings = vocabulary_lib.parse_settings(vocabulary.get("text.json", "{}"))
    return pieces, bool(settings.get("lower_case", True))


def describe_model(
    module: Bert, labels: Sequence[str] | None, pieces: Sequence[str] | None
) -> dict[str, Any]:
    """Makes config.json."""
    if module.head is None:
        if labels is not None:
            raise ValueError(
                "export: labels are for a model with a head; leave them out."
            )
        if tuple(sorted(module.heads)) not in CLASSES:
            raise ValueError(f"export: heads={module.heads} must not repeat a head.")
        name = CLASSES[tuple(sorted(module.heads))]
    elif module.heads:
        raise ValueError(
            f"export: transformers has no model with the heads {', '.join(module.heads)} and a "
            f"{type(module.head).__name__}; load it with heads=(), head=... to keep one."
        )
    else:
        name, _ = HEADS[type(module.head)]
    config: dict[str, Any] = {
        "architectures": [name],
        "attention_probs_dropout_prob": module.attention_dropout,
        "hidden_act": {"erf": "gelu", "tanh": "gelu_new"}[module.gelu_kind],
        "hidden_dropout_prob": module.dropout,
        "hidden_size": module.width,
        "initializer_range": 0.02,
        "intermediate_size": module.mlp_width,
        "layer_norm_eps": module.norm_epsilon,
        "max_position_embeddings": module.max_positions,
        "model_type": "bert",
        "num_attention_heads": module.num_heads,
        "num_hidden_layers": module.depth,
        "pad_token_id": 0 if pieces is None else list(pieces).index("[PAD]"),
        "type_vocab_size": module.num_segments,
        "vocab_size": module.vocab_size,
    }
    head: Any = module.head
    classes = None
    if isinstance(head, ClassHead):
        classes = head.num_classes
        if classes == 1:
            config["problem_type"] = "regression"
    elif isinstance(head, TagHead):
        classes = head.num_tags
    if classes is not None:
        config["classifier_dropout"] = head.dropout
        names = labels or [f"LABEL_{i}" for i in range(classes)]
        if len(names) != classes or len(set(names)) != classes:
            raise ValueError(
                f"export: there are {len(set(names))} different labels, but the head has "
                f"{classes} outputs; pass one label per output."
            )
        config["id2label"] = {str(i): label for i, label in enumerate(names)}
        config["label2id"] = {label: i for i, label in enumerate(names)}
    return config


def write_tokenizer(
    folder: pathlib.Path, pieces: Sequence[str], lower_case: bool, max_length: int
) -> None:
    """Writes vocab.txt, tokenizer.json and tokenizer_config.json.

    Special tokens written in a text are kept whole there, as transformers does; ours splits
    them like any text. Otherwise the ids are equal.
    """
    tokenizer = vocabulary_lib.make_tokenizer(pieces, lower_case=lower_case)
    ids = vocabulary_lib.find_special_ids(pieces)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids.cls), ("[SEP]", ids.sep)],
    )
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True) for piece in vocabulary_lib.SPECIALS]
    )
    (folder / "vocab.txt").write_text(
        "".join(f"{piece}\n" for piece in pieces), encoding="utf-8"
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "do_lower_case": lower_case,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": max_length,
        # Not BertTokenizer, which ignores tokenizer.json and its limit of 200 characters a word.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for piece in vocabulary_lib.SPECIALS:
        settings[f"{piece.strip('[]').lower()}_token"] = piece
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
