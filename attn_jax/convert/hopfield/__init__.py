"""Converts layers of the official PyTorch package (ml-jku/hopfield-layers)."""

from attn_jax.convert.hopfield.inputs import inputs_from_torch
from attn_jax.convert.hopfield.layers import from_torch

__all__ = ["from_torch", "inputs_from_torch"]
