"""Sharding of Hopfield pooling, and what the recipes of generated bags share."""

from typing import Any

from ml_collections import ConfigDict

# Heads over `tensor`, the other dimension of each matrix over `fsdp`, as in a Transformer.
POOLING = [
    [".*/hopfield/(query|key|value)/kernel", ["fsdp", "tensor", None]],
    [".*/hopfield/(query|key|value)/bias", ["tensor", None]],
    [".*/hopfield/out/kernel", ["tensor", None, "fsdp"]],
]

# Variants of the recipes of official examples.
EXAMPLES = (
    "base",
    "debug",
    "pooling",
    "lookup",
    "base_default",
    "pooling_default",
    "lookup_default",
)


def make_classifier(
    kind: str, *, adapted: bool, patterns: list[list[float]]
) -> dict[str, Any]:
    """The network of an official example as a section.

    Args:
        kind: "base", "pooling" or "lookup".
        adapted: False: the defaults of the official layers.
        patterns: what the lookup stores.
    """
    hopfield: dict[str, Any] = {"cls": "attn_jax.models.hopfield:Hopfield"}
    if adapted and kind != "lookup":
        hopfield.update(num_heads=8, head_dim=8, max_updates=3, beta=0.25, dropout=0.5)
    encoder: dict[str, Any] = {
        "cls": "attn_jax.models.bags:FeatureEncoder",
        "widths": [],  # the instances as they are
    }
    pooling: dict[str, Any] = {"cls": "attn_jax.models.bags:FlatPooling"}
    if kind == "lookup":
        encoder = {
            "cls": "attn_jax.models.hopfield:HopfieldLayer",
            "hopfield": hopfield,
            "quantity": len(patterns),
        }
        if adapted:
            encoder["separate_projection"] = True
            encoder["trainable_projection"] = False
            encoder["initial_stored"] = patterns
    if kind == "pooling":
        pooling = {
            "cls": "attn_jax.models.hopfield:HopfieldPooling",
            "hopfield": hopfield,
        }
    elif kind == "base":
        pooling["hopfield"] = hopfield
    return {
        "cls": "attn_jax.models.bags:BagClassifier",
        "encoder": encoder,
        "pooling": pooling,
    }


def set_training(c: ConfigDict, duration: str, every: str) -> None:
    """Sets how the official examples train: AdamW at a constant rate that decays everything.

    Args:
        every: between evaluations of the test split, and between checkpoints.
    """
    c.batch_size = 32
    c.duration = duration
    c.optimizer = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01}
    c.weight_decay_on = [".*"]
    if "initial_stored" in c.model.encoder:
        c.freeze = ["encoder/projection"]  # so it is not decayed
    c.schedule = {"name": "constant"}
    c.clip_norm = 1.0
    c.evals = {"test": {"split": "test", "every": every, "batch_size": 512}}
    c.checkpoint_every = every
    c.log_every = "1 epochs"  # as a record has the mean accuracy since the last one
