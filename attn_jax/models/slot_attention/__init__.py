"""Slot Attention: slots compete for the parts of an image (Locatello et al., 2020).

`SlotAttention` is the paper's algorithm 1. Two models use it: `SlotAttentionAutoEncoder`
(object discovery) and `SlotAttentionClassifier` (set prediction). `SlotMLP` is the baseline
without attention. `SlotAttentionFeatureAutoEncoder` reconstructs the features of a frozen
encoder.
"""

from attn_jax.models.slot_attention.baseline import SlotMLP
from attn_jax.models.slot_attention.features import (
    FeatureMLPDecoder,
    FeatureTransformerDecoder,
    SlotAttentionFeatureAutoEncoder,
)
from attn_jax.models.slot_attention.grids import (
    Decoder,
    Encoder,
    PositionEmbedding,
    SpreadConvTranspose,
)
from attn_jax.models.slot_attention.keras import GRU
from attn_jax.models.slot_attention.networks import (
    SlotAttentionAutoEncoder,
    SlotAttentionClassifier,
)
from attn_jax.models.slot_attention.slots import SlotAttention

__all__ = [
    "GRU",
    "Decoder",
    "Encoder",
    "FeatureMLPDecoder",
    "FeatureTransformerDecoder",
    "PositionEmbedding",
    "SlotAttention",
    "SlotAttentionAutoEncoder",
    "SlotAttentionClassifier",
    "SlotAttentionFeatureAutoEncoder",
    "SlotMLP",
    "SpreadConvTranspose",
]
