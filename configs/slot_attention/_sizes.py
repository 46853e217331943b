"""What the recipes of object discovery and of set prediction share."""

from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Training(NamedTuple):
    batch_size: int
    learning_rate: float
    duration: str
    warmup: str
    half_life: str
    every: str  # cadence of evaluation and checkpoint


PAPER = Training(
    batch_size=64,
    learning_rate=4e-4,
    duration="500000 steps",
    warmup="10000 steps",
    half_life="100000 steps",
    every="5000 steps",
)
SMALL = Training(
    batch_size=32,
    learning_rate=1e-3,
    duration="20000 steps",
    warmup="1000 steps",
    half_life="7000 steps",
    every="2000 steps",
)
DEBUG = Training(
    batch_size=16,
    learning_rate=1e-3,
    duration="8 steps",
    warmup="2 steps",
    half_life="4 steps",
    every="4 steps",
)

SET_PAPER = Training(  # of set prediction
    batch_size=512,
    learning_rate=4e-4,
    duration="150000 steps",
    warmup="1000 steps",
    half_life="50000 steps",
    every="5000 steps",
)

TRAININGS = {"base": PAPER, "small": SMALL, "debug": DEBUG}

PIXELS = {"base": 128, "small": 64, "debug": 16}  # that the decoders of NETWORKS make
NETWORKS: dict[str, dict[str, Any]] = {
    "base": {},  # the defaults are the paper's
    "small": {
        "encoder_channels": [32] * 4,
        "encoder_strides": [1, 2, 1, 1],
        "decoder_channels": [32] * 4,
        "decoder_kernels": [5, 5, 5, 5, 3],
        "decoder_strides": [2, 2, 2, 1, 1],
    },
    "debug": {
        "width": 12,
        "mlp_width": 16,
        "encoder_channels": [6] * 4,
        "decoder_initial_size": [4, 4],
        "decoder_channels": [6] * 3,
        "decoder_kernels": [5, 5, 5, 3],
        "decoder_strides": [2, 2, 1, 1],
    },
}


def set_model(variant: str) -> ConfigDict:
    """The model of set prediction: "base" is the paper's."""
    model = ConfigDict(
        {
            "cls": "attn_jax.models.slot_attention:SlotAttentionClassifier",
            "num_slots": 4 if variant == "debug" else 10,
            "resolution": [PIXELS[variant]] * 2,
        }
    )
    if variant != "base":
        debug = variant == "debug"
        model.encoder_channels = [6 if debug else 32] * 4
        model.encoder_kernels = [3 if debug else 5] * 4
        model.encoder_strides = [1, 2, 1, 1]
    if variant == "debug":
        model.update(iterations=2, width=8, mlp_width=12, head_width=8)
    return model


def set_training(c: ConfigDict, training: Training) -> None:
    """Sets Adam and a rate that is halved regularly, also during the warm-up."""
    c.batch_size = training.batch_size
    c.duration = training.duration
    c.optimizer = {"name": "adamw", "learning_rate": training.learning_rate}
    c.weight_decay_on = []  # none: plain Adam
    c.schedule = {
        "name": "exponential",
        "warmup": training.warmup,
        "half_life": training.half_life,
    }
    c.sharding_rules = []  # matrices are small, so only the batch is split
    c.evals = {
        "validation": {
            "split": "validation",
            "every": training.every,
            "batch_size": 64,
        },
        "test": {"split": "test", "batch_size": 64},
    }
    c.checkpoint_every = training.every
    c.log_every = "1 steps" if training is DEBUG else "100 steps"
