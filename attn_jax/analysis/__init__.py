"""What a trained model attends to: as arrays here, as figures in this folder's files."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float


def attention_maps(
    module: nn.Module, variables: Mapping[str, Any], **inputs: Any
) -> dict[str, Float[np.ndarray, "B N Q K"]]:
    """{layer path: attention weights [B, heads, Q, K]} of one forward pass, in layer order.

    A layer that attends repeatedly has an entry per iteration: `PATH/iteration_0`,
    `PATH/iteration_1`, ... In Slot Attention the queries are the slots, and weights are
    normalized over them.

    Args:
        inputs: arguments of the module's call, such as `images=`; see `inputs` of a task.

    Raises:
        ValueError: no layer of the module sows attention weights.
    """

    # A number of iterations, say, is an argument of the call but no array.
    arrays = {name: value for name, value in inputs.items() if hasattr(value, "dtype")}
    constants = {name: inputs[name] for name in inputs.keys() - arrays.keys()}

    @jax.jit
    def run(variables: Any, arrays: Any) -> Any:
        return module.apply(
            variables, **arrays, **constants, mutable=["intermediates"]
        )[1]

    seen = run(variables, arrays).get("intermediates", {})
    maps: dict[str, np.ndarray] = {}

    def walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                walk(value, (*path, name))
            elif name == "attention":
                for i, weights in enumerate(value):
                    last = (f"iteration_{i}",) if len(value) > 1 else ()
                    maps["/".join((*path, *last))] = np.asarray(weights)

    walk(seen, ())
    if not maps:
        raise ValueError(
            f"{type(module).__name__} sows no `attention`, so there are no maps."
        )
    return dict(sorted(maps.items(), key=lambda item: natural_key(item[0])))


def natural_key(path: str) -> list:
    """A sort key that orders block_10 after block_9."""
    parts = path.replace("/", "_").split("_")
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in parts]
