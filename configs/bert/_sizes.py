"""Sizes and sharding of BERT, shared by its recipes.

Source: Devlin et al. 2019, sec. 3 (base, large); Turc et al. 2019 (arXiv:1908.08962),
the README of google-research/bert (the 24 small ones; tiny to medium are four of them). Heads
are 64 wide in all of them.
"""

from ml_collections import ConfigDict

# name: width, depth, MLP width, heads. "4x256" is a model of 4 blocks, 256 wide.
SIZES = {
    f"{depth}x{width}": (width, depth, 4 * width, width // 64)
    for depth in (2, 4, 6, 8, 10, 12)
    for width in (128, 256, 512, 768)
} | {
    "tiny": (128, 2, 512, 2),
    "mini": (256, 4, 1024, 4),
    "small": (512, 4, 2048, 8),
    "medium": (512, 8, 2048, 8),
    "base": (768, 12, 3072, 12),
    "large": (1024, 24, 4096, 16),
}


def size(name: str) -> dict[str, int]:
    """Returns the model fields of one row of the table."""
    return dict(
        zip(("width", "depth", "mlp_width", "num_heads"), SIZES[name], strict=True)
    )


# As in the original: every matrix and all three tables, no bias and no norm.
WEIGHT_DECAY_ON = [".*/kernel", ".*_embedding/embedding"]

# Megatron's split: heads and MLP columns over `tensor`, and rows of the matrix after them, so
# that a block needs one all-reduce per branch; the other dimension over `fsdp`.
SHARDING = [
    [".*/attention/(query|key|value)/kernel", ["fsdp", "tensor", None]],
    [".*/attention/(query|key|value)/bias", ["tensor", None]],
    [".*/attention/out/kernel", ["tensor", None, "fsdp"]],
    [".*/mlp/dense_1/kernel", ["fsdp", "tensor"]],
    [".*/mlp/dense_1/bias", ["tensor"]],
    [".*/mlp/dense_2/kernel", ["tensor", "fsdp"]],
]


def choose(
    name: str, debug: bool, *, vocab_size: int = 30_522, debug_pieces: int = 600
) -> dict[str, int]:
    """Returns the model fields of a size with its vocabulary, or those of a debug run."""
    if debug:
        tiny = {"width": 16, "depth": 2, "mlp_width": 32, "num_heads": 2}
        return {"vocab_size": debug_pieces, **tiny, "max_positions": 64}
    if name not in SIZES:
        raise ValueError(f"{name!r} is no size; choose one of {', '.join(SIZES)}.")
    return {"vocab_size": vocab_size, **size(name), "max_positions": 512}


def set_fine_tuning(
    c: ConfigDict, debug: bool, *, learning_rate: float, epochs: int, batch_size: int
) -> None:
    """Sets optimizer, schedule and duration as in the paper's fine-tuning."""
    c.batch_size = 8 if debug else batch_size
    c.duration = "8 steps" if debug else f"{epochs} epochs"
    c.optimizer = {
        "name": "bert_adamw",
        "learning_rate": 1e-3 if debug else learning_rate,
        "weight_decay": 0.01,
    }
    c.weight_decay_on = WEIGHT_DECAY_ON
    warmup = "2 steps" if debug else f"{epochs / 10:g} epochs"
    c.schedule = {"name": "bert_linear", "warmup": warmup}
    c.clip_norm = 1.0
    c.sharding_rules = SHARDING
    c.checkpoint_every = "4 steps" if debug else "1 epochs"
    c.log_every = "1 steps" if debug else "20 steps"
