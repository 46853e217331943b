"""Converts the parameters of the official PyTorch Hopfield layers.

Axes in shapes: H heads, d channels of the association space per head, p of a value.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from attn_jax.convert.arrays import Entry, Layout, Rows, read_parameters
from attn_jax.convert.hopfield.config import (
    HOPFIELD_MODULES,
    Sizes,
    fill_in_defaults,
    hopfield_fields,
)
from attn_jax.models.hopfield import (
    Hopfield,
    HopfieldDecoderLayer,
    HopfieldEncoderLayer,
    HopfieldLayer,
    HopfieldPooling,
)
from attn_jax.models.hopfield.transformer import ACTIVATIONS

# {official norm: ours without "_norm"}
LAYER_NORMS = {
    "HopfieldEncoderLayer": {"norm_residual": "hopfield", "norm_output": "mlp"},
    "HopfieldDecoderLayer": {
        "norm_residual_self": "self",
        "norm_residual_cross": "cross",
        "norm_output": "mlp",
    },
}


def from_torch(
    kind: str, config: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]
) -> tuple[nn.Module, dict[str, Any]]:
    """Converts an official layer to (module, variables).

    The module differs from the original only where the original has a defect: `scaling` per
    head is one beta per head (the original tiles it over channels); a static input does not
    mix samples; when a sample stops does not depend on its batch; a fully masked state gives
    zeros instead of NaN. `concat_bias_pattern` has no effect in the original, so its `bias_k`
    and `bias_v` are left out. Our modules are batch-first; see `inputs_from_torch`.

    Args:
        kind: "Hopfield", "HopfieldPooling", "HopfieldLayer", "HopfieldEncoderLayer" or
            "HopfieldDecoderLayer".
        config: the official constructor's arguments; an absent one has its default. A
            per-head tensor is a list. For a Hopfield module inside an encoder or decoder
            layer, a dict of its arguments.
        state_dict: {name: array} of the official layer.

    Raises:
        ValueError: the kind or an argument is unknown; arrays are missing, unused or of
            another shape (one table of all).
    """
    config = fill_in_defaults(kind, config)
    if kind in HOPFIELD_MODULES:
        return transformer_layer_from_torch(kind, config, state_dict)
    sizes = Sizes(config)
    hopfield = Hopfield(**hopfield_fields(config, sizes))
    table = Table()
    if kind == "Hopfield":
        module: nn.Module = hopfield
        add_hopfield(table, config, sizes, "", "")
    else:
        add_hopfield(table, config, sizes, "hopfield/", "hopfield.")
    patterns: Layout = "same" if config["batch_first"] else "sequence_first"
    quantity, width = config["quantity"] if "quantity" in config else 0, sizes.input
    if kind == "HopfieldPooling":
        static = config["state_pattern_as_static"]
        state = (sizes.hidden if static else width) or width
        module = HopfieldPooling(hopfield, quantity, state, config["trainable"])
        table.add("state", (1, quantity, state), "pooling_weights", patterns)
    elif kind == "HopfieldLayer":
        static = config["stored_pattern_as_static"]
        separated = config["lookup_weights_as_separated"]
        stored = (sizes.hidden if static else sizes.stored) or width
        projection = config["pattern_projection_size"] or stored
        module = HopfieldLayer(
            hopfield,
            quantity,
            stored,
            separated,
            projection,
            config["trainable"],
            config["lookup_targets_as_trainable"],
        )
        table.add("stored", (1, quantity, stored), "lookup_weights", patterns)
        if separated:
            shape = (1, quantity, projection)
            table.add("projection", shape, "target_weights", patterns)
    core = "association_core." if kind == "Hopfield" else "hopfield.association_core."
    unused = ("bias_k", "bias_v") if config["concat_bias_pattern"] else ()
    params = read_parameters(
        table.entries,
        table.shapes,
        state_dict,
        f"the state_dict of {kind}",
        ignore=[core + name for name in unused],
        remedy="pass the arguments that the layer was made with",
    )
    # A layer without parameters has no collection at all.
    return module, {"params": params} if params else {}


class Table:
    """Shapes of our parameters, and their places in the official layer."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.entries: dict[str, Entry] = {}

    def add(
        self,
        ours: str,
        shape: tuple[int, ...],
        theirs: str,
        layout: Layout = "same",
        rows: Rows | None = None,
    ) -> None:
        if None in shape:
            raise ValueError(
                f"input_size is missing, but {theirs} depends on it; pass the arguments "
                "that the layer was made with."
            )
        self.shapes[ours], self.entries[ours] = shape, Entry(theirs, layout, rows)


