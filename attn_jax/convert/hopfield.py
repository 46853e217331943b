"""Layers of the official PyTorch package (ml-jku/hopfield-layers) as our modules.

Axes in shapes: H heads, d channels of the association space per head, p of a value.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from attn_jax.models.hopfield import (
    ACTIVATIONS,
    Hopfield,
    HopfieldLayer,
    HopfieldPooling,
)

# Constructor arguments of the official `Hopfield`, with their defaults.
HOPFIELD: dict[str, Any] = {
    "input_size": None,
    "hidden_size": None,
    "output_size": None,
    "pattern_size": None,
    "num_heads": 1,
    "scaling": None,
    "update_steps_max": 0,
    "update_steps_eps": 1e-4,
    "normalize_stored_pattern": True,
    "normalize_stored_pattern_affine": True,
    "normalize_stored_pattern_eps": 1e-5,
    "normalize_state_pattern": True,
    "normalize_state_pattern_affine": True,
    "normalize_state_pattern_eps": 1e-5,
    "normalize_pattern_projection": True,
    "normalize_pattern_projection_affine": True,
    "normalize_pattern_projection_eps": 1e-5,
    "normalize_hopfield_space": False,
    "normalize_hopfield_space_affine": False,
    "normalize_hopfield_space_eps": 1e-5,
    "stored_pattern_as_static": False,
    "state_pattern_as_static": False,
    "pattern_projection_as_static": False,
    "pattern_projection_as_connected": False,
    "stored_pattern_size": None,
    "pattern_projection_size": None,
    "batch_first": True,
    "association_activation": None,
    "dropout": 0.0,
    "input_bias": True,
    "concat_bias_pattern": False,
    "add_zero_association": False,
    "disable_out_projection": False,
}
OWN: dict[str, dict[str, Any]] = {
    "Hopfield": {},
    "HopfieldPooling": {"quantity": 1, "trainable": True},
    "HopfieldLayer": {
        "quantity": 1,
        "trainable": True,
        "lookup_weights_as_separated": False,
        "lookup_targets_as_trainable": True,
    },
}


def from_torch(
    kind: str, config: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]
) -> tuple[nn.Module, dict[str, Any]]:
    """(module, variables) of an official layer.

    Args:
        kind: "Hopfield", "HopfieldPooling" or "HopfieldLayer".
        config: the official constructor's arguments; what is absent has its default. A
            per-head tensor is a list.
        state_dict: {name: array} of the official layer.

    The module differs from the original only where that errs: `scaling` per head is one
    beta per head (the original tiles it over channels), a static input does not mix
    samples, no sample's stopping depends on its batch, a state that sees no pattern
    reads zeros, not NaN. `concat_bias_pattern` does nothing in the original, so its
    `bias_k` and `bias_v` are left out. Our modules are batch-first; see
    `inputs_from_torch`.

    Raises:
        ValueError: an unknown kind, argument or array; a missing one; a wrong shape.
    """
    config = checked_config(kind, config)
    weights = Weights(kind, state_dict)
    prefix = "" if kind == "Hopfield" else "hopfield."
    width = config["input_size"]
    sizes = Sizes(config)
    hopfield = Hopfield(**hopfield_fields(config, sizes))
    params = hopfield_params(config, sizes, weights, prefix)

    def patterns(name: str, width: int) -> np.ndarray:
        """A learned [1, quantity, D]; the original has it sequence-first at will."""
        shape = (1, config["quantity"], width)
        if config["batch_first"]:
            return weights.take(name, shape)
        return weights.take(name, (shape[1], 1, width)).swapaxes(0, 1)

    module: nn.Module = hopfield
    if kind == "HopfieldPooling":
        static = config["state_pattern_as_static"]
        width = (sizes.hidden if static else width) or width
        module = HopfieldPooling(
            hopfield, config["quantity"], width, config["trainable"]
        )
        params = {"hopfield": params, "state": patterns("pooling_weights", width)}
    elif kind == "HopfieldLayer":
        static = config["stored_pattern_as_static"]
        stored = (sizes.hidden if static else sizes.stored) or width
        projection = config["pattern_projection_size"] or stored
        module = HopfieldLayer(
            hopfield,
            config["quantity"],
            stored,
            config["lookup_weights_as_separated"],
            projection,
            config["trainable"],
            config["lookup_targets_as_trainable"],
        )
        params = {"hopfield": params, "stored": patterns("lookup_weights", stored)}
        if config["lookup_weights_as_separated"]:
            params["projection"] = patterns("target_weights", projection)
    weights.check_all_taken()
    # A layer without parameters has no collection at all.
    params = {name: part for name, part in params.items() if len(part)}
    return module, {"params": params} if params else {}


def inputs_from_torch(
    kind: str,
    config: Mapping[str, Any],
    input: np.ndarray | tuple[np.ndarray, ...],
    stored_pattern_padding_mask: np.ndarray | None = None,
    association_mask: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Our call's arguments from those of an official call.

    Args:
        input: an array; or (stored, state, projection) of "Hopfield", or (stored,
            projection) of "HopfieldPooling". [B, T, D], or [T, B, D] if not
            `batch_first`.
        stored_pattern_padding_mask: [B, K], True = ignore.
        association_mask: [Q, K] or [B*H, Q, K], boolean (True = blocked) or float
            (added).

    Raises:
        ValueError: an unknown kind or argument, or a number of inputs that it has not.
    """
    config = checked_config(kind, config)
    names = {
        "Hopfield": ("stored", "state", "projection"),
        "HopfieldPooling": ("stored", "projection"),
        "HopfieldLayer": ("state",),
    }[kind]
    parts = input if isinstance(input, tuple) else (input,)
    if len(parts) not in (1, len(names)):
        raise ValueError(
            f"{kind} takes one input or {len(names)} ({', '.join(names)}), "
            f"not {len(parts)}."
        )
    if not config["batch_first"]:
        parts = tuple(np.swapaxes(part, 0, 1) for part in parts)
    ours = dict(zip(names, parts, strict=False))
    if stored_pattern_padding_mask is not None:
        ours["stored_mask"] = ~np.asarray(stored_pattern_padding_mask, bool)
    if association_mask is not None:
        mask = np.asarray(association_mask)
        heads = config["num_heads"] if mask.ndim == 3 else 1
        mask = mask.reshape(-1, heads, *mask.shape[-2:])
        if mask.dtype == bool:
            ours["association_mask"] = ~mask
        else:
            ours["association_bias"] = mask
    return ours


