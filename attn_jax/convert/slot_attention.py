"""Converts models of the official Keras code (google-research, slot_attention)."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.convert.arrays import (
    Entry,
    parameter_shapes,
    read_parameters,
    require_shape,
)
from attn_jax.models.slot_attention import (
    SlotAttention,
    SlotAttentionAutoEncoder,
    SlotAttentionClassifier,
)

# Arguments of the official constructors that the weights do not determine, and the encoder's
# strides, which are constants there.
SETTINGS = {
    "SlotAttention": {"num_slots", "num_iterations", "epsilon"},
    "SlotAttentionAutoEncoder": {
        "num_slots",
        "num_iterations",
        "epsilon",
        "resolution",
        "encoder_strides",
        "decoder_initial_size",
        "decoder_strides",
    },
    "SlotAttentionClassifier": {
        "num_slots",
        "num_iterations",
        "epsilon",
        "resolution",
        "encoder_strides",
    },
}

# {our name: theirs} of matrices with and without a bias; names of norms and single arrays.
SLOT_DENSE = {"mlp_1": "mlp/0", "mlp_2": "mlp/1"}
SLOT_MATRICES = {"query": "q", "key": "k", "value": "v"}
SLOT_NORMS = ("norm_inputs", "norm_slots", "norm_mlp")
SLOT_ARRAYS = (
    "slots_mu",
    "slots_log_sigma",
    "gru/kernel",
    "gru/recurrent_kernel",
    "gru/bias",
)


def from_keras(
    kind: str, config: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> tuple[nn.Module, dict[str, Any]]:
    """Converts an official model to (module, variables); the weights determine widths.

    Args:
        kind: "SlotAttention", "SlotAttentionAutoEncoder" or "SlotAttentionClassifier".
        config: `num_slots`; `num_iterations` (default 3), `epsilon` (default 1e-8); of whole
            models `resolution` (height, width) of the image in pixels, `encoder_strides`
            (default: those of the official class); of the autoencoder
            `decoder_initial_size` (8, 8) and `decoder_strides` (2, 2, 2, 2, 1, 1).
        weights: {path of Keras attributes: array}, such as "slot_attention/gru/kernel"
            or "encoder_cnn/0/bias"; transposed convolutions are [h, w, out, in].

    Raises:
        ValueError: the kind or a setting is unknown; arrays are missing, unused or of
            another shape (one table of all).
    """
    if kind not in SETTINGS:
        raise ValueError(
            f"{kind=} cannot be converted; the kinds are {', '.join(SETTINGS)}."
        )
    if unknown := sorted(set(config) - SETTINGS[kind]):
        raise ValueError(
            f"{unknown[0]!r} is no setting of {kind}; it has "
            f"{', '.join(sorted(SETTINGS[kind]))}. Leave it out."
        )
    if "num_slots" not in config:
        raise ValueError(f"{kind} needs num_slots, which the weights do not determine.")
    make = {
        "SlotAttention": make_slot_attention,
        "SlotAttentionAutoEncoder": make_autoencoder,
        "SlotAttentionClassifier": make_classifier,
    }[kind]
    module, inputs, entries = make(config, weights, kind)
    keys = jax.random.split(jax.random.key(0), 1)
    params = read_parameters(
        entries,
        parameter_shapes(
            module, jax.ShapeDtypeStruct(inputs, jnp.float32), sample_keys=keys
        ),
        weights,
        f"the weights of {kind}",
        remedy=(
            "pass the arrays of one model in the layout of Keras, named by their attributes "
            "without a prefix, and the kind of this model"
        ),
    )
    return module, {"params": params}


Made = tuple[
    nn.Module, tuple[int, ...], dict[str, Entry]
]  # (module, input shape, names)


def make_slot_attention(
    config: Mapping[str, Any], weights: Mapping[str, np.ndarray], source: str
) -> Made:
    fields, inputs = slot_fields(config, weights, "", source)
    return SlotAttention(**fields), (1, 1, inputs), slot_entries("", "")


def make_autoencoder(
    config: Mapping[str, Any], weights: Mapping[str, np.ndarray], source: str
) -> Made:
    size = as_ints(config.get("decoder_initial_size", (8, 8)))
    strides = as_ints(config.get("decoder_strides", (2, 2, 2, 2, 1, 1)))
    decoded = tuple(side * math.prod(strides) for side in size)
    resolution = as_ints(config.get("resolution", decoded))
    if resolution != decoded:
        raise ValueError(
            f"{resolution=}, but decoder_initial_size={size} times decoder_strides={strides} "
            f"is {decoded}; set decoder_initial_size or decoder_strides."
        )
    fields, _ = slot_fields(config, weights, "slot_attention/", source)
    fields |= convolution_fields("encoder", weights, source)
    fields |= convolution_fields("decoder", weights, source)
    layers = len(fields["encoder_kernels"])
    fields |= {
        "encoder_strides": as_ints(config.get("encoder_strides", (1,) * layers)),
        "decoder_initial_size": size,
        "decoder_strides": strides,
    }
    check_strides("encoder", fields)
    check_strides("decoder", fields)
    module = SlotAttentionAutoEncoder(**fields)
    entries = {
        **slot_entries("slot_attention/", "slot_attention/"),
        **encoder_entries(layers),
        **layer_entries("decoder/position/dense", "decoder_pos/dense"),
    }
    for i in range(len(fields["decoder_kernels"])):
        entries |= layer_entries(f"decoder/conv_{i}", f"decoder_cnn/{i}")
    return module, (1, *decoded, 3), entries


def make_classifier(
    config: Mapping[str, Any], weights: Mapping[str, np.ndarray], source: str
) -> Made:
    fields, _ = slot_fields(config, weights, "slot_attention/", source)
    fields |= convolution_fields("encoder", weights, source)
    head, outputs = (
        require_shape(weights, f"mlp_classifier/{i}/kernel", 2, source)[1]
        for i in range(2)
    )
    fields |= {
        "head_width": head,
        "num_outputs": outputs,
        "resolution": as_ints(config.get("resolution", (128, 128))),
        "encoder_strides": as_ints(config.get("encoder_strides", (1, 2, 2, 1))),
    }
    check_strides("encoder", fields)
    module = SlotAttentionClassifier(**fields)
    entries = {
        **slot_entries("slot_attention/", "slot_attention/"),
        **encoder_entries(len(fields["encoder_kernels"])),
        **layer_entries("head_1", "mlp_classifier/0"),
        **layer_entries("head_2", "mlp_classifier/1"),
    }
    return module, (1, *module.resolution, 3), entries


def slot_fields(
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    prefix: str,
    source: str,
) -> tuple[dict[str, Any], int]:
    """Returns (fields of `SlotAttention`, width of its inputs)."""
    inputs, width = require_shape(weights, f"{prefix}k/kernel", 2, source)
    fields = {
        "num_slots": int(config["num_slots"]),
        "iterations": int(config.get("num_iterations", 3)),
        "epsilon": float(config.get("epsilon", 1e-8)),
        "width": width,
        "mlp_width": require_shape(weights, f"{prefix}mlp/0/kernel", 2, source)[1],
    }
    return fields, inputs


def convolution_fields(
    part: str, weights: Mapping[str, np.ndarray], source: str
) -> dict[str, tuple[int, ...]]:
    """Reads channels and kernel sizes of "encoder" or "decoder" from its kernels.

    A kernel is [h, w, in, out], in the decoder [h, w, out, in]. The decoder's last layer
    outputs RGB and the mask's logit, so its channels are no field.
    """
    shapes: list[tuple[int, ...]] = []
    while not shapes or f"{part}_cnn/{len(shapes)}/kernel" in weights:
        name = f"{part}_cnn/{len(shapes)}/kernel"
        shapes.append(require_shape(weights, name, 4, source))
    if part == "encoder":
        channels = [shape[3] for shape in shapes]
    else:
        channels = [shape[2] for shape in shapes[:-1]]
    return {
        f"{part}_channels": tuple(channels),
        f"{part}_kernels": tuple(shape[0] for shape in shapes),
    }


def layer_entries(ours: str, theirs: str) -> dict[str, Entry]:
    return {f"{ours}/{leaf}": Entry(f"{theirs}/{leaf}") for leaf in ("kernel", "bias")}


def keras_norm_entries(ours: str, theirs: str) -> dict[str, Entry]:
    return {
        f"{ours}/scale": Entry(f"{theirs}/gamma"),
        f"{ours}/bias": Entry(f"{theirs}/beta"),
    }


def slot_entries(ours: str, theirs: str) -> dict[str, Entry]:
    entries = {f"{ours}{name}": Entry(f"{theirs}{name}") for name in SLOT_ARRAYS}
    for name, other in SLOT_MATRICES.items():
        entries[f"{ours}{name}/kernel"] = Entry(f"{theirs}{other}/kernel")
    for name, other in SLOT_DENSE.items():
        entries |= layer_entries(f"{ours}{name}", f"{theirs}{other}")
    for name in SLOT_NORMS:
        entries |= keras_norm_entries(f"{ours}{name}", f"{theirs}{name}")
    return entries


def encoder_entries(layers: int) -> dict[str, Entry]:
    entries = {
        **layer_entries("encoder/position/dense", "encoder_pos/dense"),
        **keras_norm_entries("encoder/norm", "layer_norm"),
        **layer_entries("encoder/mlp_1", "mlp/0"),
        **layer_entries("encoder/mlp_2", "mlp/1"),
    }
    for i in range(layers):
        entries |= layer_entries(f"encoder/conv_{i}", f"encoder_cnn/{i}")
    return entries


def check_strides(part: str, fields: Mapping[str, Any]) -> None:
    strides, layers = fields[f"{part}_strides"], len(fields[f"{part}_kernels"])
    if len(strides) != layers:
        raise ValueError(
            f"{part}_strides={strides}, but the weights have {layers} layers in the "
            f"{part}; set config's {part}_strides to one number per layer."
        )


def as_ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
