"""Models of the official Keras code (google-research, slot_attention) as ours."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from attn_jax.models.slot_attention import (
    SlotAttention,
    SlotAttentionAutoEncoder,
    SlotAttentionClassifier,
)

# Arguments of the official constructors that the weights do not tell; strides of the
# encoder are constants there.
CONFIG = {
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


def from_keras(
    kind: str, config: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> tuple[nn.Module, dict[str, Any]]:
    """(module, variables) of an official model; widths are read off the weights.

    Args:
        kind: "SlotAttention", "SlotAttentionAutoEncoder" or "SlotAttentionClassifier".
        config: `num_slots`; `num_iterations` (3 if absent), `epsilon` (1e-8); of whole
            models `resolution` (height, width) of the image, `encoder_strides` (those
            of the official class if absent); of the autoencoder `decoder_initial_size`
            (8, 8) and `decoder_strides` (2, 2, 2, 2, 1, 1).
        weights: {path of Keras attributes: array}, such as "slot_attention/gru/kernel"
            or "encoder_cnn/0/bias"; transposed convolutions are [h, w, out, in].

    Raises:
        ValueError: an unknown kind, setting or array; a missing one; a wrong shape.
    """
    if kind not in CONFIG:
        raise ValueError(
            f"{kind=} cannot be converted; the kinds are {', '.join(CONFIG)}."
        )
    if unknown := sorted(set(config) - CONFIG[kind]):
        raise ValueError(
            f"{unknown[0]!r} is no setting of {kind}; it has "
            f"{', '.join(sorted(CONFIG[kind]))}. Leave it out."
        )
    if "num_slots" not in config:
        raise ValueError(f"{kind} needs num_slots; the weights do not tell it.")
    taken = Weights(kind, weights)
    fields: dict[str, Any] = {
        "num_slots": int(config["num_slots"]),
        "iterations": int(config.get("num_iterations", 3)),
        "epsilon": float(config.get("epsilon", 1e-8)),
    }
    if kind == "SlotAttention":
        params = taken.slot_attention("", fields)
        module: nn.Module = SlotAttention(**fields)
    else:
        params = {
            "encoder": taken.encoder(fields),
            "slot_attention": taken.slot_attention("slot_attention/", fields),
        }
    if kind == "SlotAttentionAutoEncoder":
        size = numbers(config.get("decoder_initial_size", (8, 8)))
        strides = numbers(config.get("decoder_strides", (2, 2, 2, 2, 1, 1)))
        made = tuple(side * int(np.prod(strides)) for side in size)
        resolution = numbers(config.get("resolution", made))
        if resolution != made:
            raise ValueError(
                f"{resolution=}, but {size=} times {strides=} of the decoder is "
                f"{made}; set decoder_initial_size or decoder_strides."
            )
        params["decoder"] = taken.decoder(fields)
        plain = (1,) * len(fields["encoder_channels"])
        fields |= {
            "encoder_strides": numbers(config.get("encoder_strides", plain)),
            "decoder_initial_size": size,
            "decoder_strides": strides,
        }
        check_strides("encoder", fields)
        check_strides("decoder", fields)
        module = SlotAttentionAutoEncoder(**fields)
    elif kind == "SlotAttentionClassifier":
        width = fields["width"]
        head, outputs = (
            taken.look(f"mlp_classifier/{i}/kernel", 2)[1] for i in range(2)
        )
        params["head_1"] = taken.dense("mlp_classifier/0", (width, head))
        params["head_2"] = taken.dense("mlp_classifier/1", (head, outputs))
        fields |= {
            "head_width": head,
            "num_outputs": outputs,
            "resolution": numbers(config.get("resolution", (128, 128))),
            "encoder_strides": numbers(config.get("encoder_strides", (1, 2, 2, 1))),
        }
        check_strides("encoder", fields)
        module = SlotAttentionClassifier(**fields)
    taken.check_all_taken()
    return module, {"params": params}


class Weights:
    """The official arrays; each must be taken, in the shape that is asked for."""

    def __init__(self, kind: str, arrays: Mapping[str, np.ndarray]):
        self.kind, self.arrays = kind, dict(arrays)
        self.left = set(self.arrays)

    def look(self, name: str, dims: int) -> tuple[int, ...]:
        """The shape of an array, from which widths are read."""
        if name not in self.arrays:
            raise ValueError(
                f"{name} of {self.kind} is missing from the weights; name arrays by "
                "their Keras attributes, without a prefix."
            )
        shape = self.arrays[name].shape
        if len(shape) != dims:
            raise ValueError(
                f"{name} of {self.kind} has the shape {list(shape)}; it must have "
                f"{dims} dimensions. Give the array as Keras holds it."
            )
        return tuple(int(side) for side in shape)

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        found = self.look(name, len(shape))
        if found != shape:
            raise ValueError(
                f"{name} of {self.kind} has the shape {list(found)}; beside the other "
                f"weights it must be {list(shape)}. Give the arrays of one model."
            )
        self.left.discard(name)
        return np.asarray(self.arrays[name], np.float32)

    def check_all_taken(self) -> None:
        if self.left:
            raise ValueError(
                f"{sorted(self.left)[0]} is no weight of this {self.kind}; leave it "
                "out, or set `kind` to the model that it belongs to."
            )

    def dense(
        self, name: str, shape: tuple[int, ...], bias: bool = True
    ) -> dict[str, np.ndarray]:
        params = {"kernel": self.take(f"{name}/kernel", shape)}
        if bias:
            params["bias"] = self.take(f"{name}/bias", shape[-1:])
        return params

    def norm(self, name: str, width: int) -> dict[str, np.ndarray]:
        return {
            "scale": self.take(f"{name}/gamma", (width,)),
            "bias": self.take(f"{name}/beta", (width,)),
        }

    def slot_attention(self, prefix: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The parameters; adds what the weights tell to the module's fields."""
        inputs, width = self.look(f"{prefix}k/kernel", 2)
        mlp_width = self.look(f"{prefix}mlp/0/kernel", 2)[1]
        fields |= {"width": width, "mlp_width": mlp_width}
        triple = (width, 3 * width)
        return {
            "slots_mu": self.take(f"{prefix}slots_mu", (1, 1, width)),
            "slots_log_sigma": self.take(f"{prefix}slots_log_sigma", (1, 1, width)),
            "norm_inputs": self.norm(f"{prefix}norm_inputs", inputs),
            "norm_slots": self.norm(f"{prefix}norm_slots", width),
            "norm_mlp": self.norm(f"{prefix}norm_mlp", width),
            "query": self.dense(f"{prefix}q", (width, width), bias=False),
            "key": self.dense(f"{prefix}k", (inputs, width), bias=False),
            "value": self.dense(f"{prefix}v", (inputs, width), bias=False),
            "gru": {
                "kernel": self.take(f"{prefix}gru/kernel", triple),
                "recurrent_kernel": self.take(f"{prefix}gru/recurrent_kernel", triple),
                "bias": self.take(f"{prefix}gru/bias", (2, 3 * width)),
            },
            "mlp_1": self.dense(f"{prefix}mlp/0", (width, mlp_width)),
            "mlp_2": self.dense(f"{prefix}mlp/1", (mlp_width, width)),
        }

    def layers(self, name: str) -> int:
        """How many convolutions there are, counted up to the first that is missing."""
        number = 0
        while f"{name}/{number}/kernel" in self.arrays:
            number += 1
        return number

    def encoder(self, fields: dict[str, Any]) -> dict[str, Any]:
        params: dict[str, Any] = {}
        channels, kernels, previous = [], [], 3
        for i in range(max(self.layers("encoder_cnn"), 1)):
            name = f"encoder_cnn/{i}"
            kernel, _, _, out = self.look(f"{name}/kernel", 4)
            params[f"conv_{i}"] = self.dense(name, (kernel, kernel, previous, out))
            channels.append(out)
            kernels.append(kernel)
            previous = out
        fields |= {
            "encoder_channels": tuple(channels),
            "encoder_kernels": tuple(kernels),
        }
        params["position"] = {"dense": self.dense("encoder_pos/dense", (4, previous))}
        params["norm"] = self.norm("layer_norm", previous)
        for i in range(2):
            params[f"mlp_{i + 1}"] = self.dense(f"mlp/{i}", (previous, previous))
        return params

    def decoder(self, fields: dict[str, Any]) -> dict[str, Any]:
        width = fields["width"]
        params: dict[str, Any] = {
            "position": {"dense": self.dense("decoder_pos/dense", (4, width))}
        }
        channels, kernels, previous = [], [], width
        last = max(self.layers("decoder_cnn"), 1) - 1
        for i in range(last + 1):
            name = f"decoder_cnn/{i}"
            kernel, _, out, _ = self.look(f"{name}/kernel", 4)
            out = 4 if i == last else out  # RGB and the mask's logit
            shape = (kernel, kernel, out, previous)
            params[f"conv_{i}"] = {
                "kernel": self.take(f"{name}/kernel", shape),
                "bias": self.take(f"{name}/bias", (out,)),
            }
            channels.append(out)
            kernels.append(kernel)
            previous = out
        fields |= {
            "decoder_channels": tuple(channels[:-1]),
            "decoder_kernels": tuple(kernels),
        }
        return params


def check_strides(part: str, fields: Mapping[str, Any]) -> None:
    strides, layers = fields[f"{part}_strides"], len(fields[f"{part}_kernels"])
    if len(strides) != layers:
        raise ValueError(
            f"{part}_strides={strides}, but the weights have {layers} layers in the "
            f"{part}; set config's {part}_strides to one number a layer."
        )


def numbers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
