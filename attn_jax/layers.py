"""The layers of a Transformer, one after another or as the steps of one loop."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def apply_layers(
    model: nn.Module,
    kind: type[nn.Module],
    make_fields: Callable[[], dict[str, Any]],
    depth: int,
    x: Float[Array, "*B T D"],
    *args: Any,
    train: bool,
    scan: bool,
    remat: bool,
    rates: Sequence[float] = (),
) -> Float[Array, "*B T D"]:
    """Applies the submodules `block_0`, `block_1`, ... of `model`, within its own call.

    With `scan`, the program holds one layer, in a loop over the stacked parameters of all: a shorter
    program, which accelerators compile faster but which needs more memory. The parameters are stacked
    in every step, so initialization, checkpoints, rules and names are those of separate layers. The
    outputs are equal up to rounding; dropout draws other numbers. While `intermediates` are collected,
    layers are separate.

    Args:
        kind: the layer, called as (x, *args, train), or as (x, *args, rate, train) with `rates`.
        make_fields: gives the fields of one layer.
        args: what all layers get: arrays or None.
        remat: compute the values of a layer again in the backward pass, instead of keeping them.
        rates: one for each layer.
    """
    own: list[tuple[float, ...]] = [(rate,) for rate in rates] or [()] * depth
    collected = model.is_mutable_collection("intermediates")
    if not scan or collected or model.is_initializing():
        if remat:  # the last arguments must stay Python values
            first = 2 + len(args)
            static = tuple(range(first, first + len(own[0]) + 1))
            kind = nn.remat(kind, static_argnums=static)
        for i in range(depth):
            block = kind(**make_fields(), name=f"block_{i}")
            x = block(x, *args, *own[i], train)
        return x

    layer = kind(**make_fields(), parent=None)
    parameters = [model.variables["params"][f"block_{i}"] for i in range(depth)]
    steps = {"params": jax.tree.map(lambda *leaves: jnp.stack(leaves), *parameters)}
    if train and model.has_rng("dropout"):
        steps["key"] = jax.random.split(model.make_rng("dropout"), depth)
    if any(rates):
        steps["rate"] = jnp.asarray(rates, jnp.float32)

    def step(x: jax.Array, given: dict[str, Any]) -> tuple[Any, None]:
        rngs = {"dropout": given["key"]} if "key" in given else None
        rate = (given["rate"],) if "rate" in given else own[0]
        variables = {"params": given["params"]}
        return layer.apply(variables, x, *args, *rate, train, rngs=rngs), None

    # In a loop, XLA cannot merge the second computation with the first, so no barrier is needed.
    step = jax.checkpoint(step, prevent_cse=False) if remat else step
    return jax.lax.scan(step, x, steps)[0]
