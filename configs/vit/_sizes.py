"""Sizes and sharding of the Vision Transformer, shared by its recipes.

Source: big_vision `models/vit.py` (decode_variant); Dosovitskiy et al. 2021, table 1;
Zhai et al. 2022, table 2; Alabdulmohsin et al. 2023 (So400m).
"""

SIZES = {
    # name: width, depth, MLP width, heads
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
    "So400m": (1152, 27, 4304, 16),
    "g": (1408, 40, 6144, 16),
    "g-opt": (1536, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "G-opt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}


def size(name: str) -> dict[str, int]:
    """Returns the model fields of one row of the table."""
    return dict(
        zip(("width", "depth", "mlp_width", "num_heads"), SIZES[name], strict=True)
    )


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


# For `[LAYERS, 0.75]` in `learning_rate_multipliers`, layer decay: layers nearer to the pixels
# change less. What is before block 0 counts as one more layer; the head and the last norm keep
# the rate.
LAYERS = (
    "((block_(?P<layer>[0-9]+)|stem|embedding|pre_norm)/.*"
    "|mask_token|cls|registers|pos_embedding)"
)
