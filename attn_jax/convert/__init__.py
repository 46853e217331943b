"""Checkpoints from elsewhere as our modules and parameter trees."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from etils import epath

from attn_jax import workdir


def load_pretrained(
    path: epath.PathLike, **model_fields: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """(module, variables) of a checkpoint; the format is found by looking.

    Args:
        path: a run's folder; its newest checkpoint, averaged where the run keeps an average.
        model_fields: top-level fields of the module to change, such as `dtype`.

    Raises:
        ValueError: the path is missing or nothing that can be read.
    """
    folder = epath.Path(path)
    if not folder.exists():
        raise ValueError(f"{path} does not exist; name a run's --workdir.")
    if not (folder / "config.json").exists() or not (folder / "checkpoints").exists():
        raise ValueError(
            f"{path} is no run's folder (config.json and checkpoints/ are missing); only "
            "checkpoints of this package can be loaded."
        )
    overrides: Mapping = {
        f"model.{name}": value for name, value in model_fields.items()
    }
    module, variables, _ = workdir.restore(path, overrides=overrides)
    return module, variables
