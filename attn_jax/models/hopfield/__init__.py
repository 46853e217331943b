"""Hopfield networks, from the binary one to attention that may be iterated.

`retrieve` and `energy` are the equations of the modern network (Ramsauer et al., 2021), for every
member of a family (`Softmax`, `Entmax`, `Normmax`, `Subsets`); `theory` has the paper's bounds.
`Hopfield` adds projections and norms; `HopfieldPooling` learns the states, `HopfieldLayer` the
stored patterns. `HopfieldEncoderLayer` and `HopfieldDecoderLayer` are layers of a Transformer.
`HopfieldAttention` is the attention of a ViT or a BERT, `RepertoireClassifier` a network (DeepRC)
for bags of very many sequences. `binary` is the classical network, `dense`
the one of sharper interactions, `epanechnikov` the one of patterns with a radius.
"""

from attn_jax.models.hopfield.association import ACTIVATIONS, Hopfield
from attn_jax.models.hopfield.attention import HopfieldAttention
from attn_jax.models.hopfield.equations import energy, retrieve
from attn_jax.models.hopfield.family import Entmax, Normmax, Softmax, Subsets
from attn_jax.models.hopfield.layers import HopfieldLayer, HopfieldPooling
from attn_jax.models.hopfield.repertoires import RepertoireClassifier
from attn_jax.models.hopfield.streaming import (
    associate_bags,
    associate_in_chunks,
    associate_sharded,
)
from attn_jax.models.hopfield.transformer import (
    HopfieldDecoderLayer,
    HopfieldEncoderLayer,
)
from attn_jax.models.hopfield.updates import MAX_UPDATES

__all__ = [
    "ACTIVATIONS",
    "MAX_UPDATES",
    "Entmax",
    "Hopfield",
    "HopfieldAttention",
    "HopfieldDecoderLayer",
    "HopfieldEncoderLayer",
    "HopfieldLayer",
    "HopfieldPooling",
    "Normmax",
    "RepertoireClassifier",
    "Softmax",
    "Subsets",
    "associate_bags",
    "associate_in_chunks",
    "associate_sharded",
    "energy",
    "retrieve",
]
