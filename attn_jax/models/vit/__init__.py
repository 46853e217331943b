"""Vision Transformer: an image is worth 16x16 words (Dosovitskiy et al., 2021).

The paper's code computes the variance in layer norms as E[x^2] - E[x]^2, which loses digits
if the mean is large; this one takes two passes. Both agree with the reference outputs
within their tolerance.
"""

from attn_jax.models.vit.blocks import GELU, AttentionPooling, Block, PatchEmbedding
from attn_jax.models.vit.model import DIALECTS, Dialect, ViT, sincos2d

__all__ = [
    "DIALECTS",
    "GELU",
    "AttentionPooling",
    "Block",
    "Dialect",
    "PatchEmbedding",
    "ViT",
    "sincos2d",
]