def checked_config(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of the official constructor, defaults filled in."""
    if kind not in OWN:
        raise ValueError(
            f"{kind=} cannot be converted; the kinds are {', '.join(OWN)}. Of encoder "
            "and decoder layers, convert the Hopfield modules inside."
        )
    known = HOPFIELD | OWN[kind]
    if unknown := sorted(set(config) - set(known)):
        raise ValueError(
            f"{unknown[0]!r} is no argument of the official {kind}; it has "
            f"{', '.join(known)}."
        )
    return known | dict(config)


class Sizes:
    """Widths as the official constructor works them out; None where it has none."""

    def __init__(self, config: Mapping[str, Any]):
        heads, width = config["num_heads"], config["input_size"]
        static = [
            config[f"{role}_as_static"]
            for role in ("stored_pattern", "state_pattern", "pattern_projection")
        ]
        # Nothing is projected then, and widths are those of the inputs.
        self.static_execution = (
            all(static)
            and config["disable_out_projection"]
            and not config["pattern_projection_as_connected"]
            and not config["normalize_hopfield_space"]
        )
        self.nothing_projected = all(static)
        self.stored = config["stored_pattern_size"] or width
        self.projection = config["pattern_projection_size"] or width
        self.hidden: Any = None  # of the association space and of a value, per head
        self.pattern: Any = None
        if self.static_execution:
            return
        if width is None:
            raise ValueError(
                "input_size is missing; only a layer whose three inputs are static and "
                "whose output projection is disabled does without."
            )
        if config["hidden_size"] is None and width % heads:
            raise ValueError(
                f"input_size={width} must be divisible by num_heads={heads}, or "
                "hidden_size given."
            )
        self.hidden = config["hidden_size"] or width // heads
        self.pattern = config["pattern_size"] or self.hidden
        self.one_matrix = (
            self.stored == self.projection == width
            and config["pattern_size"] is None
            and not config["pattern_projection_as_connected"]
        )


def hopfield_fields(config: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The fields of our `Hopfield` that make it the official one."""

    def normalisation(name: str) -> str:
        if not config[f"normalize_{name}"]:
            return "off"
        return "affine" if config[f"normalize_{name}_affine"] else "plain"

    beta = per_head(config["scaling"], float)
    if beta is None and sizes.static_execution:
        beta = 1.0  # there is no d to take the root of
    limits = per_head(config["update_steps_max"], int)
    if isinstance(limits, tuple):
        limits = tuple(None if limit < 0 else limit for limit in limits)
    activation = config["association_activation"]
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"association_activation={activation!r} is none of "
            f"{', '.join(ACTIVATIONS)}; apply it to the output yourself."
        )
    static_projection = config["pattern_projection_as_static"]
    out = not config["disable_out_projection"]
    return {
        "num_heads": config["num_heads"],
        "head_dim": sizes.hidden,
        "value_dim": None if static_projection else sizes.pattern,
        "output_width": (config["output_size"] or config["input_size"])
        if out
        else None,
        "beta": beta,
        "max_updates": limits,
        "eps": per_head(config["update_steps_eps"], float),
        "norm_stored": normalisation("stored_pattern"),
        "norm_state": normalisation("state_pattern"),
        "norm_projection": normalisation("pattern_projection"),
        "norm_association": normalisation("hopfield_space"),
        "norm_stored_epsilon": config["normalize_stored_pattern_eps"],
        "norm_state_epsilon": config["normalize_state_pattern_eps"],
        "norm_projection_epsilon": config["normalize_pattern_projection_eps"],
        "norm_association_epsilon": config["normalize_hopfield_space_eps"],
        "static_stored": config["stored_pattern_as_static"],
        "static_state": config["state_pattern_as_static"],
        "static_projection": static_projection,
        "connected": config["pattern_projection_as_connected"],
        "zero_association": config["add_zero_association"],
        "use_bias": config["input_bias"],
        "out_projection": out,
        "activation": activation,
        "dropout": config["dropout"],
    }


