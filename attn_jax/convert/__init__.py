"""Checkpoints from elsewhere as our modules and parameter trees."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from etils import epath

from attn_jax import workdir
from attn_jax.convert import bert


def load_pretrained(
    path: epath.PathLike, **model_fields: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """(module, variables) of a checkpoint; the format is found by looking.

    Args:
        path: a run's folder (its newest checkpoint, averaged where the run keeps an
            average), or a Hugging Face folder of BERT.
        model_fields: top-level fields of the module to change, such as `dtype`.

    Raises:
        ValueError: the path is missing or nothing that can be read.
    """
    folder = epath.Path(path)
    if not folder.exists():
        raise ValueError(
            f"{path} does not exist; name a run's --workdir or a folder of Hugging Face."
        )
    config = folder / "config.json"
    if config.exists() and (folder / "checkpoints").exists():
        overrides: Mapping = {
            f"model.{name}": value for name, value in model_fields.items()
        }
        module, variables, _ = workdir.restore(path, overrides=overrides)
        return module, variables
    if not config.exists():
        raise ValueError(
            f"{path} has no config.json; it is neither a run's folder nor one of Hugging "
            "Face."
        )
    family = json.loads(config.read_text()).get("model_type")
    if family == "bert":
        return bert.from_hf(pathlib.Path(path), **model_fields)
    raise ValueError(
        f"{path} is neither a run's folder (there is no checkpoints/) nor a checkpoint of a "
        f"known family: its config.json says model_type={family!r}; known: 'bert'."
    )
