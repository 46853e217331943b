"""Converts a network of DeepRC (ml-jku/DeepRC)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.convert.arrays import (
    Entry,
    dense_entries,
    parameter_shapes,
    read_parameters,
)
from attn_jax.models.hopfield.repertoires import RepertoireClassifier

# Arguments of the official constructors, of which `deeprc_from_torch` reads those of CNNs.
ARGUMENTS: dict[str, Any] = {
    "kernel_size": 9,
    "n_kernels": 32,
    "n_conv_layers": 1,
    "attention_layers": 2,
    "attention_units": 32,
    "output_layers": 1,
    "output_units": 32,
    "n_outputs": 1,
}


def deeprc_from_torch(
    config: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]
) -> tuple[RepertoireClassifier, dict[str, Any]]:
    """Converts an official network with convolutions to (module, variables).

    The constant that the original adds to all attention logits has no influence and is left out. Of
    the embeddings, see `SequenceEncoder`.

    Args:
        config: the sizes, by the official names in `ARGUMENTS`, with these defaults. Others are not read.
        state_dict: {name: array} of the official network.

    Raises:
        ValueError: arrays are missing, unused or of another shape (one table of all).
    """
    sizes = {key: config.get(key, value) for key, value in ARGUMENTS.items()}
    hidden = max(sizes["output_layers"] - 1, 0)
    module = RepertoireClassifier(
        width=sizes["n_kernels"],
        kernel_size=sizes["kernel_size"],
        layers=sizes["n_conv_layers"],
        attention_widths=(sizes["attention_units"],) * sizes["attention_layers"],
        output_widths=(sizes["output_units"],) * hidden,
        outputs=sizes["n_outputs"],
    )
    entries: dict[str, Entry] = {}
    for i in range(sizes["n_conv_layers"]):
        name = f"sequence_embedding.network.{2 * i}"
        entries |= dense_entries(f"encoder/conv_{i}", name, "conv1d")
    for ours, theirs, layers in (
        ("key", "attention_nn.attention_nn", sizes["attention_layers"]),
        ("head", "output_nn.output_nn", hidden),
    ):
        for i in range(layers):
            entries |= dense_entries(f"{ours}/dense_{i}", f"{theirs}.{2 * i}")
    entries |= dense_entries("head/out", f"output_nn.output_nn.{2 * hidden}")
    last = f"attention_nn.attention_nn.{2 * sizes['attention_layers']}"
    entries["state"] = Entry(f"{last}.weight", "squeezed")
    shapes = parameter_shapes(
        module,
        jax.ShapeDtypeStruct((1, 1, 1), jnp.int8),
        jax.ShapeDtypeStruct((1, 1), bool),
    )
    params = read_parameters(
        entries,
        shapes,
        state_dict,
        "the state_dict of DeepRC",
        ignore=[f"{last}.bias"],
        remedy="pass the sizes that the network was made with",
    )
    return module, {"params": params}
