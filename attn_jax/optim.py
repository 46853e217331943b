"""The update: clip -> optimizer -> rates and decay -> schedule, built with optax.

`OPTIMIZERS` lists the optimizers that a config may name; the keyword arguments of a function
are the keys of its config section. With the optimizer's direction d, the learning rate r,
the parameter's multiplier m, the weight decay w and the schedule's factor s:

    update = -s(step) * (r * m * d + r * w * parameter)        w only on decayed paths

Weight decay has optax's unit and is not multiplied by m; big_vision's `wd` is r * w.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax.bounds import DecayRate, NonNegativeFloat, PositiveFloat, Regex
from attn_jax.paths import (
    map_named,
    match_first,
    match_names,
    named_leaves,
    shorten,
)
from attn_jax.schedules import Section, choose

Factor = float | Sequence[float]


def make_optimizer(
    config: Section, params: Any, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The transformation from gradients to updates of the parameters.

    Args:
        config: reads `optimizer` ({"name": one of OPTIMIZERS, **its arguments}),
            `clip_norm` (global norm; None: no clipping), the regexes
            `weight_decay_on` and `freeze`, and `learning_rate_multipliers` ([regex, factor]
            pairs, first match wins; `select_multipliers` describes them).
        params: the parameters, or their shapes.

    Raises:
        ValueError: a regex matches no parameter, or a value is out of range.
    """
    leaves, clip_norm = named_leaves(params), config["clip_norm"]
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"config.clip_norm={clip_norm} must be positive, or None.")
    selection = Selection(
        names=tuple(leaves),
        decayed=match_names(config["weight_decay_on"], leaves, key="weight_decay_on"),
        multipliers=select_multipliers(config["learning_rate_multipliers"], leaves),
    )
    frozen = match_names(config["freeze"], leaves, key="freeze")
    rule = choose(OPTIMIZERS, config["optimizer"], "optimizer")
    update = optax.chain(
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        rule(selection),
        optax.scale_by_schedule(schedule),
        optax.scale(-1.0),
    )
    if not frozen:
        return update
    # Frozen parameters have no optimizer state and no share in the global norm.
    return optax.partition(
        {"trained": update, "frozen": optax.set_to_zero()},
        map_named(lambda name, _: "frozen" if name in frozen else "trained", params),
    )


def describe_frozen(freeze: Sequence[str], params: Any) -> str:
    """One line that says how many parameters `config.freeze` excludes from training.

    Args:
        params: the parameters, or their shapes.
    """
    leaves = named_leaves(params)
    sizes = {name: math.prod(leaf.shape) for name, leaf in leaves.items()}
    frozen = sum(sizes[name] for name in match_names(freeze, leaves, key="freeze"))
    total = sum(sizes.values())
    return f"frozen: {frozen:,} of {total:,} parameters, by freeze={list(freeze)}"


# --- optimizers -----------------------------------------------------------------------


class Selection(NamedTuple):
    """The parameters that the config selects by name, as in `make_optimizer`."""

    names: tuple[str, ...]
    decayed: set[str]
    multipliers: Mapping[str, Factor]


# An optimizer that still needs the parameter names: clipped gradients -> r m d + r w p.
Rule = Callable[[Selection], optax.GradientTransformation]


def adamw(
    *,
    learning_rate: NonNegativeFloat = 1e-3,
    weight_decay: NonNegativeFloat = 0.0,
    b1: DecayRate = 0.9,
    b2: DecayRate = 0.999,
    eps: PositiveFloat = 1e-8,
    mu_dtype: Literal["float32", "bfloat16"] | None = None,
) -> Rule:
    """d = mu / (sqrt(nu) + eps), with bias-corrected moments of the gradient.

    Args:
        mu_dtype: dtype of the stored mu. None: the parameter's. bfloat16 saves 2 of the 8
            bytes of optimizer state per parameter.

    Source: Loshchilov 2019 (arXiv:1711.05101) alg. 2; big_vision optax.py, make.
    """
    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return decouple_decay(adam, learning_rate, weight_decay)


