"""Slot Attention: slots compete for the parts of an image (Locatello et al., 2020).

`SlotAttention` is the paper's algorithm 1. Two models use it: `SlotAttentionAutoEncoder`
(object discovery) and `SlotAttentionClassifier` (set prediction).
"""

from attn_jax.models.slot_attention.grids import (
    Decoder,
    Encoder,
    PositionEmbedding,
    SpreadConvTranspose,
)
from attn_jax.models.slot_attention.networks import (
    SlotAttentionAutoEncoder,
    SlotAttentionClassifier,
)
from attn_jax.models.slot_attention.slots import GRU, SlotAttention

__all__ = [
    "GRU",
    "Decoder",
    "Encoder",
    "PositionEmbedding",
    "SlotAttention",
    "SlotAttentionAutoEncoder",
    "SlotAttentionClassifier",
    "SpreadConvTranspose",
]
