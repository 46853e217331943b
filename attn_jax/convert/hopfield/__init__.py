"""Converts layers of the official PyTorch package (ml-jku/hopfield-layers), and DeepRC."""

from attn_jax.convert.hopfield.inputs import inputs_from_torch
from attn_jax.convert.hopfield.layers import from_torch
from attn_jax.convert.hopfield.repertoires import deeprc_from_torch

__all__ = ["deeprc_from_torch", "from_torch", "inputs_from_torch"]