def bert_adamw(
    *,
    learning_rate: NonNegativeFloat = 1e-4,
    weight_decay: NonNegativeFloat = 0.01,
    b1: DecayRate = 0.9,
    b2: DecayRate = 0.999,
    eps: PositiveFloat = 1e-6,
) -> Rule:
    """d = mu / (sqrt(nu) + eps) without bias correction, so the first steps are larger.

    Source: google-research/bert, optimization.py, AdamWeightDecayOptimizer.
    """

    def init(params):
        return Moments(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return direction, Moments(mu, nu)

    adam = optax.GradientTransformation(init, update)
    return decouple_decay(adam, learning_rate, weight_decay)


class Moments(NamedTuple):
    """Running means of the gradient and of its square."""

    mu: optax.Updates
    nu: optax.Updates


def lamb(
    *,
    learning_rate: NonNegativeFloat = 1e-3,
    weight_decay: NonNegativeFloat = 0.01,
    b1: DecayRate = 0.9,
    b2: DecayRate = 0.999,
    eps: PositiveFloat = 1e-6,
    stacked: Sequence[Regex] = (),
) -> Rule:
    """r * m * u * |parameter| / |u| with u = d + w * parameter, d as in `adamw`.

    The trust ratio |parameter| / |u| is computed per tensor. It is 1 if a norm is 0, and
    for parameters without decay. Ratio and multiplier scale the decay as well.

    Args:
        stacked: regexes of parameters with a leading layer axis (`nn.scan`). The ratio is
            then computed per layer.

    Source: You 2020 (arXiv:1904.00962) alg. 2 with phi = identity. As in the TensorFlow
    implementation, parameters without decay have no ratio.
    """
    ratio = optax.scale_by_trust_ratio()

    def layer(update, param):
        return ratio.update(update, optax.EmptyState(), param)[0]

    per_layer = optax.stateless(lambda us, ps: jax.tree.map(jax.vmap(layer), us, ps))

    def rule(selection):
        decayed = selection.decayed
        layered = match_names(stacked, selection.names, key="optimizer.stacked")
        return optax.chain(
            optax.scale_by_adam(b1, b2, eps),
            optax.add_decayed_weights(weight_decay, mask_names(decayed)),
            optax.masked(ratio, mask_names(decayed - layered)),
            optax.masked(per_layer, mask_names(decayed & layered)),
            optax.scale(learning_rate),
            scale_by_name(selection.multipliers),
        )

    return rule


def sgd(
    *,
    learning_rate: NonNegativeFloat = 1e-2,
    weight_decay: NonNegativeFloat = 0.0,
    momentum: DecayRate = 0.0,
    nesterov: bool = False,
    momentum_dtype: Literal["float32", "bfloat16"] | None = None,
) -> Rule:
    """d = t with t = gradient + momentum * t; Nesterov: d = gradient + momentum * t.

    Args:
        momentum: 0 keeps no state.
        momentum_dtype: dtype of the stored t. None: the parameter's. big_vision also
            rounds momentum * t to it; XLA under jit does so only if
            xla_allow_excess_precision is off (3e-5 in a parameter after 6 steps).

    Source: big_vision optax.py, momentum_hp.
    """
    if not momentum and (nesterov or momentum_dtype):
        raise ValueError(
            f"config.optimizer: {nesterov=} and {momentum_dtype=} have no effect with "
            f"{momentum=}; set a momentum such as 0.9, or leave them out."
        )
    trace = optax.trace(momentum, nesterov, momentum_dtype)
    return decouple_decay(
        trace if momentum else optax.identity(), learning_rate, weight_decay
    )


OPTIMIZERS: dict[str, Callable[..., Rule]] = {
    "adamw": adamw,
    "bert_adamw": bert_adamw,
    "lamb": lamb,
    "sgd": sgd,
}


# --- pieces ---------------------------------------------------------------------------


def decouple_decay(
    direction: optax.GradientTransformation, learning_rate: float, weight_decay: float
) -> Rule:
    """r * m * d + r * w * parameter: the decay does not enter d."""
    return lambda selection: optax.chain(
        direction,
        optax.scale(learning_rate),
        scale_by_name(selection.multipliers),
        optax.add_decayed_weights(
            learning_rate * weight_decay, mask_names(selection.decayed)
        ),
    )


def mask_names(names: set[str]) -> Callable[[Any], Any]:
    """An optax mask by name; unlike a tree of booleans it also fits a subtree."""
    return lambda tree: map_named(lambda name, _: name in names, tree)


def scale_by_name(multipliers: Mapping[str, Factor]) -> optax.GradientTransformation:
    def scale(name, update):
        if name not in multipliers:
            return update
        factor = jnp.asarray(multipliers[name], update.dtype)
        return update * factor.reshape(
            factor.shape + (1,) * (update.ndim - factor.ndim)
        )

    return optax.stateless(lambda updates, _: map_named(scale, updates))


def select_multipliers(
    rules: Iterable[Sequence], leaves: Mapping[str, Any]
) -> Mapping[str, Factor]:
    """{name: factor of the learning rate}, by the first rule that matches the name.

    A list of factors runs along a stacked layer axis. A regex with a group named `layer`,
    such as `block_(?P<layer>[0-9]+)/.*`, is layer decay: of n layers, counted from 0, layer
    i has factor ** (n - i), and names that match without a number have factor ** (n + 1).

    Raises:
        ValueError: a regex matches nothing, or a factor is not positive or has another shape.

    Source of layer decay: Clark et al. 2020 (ELECTRA), Bao et al. 2022 (BEiT).
    """
    key = "learning_rate_multipliers"
    chosen = match_first(
        [(pattern, (pattern, factor)) for pattern, factor in rules], leaves, key=key
    )
    multipliers: dict[str, Factor] = {}
    for name, (_, factor) in chosen.items():
        factors, shape = np.asarray(factor), leaves[name].shape
        if not (factors > 0).all() or factors.shape not in ((), shape[:1]):
            raise ValueError(
                f"config.{key}: {factor} for {name} of shape {shape} must be a positive "
                "number, or one for each entry of the leading (layer) axis; a parameter "
                "that must not change belongs in config.freeze."
            )
        multipliers[name] = factor
    layered = {pattern for pattern, _ in chosen.values() if "(?P<layer>" in pattern}
    for pattern in layered:
        matched = [name for name, rule in chosen.items() if rule[0] == pattern]
        powers = count_layers_up(pattern, matched)
        for name, power in powers.items():
            factor = multipliers[name]
            if not isinstance(factor, int | float):
                raise ValueError(
                    f"config.{key}: {factor} for {shorten(pattern)} must be one number, "
                    "since the group `layer` makes it a power for each layer."
                )
            multipliers[name] = factor**power
    return multipliers


def count_layers_up(pattern: str, names: Sequence[str]) -> dict[str, int]:
    """{name: 1 for the last layer, n for layer 0 of n, n + 1 without a number}."""
    numbers = {}
    for name in names:
        found = re.fullmatch(pattern, name)
        number = found["layer"] if found else None
        if number is not None and not number.isdecimal():
            raise ValueError(
                f"config.learning_rate_multipliers: the group `layer` of {shorten(pattern)} is "
                f"{number!r} for {name}; it must be the number of a layer: (?P<layer>[0-9]+)."
            )
        numbers[name] = -1 if number is None else int(number)
    layers = 1 + max(numbers.values())
    return {name: layers - number for name, number in numbers.items()}