def per_head(value: Any, cast: type) -> Any:
    """None, a number, or a tuple of them where the original has a tensor."""
    if value is None:
        return None
    values = np.asarray(value)
    if values.ndim == 0:
        return cast(values)
    return tuple(cast(entry) for entry in values)


def hopfield_params(
    config: Mapping[str, Any], sizes: Sizes, weights: "Weights", prefix: str
) -> dict[str, Any]:
    """Our `Hopfield`'s parameters; the official matrices are (out, in)."""
    heads, width = config["num_heads"], config["input_size"]
    core = f"{prefix}association_core."
    params: dict[str, Any] = {}

    def norm(name: str, official: str, width: int | None) -> None:
        if config[f"normalize_{official}"] and config[f"normalize_{official}_affine"]:
            params[f"{name}_norm"] = {
                "scale": weights.take(f"{prefix}norm_{official}.weight", (width,)),
                "bias": weights.take(f"{prefix}norm_{official}.bias", (width,)),
            }

    norm("stored", "stored_pattern", sizes.stored)
    norm("state", "state_pattern", width)
    norm("projection", "pattern_projection", sizes.projection)
    if config["normalize_hopfield_space"] and config["normalize_hopfield_space_affine"]:
        params["association_norm"] = {
            "scale": weights.take(f"{core}p_norm_weight", (sizes.hidden,)),
            "bias": weights.take(f"{core}p_norm_bias", (sizes.hidden,)),
        }
    if sizes.static_execution:
        return params

    hidden, pattern = heads * sizes.hidden, heads * sizes.pattern
    after_key = (
        config["pattern_projection_as_connected"]
        and not config["stored_pattern_as_static"]
    )
    # (ours, theirs, channels per head, static, input width), in the order of their rows
    roles = [
        ("query", "q", sizes.hidden, config["state_pattern_as_static"], width),
        ("key", "k", sizes.hidden, config["stored_pattern_as_static"], sizes.stored),
        (
            "value",
            "v",
            sizes.pattern,
            config["pattern_projection_as_static"],
            hidden if after_key else sizes.projection,
        ),
    ]
    projected = [role for role in roles if not role[3]]
    rows = sum(heads * channels for _, _, channels, *_ in projected)
    matrix = None
    if sizes.one_matrix and projected:
        matrix = weights.take(f"{core}in_proj_weight", (rows, width))
    bias = None
    if config["input_bias"] and not sizes.nothing_projected:
        # A static value has its block, too, which nothing reads.
        dead = pattern if config["pattern_projection_as_static"] else 0
        bias = weights.take(f"{core}in_proj_bias", (rows + dead,))
    start = 0
    for ours, theirs, channels, _, inputs in projected:
        block = slice(start, start + heads * channels)
        start = block.stop
        if matrix is not None:
            kernel = matrix[block]
        else:
            shape = (heads * channels, inputs)
            kernel = weights.take(f"{core}{theirs}_proj_weight", shape)
        inner = (heads, sizes.hidden) if ours == "value" and after_key else (inputs,)
        params[ours] = {"kernel": kernel.T.reshape(*inner, heads, channels)}
        if bias is not None:
            params[ours]["bias"] = bias[block].reshape(heads, channels)
    if not config["disable_out_projection"]:
        out = config["output_size"] or width
        kernel = weights.take(f"{core}out_proj.weight", (out, pattern))
        params["out"] = {"kernel": kernel.T.reshape(heads, sizes.pattern, out)}
        if config["input_bias"]:
            params["out"]["bias"] = weights.take(f"{core}out_proj.bias", (out,))
    if config["concat_bias_pattern"]:
        weights.ignore(f"{core}bias_k", f"{core}bias_v")
    return params


class Weights:
    """A state_dict that notices what is missing, misshapen or never asked for."""

    def __init__(self, kind: str, state_dict: Mapping[str, np.ndarray]):
        self.kind, self.left = kind, dict(state_dict)

    def take(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        if name not in self.left:
            raise ValueError(
                f"{name} is missing from the state_dict of this {self.kind}; the "
                "config asks for it. Give the arguments that the layer was made with."
            )
        array = np.asarray(self.left.pop(name))
        if array.shape != shape:
            raise ValueError(
                f"{name} has the shape {array.shape}, but the config makes it {shape}. "
                "Give the arguments that the layer was made with."
            )
        return array

    def ignore(self, *names: str) -> None:
        for name in names:
            self.left.pop(name, None)

    def check_all_taken(self) -> None:
        if self.left:
            raise ValueError(
                f"{', '.join(sorted(self.left))}: nothing in this {self.kind}'s config "
                "uses it. Give the arguments that the layer was made with."
            )
