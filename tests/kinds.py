"""The recipes at "debug" size, and which of them stand for all of a kind."""

import json
import pathlib

import jax
import numpy as np

from attn_jax import config as config_lib
from attn_jax import paths

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = [
    str(path.relative_to(ROOT))
    for path in sorted(ROOT.glob("configs/*/*.py"))
    if not path.name.startswith("_")
]


def debug(recipe, **changes):
    """The recipe at "debug" size with `key__subkey=value` changes."""
    settings = [
        f"{key.replace('__', '.')}={json.dumps(value)}"
        for key, value in changes.items()
    ]
    return config_lib.load(f"{ROOT / recipe}:debug", settings)


def one_recipe_of_each_kind():
    kinds = {}
    for recipe in RECIPES:
        config = debug(recipe)
        kinds.setdefault((config.model.cls, config.task.cls), recipe)
    return list(kinds.values())


KINDS = one_recipe_of_each_kind()
# What depends on the model and its layout, but hardly on the objective, is asked once per model.
MODELS = list({debug(r).model.cls: r for r in reversed(KINDS)}.values())[::-1]


def arrays(tree):
    """{name: array} of a tree; a random key is shown by its numbers."""

    def array(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return {name: array(leaf) for name, leaf in paths.named_leaves(tree).items()}


def shrink(kind):
    """Changes for `debug` that leave a model one block, if another kind has it in full.

    A second block asks nothing more of the task.
    """
    has_depth = "depth" in debug(kind).model
    return {"model__depth": 1} if kind not in MODELS and has_depth else {}
