"""Modern Hopfield networks: attention that may be iterated (Ramsauer et al., 2021).

`retrieve` and `energy` are the paper's equations. `Hopfield` adds projections and norms;
`HopfieldPooling` learns the states, `HopfieldLayer` the stored patterns. `HopfieldEncoderLayer` and
`HopfieldDecoderLayer` are layers of a Transformer.
"""

from attn_jax.models.hopfield.association import ACTIVATIONS, Hopfield
from attn_jax.models.hopfield.equations import MAX_UPDATES, energy, retrieve
from attn_jax.models.hopfield.layers import HopfieldLayer, HopfieldPooling
from attn_jax.models.hopfield.transformer import (
    HopfieldDecoderLayer,
    HopfieldEncoderLayer,
)

__all__ = [
    "ACTIVATIONS",
    "MAX_UPDATES",
    "Hopfield",
    "HopfieldDecoderLayer",
    "HopfieldEncoderLayer",
    "HopfieldLayer",
    "HopfieldPooling",
    "energy",
    "retrieve",
]
