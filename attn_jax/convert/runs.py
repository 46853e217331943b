"""Reads checkpoints of this project, from a run's folder."""

from collections.abc import Sequence
from typing import Any

from attn_jax.convert.vit.fit import (
    Checkpoint,
    Size,
    check_classes,
    find_dropped,
    fit_checkpoint,
    grid_of_table,
)
from attn_jax.models.vit import ViT
from attn_jax.restore import restore


def read_run(path: str, *, trust: Sequence[str] = (), **fields: Any) -> Checkpoint:
    """Reads a run's model, with fields that do not change its parameters."""
    overrides = {f"model.{name}": value for name, value in fields.items()}
    module, variables, _ = restore(path, overrides=overrides, trust=trust)
    return Checkpoint(module, variables["params"], None)


def read_vit_run(
    path: str,
    *,
    image_size: Size | None = None,
    trained_size: Size | None = None,
    trust: Sequence[str] = (),
    **fields: Any,
) -> Checkpoint:
    """Reads a run's ViT; the fields may resize it and leave out its heads, as for a file.

    Args:
        trained_size: of the run's images in pixels; None: the task's `image_size`.
    """
    module, variables, task = restore(path, trust=trust)
    assert isinstance(module, ViT), "as its config says"
    check_classes(fields, module.num_classes, path)
    heads = {
        "head": ("num_classes", 0),
        "pre_logits": ("representation_size", None),
        "patch_head": ("patch_outputs", 0),
    }
    dropped = find_dropped(fields, heads)
    params = {k: v for k, v in variables["params"].items() if k not in dropped}
    grid = None
    if "pos_embedding" in params:
        if trained_size is None:
            trained_size = getattr(task, "image_size", None)
        rows = params["pos_embedding"].shape[1]
        grid = grid_of_table(module, rows, trained_size, path)
    return fit_checkpoint(Checkpoint(module, params, grid), fields, image_size)
