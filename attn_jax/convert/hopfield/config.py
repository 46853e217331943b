"""Converts arguments of the official PyTorch Hopfield layers to fields of our module."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from attn_jax.models.hopfield import ACTIVATIONS

# Constructor arguments of the official `Hopfield`, with their defaults.
HOPFIELD_ARGUMENTS: dict[str, Any] = {
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
# Further arguments of each kind.
KIND_ARGUMENTS: dict[str, dict[str, Any]] = {
    "Hopfield": {},
    "HopfieldPooling": {"quantity": 1, "trainable": True},
    "HopfieldLayer": {
        "quantity": 1,
        "trainable": True,
        "lookup_weights_as_separated": False,
        "lookup_targets_as_trainable": True,
    },
}
# Arguments of the layers of a Transformer, whose Hopfield modules have arguments of their own.
LAYER_ARGUMENTS: dict[str, Any] = {
    "dim_feedforward": 2048,
    "dropout": 0.1,
    "activation": "relu",
}
# Hopfield modules of each of these layers: {official argument: name in ours}.
HOPFIELD_MODULES: dict[str, dict[str, str]] = {
    "HopfieldEncoderLayer": {"hopfield_association": "hopfield"},
    "HopfieldDecoderLayer": {
        "hopfield_association_self": "self_hopfield",
        "hopfield_association_cross": "cross_hopfield",
    },
}


def fill_in_defaults(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all arguments of the official constructor.

    Raises:
        ValueError: the kind or an argument is unknown, or the arguments of a layer's
            Hopfield module are missing.
    """
    if kind not in KIND_ARGUMENTS and kind not in HOPFIELD_MODULES:
        kinds = ", ".join([*KIND_ARGUMENTS, *HOPFIELD_MODULES])
        raise ValueError(f"{kind=} cannot be converted; the kinds are {kinds}.")
    modules = HOPFIELD_MODULES.get(kind, {})
    known = (
        dict.fromkeys(modules) | LAYER_ARGUMENTS
        if modules
        else HOPFIELD_ARGUMENTS | KIND_ARGUMENTS[kind]
    )
    if unknown := sorted(set(config) - set(known)):
        raise ValueError(
            f"{unknown[0]!r} is no argument of the official {kind}; it has "
            f"{', '.join(known)}."
        )
    filled = known | dict(config)
    for name in modules:
        inner = filled[name]
        if not isinstance(inner, Mapping):
            raise ValueError(
                f"{name}={inner!r} of {kind} must be the arguments of its Hopfield "
                "module, as a dict."
            )
        filled[name] = fill_in_defaults("Hopfield", inner)
    return filled


class Sizes:
    """Widths as the official constructor derives them; None if it has none."""

    def __init__(self, config: Mapping[str, Any]):
        heads, width = config["num_heads"], config["input_size"]
        static = [
            config[f"{role}_as_static"]
            for role in ("stored_pattern", "state_pattern", "pattern_projection")
        ]
        self.input = width
        # The layer then projects nothing, and its widths are those of the inputs.
        self.static_execution = (
            all(static)
            and config["disable_out_projection"]
            and not config["pattern_projection_as_connected"]
            and not config["normalize_hopfield_space"]
        )
        self.stored = config["stored_pattern_size"] or width
        self.projection = config["pattern_projection_size"] or width
        self.hidden: Any = None  # width of the association space per head
        self.pattern: Any = None  # width of a value per head
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
                "hidden_size set."
            )
        self.hidden = config["hidden_size"] or width // heads
        self.pattern = config["pattern_size"] or self.hidden
        self.one_matrix = (
            self.stored == self.projection == width
            and config["pattern_size"] is None
            and not config["pattern_projection_as_connected"]
        )


def hopfield_fields(config: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Returns the fields of our `Hopfield` for the same function as the official layer."""

    def norm_kind(name: str) -> str:
        if not config[f"normalize_{name}"]:
            return "off"
        return "affine" if config[f"normalize_{name}_affine"] else "plain"

    beta = cast_per_head(config["scaling"], float)
    if beta is None and sizes.static_execution:
        beta = 1.0  # without a projection there is no d for 1/sqrt(d)
    limits = cast_per_head(config["update_steps_max"], int)
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
        "eps": cast_per_head(config["update_steps_eps"], float),
        "norm_stored": norm_kind("stored_pattern"),
        "norm_state": norm_kind("state_pattern"),
        "norm_projection": norm_kind("pattern_projection"),
        "norm_association": norm_kind("hopfield_space"),
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


def cast_per_head(value: Any, cast: type) -> Any:
    """Converts to a number, or to a tuple if the original has a tensor; None stays."""
    if value is None:
        return None
    values = np.asarray(value)
    if values.ndim == 0:
        return cast(values)
    return tuple(cast(entry) for entry in values)
