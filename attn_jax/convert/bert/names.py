"""Tables of names: our parameters of BERT, and those of transformers and of TensorFlow 1."""

from collections.abc import Mapping
from typing import Any

from attn_jax.convert.arrays import Entry, dense_entries, norm_entries
from attn_jax.models.bert import Bert, ChoiceHead, ClassHead, SpanHead, TagHead

# Their names of activations -> ours.
GELU = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}

# {head: an array that a file has if and only if the model has this head}
HEAD_ARRAYS = {
    "mlm": "cls.predictions.transform.dense.weight",
    "nsp": "cls.seq_relationship.weight",
}
DECODER, TOKEN_TABLE = (
    "cls.predictions.decoder.weight",
    "embeddings.word_embeddings.weight",
)
# Redundant arrays: 0, 1, 2, ..., which old versions stored; another name of
# cls.predictions.bias.
REDUNDANT = ("embeddings.position_ids", "cls.predictions.decoder.bias")

# Our parameters of all heads, by the first part of their names.
HEAD_PARTS = frozenset({"mlm_dense", "mlm_norm", "mlm_bias", "nsp", "head"})

# {class of `Bert.head`: (class of transformers, its name of the layer)}
HEADS: Mapping[type, tuple[str, str]] = {
    ClassHead: ("BertForSequenceClassification", "classifier"),
    TagHead: ("BertForTokenClassification", "classifier"),
    ChoiceHead: ("BertForMultipleChoice", "classifier"),
    SpanHead: ("BertForQuestionAnswering", "qa_outputs"),
}


def bert_entries(depth: int, head: Any = None) -> dict[str, Entry]:
    """Makes the table of names of transformers, for all parameters that a `Bert` may have.

    Args:
        head: `Bert.head`, a module of `HEADS`.
    """
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
    if head is not None:
        entries |= dense_entries("head/logits", HEADS[type(head)][1])
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


def check_head(module: Bert, source: str) -> None:
    """Raises ValueError if `Bert.head` is none of `HEADS`, as other formats lack its names."""
    if module.head is not None and type(module.head) not in HEADS:
        known = ", ".join(cls.__name__ for cls in HEADS)
        raise ValueError(
            f"{source}: other libraries have no {type(module.head).__name__}, only {known}; "
            "pass head=None to leave out the head."
        )