def add_hopfield(
    table: Table, config: Mapping[str, Any], sizes: Sizes, ours: str, theirs: str
) -> None:
    """Adds the parameters of our `Hopfield`, under the prefixes `ours` and `theirs`."""
    core = f"{theirs}association_core."
    for part, name, width in (
        ("stored", "stored_pattern", sizes.stored),
        ("state", "state_pattern", sizes.input),
        ("projection", "pattern_projection", sizes.projection),
        ("association", "hopfield_space", sizes.hidden),
    ):
        if config[f"normalize_{name}"] and config[f"normalize_{name}_affine"]:
            weight, bias = f"{theirs}norm_{name}.weight", f"{theirs}norm_{name}.bias"
            if part == "association":
                weight, bias = f"{core}p_norm_weight", f"{core}p_norm_bias"
            table.add(f"{ours}{part}_norm/scale", (width,), weight)
            table.add(f"{ours}{part}_norm/bias", (width,), bias)
    if not sizes.static_execution:
        add_projections(table, config, sizes, ours, core)


def add_projections(
    table: Table, config: Mapping[str, Any], sizes: Sizes, ours: str, core: str
) -> None:
    """Adds query, key, value and output; the official matrices are [out, in]."""
    heads, width = config["num_heads"], sizes.input
    after_key = (
        config["pattern_projection_as_connected"]
        and not config["stored_pattern_as_static"]
    )
    value_inputs = (heads, sizes.hidden) if after_key else (sizes.projection,)
    # (ours, theirs, channels per head, static, axes of the input), in the order of their
    # rows in the shared matrix.
    roles = [
        ("query", "q", sizes.hidden, config["state_pattern_as_static"], (width,)),
        (
            "key",
            "k",
            sizes.hidden,
            config["stored_pattern_as_static"],
            (sizes.stored,),
        ),
        (
            "value",
            "v",
            sizes.pattern,
            config["pattern_projection_as_static"],
            value_inputs,
        ),
    ]
    projected = [role for role in roles if not role[3]]
    total = sum(heads * channels for _, _, channels, *_ in projected)
    # The shared bias has unused rows even if the value is static.
    unread = heads * sizes.pattern if config["pattern_projection_as_static"] else 0
    start = 0
    for name, letter, channels, _, inputs in projected:
        stop = start + heads * channels
        shape = (*inputs, heads, channels)
        if sizes.one_matrix:
            kernel, rows = f"{core}in_proj_weight", Rows(start, stop, total)
            table.add(f"{ours}{name}/kernel", shape, kernel, "heads", rows)
        else:
            kernel = f"{core}{letter}_proj_weight"
            table.add(f"{ours}{name}/kernel", shape, kernel, "heads")
        if config["input_bias"]:
            rows = Rows(start, stop, total + unread)
            bias = f"{core}in_proj_bias"
            table.add(f"{ours}{name}/bias", shape[-2:], bias, "flat", rows)
        start = stop
    if not config["disable_out_projection"]:
        out = config["output_size"] or width
        shape = (heads, sizes.pattern, out)
        table.add(f"{ours}out/kernel", shape, f"{core}out_proj.weight", "dense")
        if config["input_bias"]:
            table.add(f"{ours}out/bias", (out,), f"{core}out_proj.bias")


def transformer_layer_from_torch(
    kind: str, config: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]
) -> tuple[nn.Module, dict[str, Any]]:
    """Converts an encoder or decoder layer, see `from_torch`; `config` is complete."""
    names = HOPFIELD_MODULES[kind]
    table, modules, unused = Table(), {}, []
    for theirs, ours in names.items():
        inner, sizes = config[theirs], Sizes(config[theirs])
        modules[ours] = Hopfield(**hopfield_fields(inner, sizes))
        add_hopfield(table, inner, sizes, f"{ours}/", f"{theirs}.")
        if inner["concat_bias_pattern"]:
            unused += [f"{theirs}.association_core.bias_{part}" for part in "kv"]
        if (inner["output_size"] or sizes.input) != sizes.input:
            raise ValueError(
                f"output_size={inner['output_size']} of {theirs} must be its input_size="
                f"{sizes.input}, since the layer adds input and output."
            )
    width, inner_width = sizes.input, config["dim_feedforward"]
    if config["activation"] not in ACTIVATIONS:
        raise ValueError(
            f"activation={config['activation']!r} is none of {', '.join(ACTIVATIONS)}."
        )
    for ours, theirs, shape in (
        ("mlp_1", "linear_residual", (width, inner_width)),
        ("mlp_2", "linear_output", (inner_width, width)),
    ):
        table.add(f"{ours}/kernel", shape, f"{theirs}.weight", "dense")
        table.add(f"{ours}/bias", shape[1:], f"{theirs}.bias")
    norms = {f"{ours}_norm": theirs for theirs, ours in LAYER_NORMS[kind].items()}
    for ours, theirs in norms.items():
        table.add(f"{ours}/scale", (width,), f"{theirs}.weight")
        table.add(f"{ours}/bias", (width,), f"{theirs}.bias")
    layer = {
        "HopfieldEncoderLayer": HopfieldEncoderLayer,
        "HopfieldDecoderLayer": HopfieldDecoderLayer,
    }[kind]
    params = read_parameters(
        table.entries,
        table.shapes,
        state_dict,
        f"the state_dict of {kind}",
        ignore=unused,
        remedy="pass the arguments that the layer was made with",
    )
    module = layer(
        **modules,
        mlp_width=inner_width,
        dropout=config["dropout"],
        activation=config["activation"],
    )
    return module, {"params": params}
