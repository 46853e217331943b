"""Builds a ViT from settings and arrays; shared by the readers of transformers and timm."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attn_jax.convert.arrays import Entry, check_depth, check_lengths
from attn_jax.convert.vit.fit import (
    Checkpoint,
    Size,
    find_dropped,
    fit_checkpoint,
    read_vit_parameters,
)
from attn_jax.data.framing import sides
from attn_jax.models.vit import DIALECTS, ViT


def build_checkpoint(
    settings: dict[str, Any],
    arrays: dict[str, np.ndarray],
    make_entries: Callable[[ViT], dict[str, Entry]],
    path: str,
    trained_size: Size,
    image_size: Size | None,
    fields: Mapping[str, Any],
) -> Checkpoint:
    """Builds the model of these settings and arrays, then applies the caller's fields.

    Args:
        make_entries: makes the table of names for a module.
        trained_size: of the training images, in pixels.
    """
    patch = sides(settings["patch_size"])
    check_depth(settings["depth"], arrays, path)
    lengths = {name: settings[name] for name in ("width", "mlp_width", "num_heads")}
    lengths["patch_size"] = max(patch)
    pixels = zip(sides(trained_size), patch, strict=True)
    lengths["image_size / patch_size"] = max(n // p for n, p in pixels)
    check_lengths(lengths, arrays, path)
    heads = ("num_classes", "representation_size", "patch_outputs")
    settings |= {name: fields[name] for name in heads if name in fields}
    rules = DIALECTS[settings["dialect"]]
    for name, usual in rules._asdict().items():
        if settings.get(name) == usual:  # the default of the dialect
            del settings[name]
    module = ViT(**settings)
    ignore = find_dropped(
        fields,
        {
            "classifier.": ("num_classes", 0),
            "head.": ("num_classes", 0),
            "pooler.": ("representation_size", None),
            "decoder.": ("patch_outputs", 0),
        },
    )
    height, width = sides(trained_size)
    rows, columns = sides(module.patch_size)
    grid = height // rows, width // columns
    params = read_vit_parameters(
        module, make_entries(module), arrays, path, grid, ignore
    )
    return fit_checkpoint(Checkpoint(module, params, grid), fields, image_size)
