"""Learning-rate schedules as factors of the peak rate.

`SCHEDULES` lists the schedules that a config may name; the keyword arguments of a function
are the keys of its config section. Durations have a unit ("500 steps", "5 epochs").
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from attn_jax.bounds import Cadence, Duration, NonNegativeFloat, Probability

Section: TypeAlias = Mapping[str, Any] | ConfigDict  # ConfigDict is not a Mapping


def make_schedule(
    section: Section, *, total_steps: int, to_steps: Callable[[str], int]
) -> optax.Schedule:
    """step -> factor in [0, 1] of the learning rate; starts at 0 if there is a warm-up.

    Args:
        section: {"name": one of SCHEDULES, **its arguments}.
        to_steps: converts a duration such as "500 steps" or "5 epochs" to steps.

    Raises:
        ValueError: the name is unknown, or the warm-up is longer than the run.
    """
    curve = choose(SCHEDULES, section, "schedule")
    warmup, cooldown = to_steps(curve.warmup), to_steps(curve.cooldown)
    if warmup + cooldown > total_steps:
        parts = f"warmup={curve.warmup!r}"
        parts += f" and cooldown={curve.cooldown!r} take" if cooldown else " takes"
        raise ValueError(
            f"config.schedule: {parts} {warmup + cooldown} steps, but the run has "
            f"{total_steps}; shorten the warm-up or raise config.duration."
        )
    run = RunLengths(warmup, total_steps, to_steps)

    def factor(step):
        rise = jnp.minimum(1.0, step / warmup) if warmup else 1.0
        fall = jnp.clip((total_steps - step) / cooldown, 0, 1) if cooldown else 1.0
        return jnp.asarray(rise * curve.decay(step, run) * fall, jnp.float32)

    return factor


class RunLengths(NamedTuple):
    """The lengths of a run, in steps."""

    warmup: int
    total: int
    to_steps: Callable[[str], int]

    def progress(self, step):
        """0 at the end of the warm-up, 1 at the end of the run."""
        return jnp.clip((step - self.warmup) / max(self.total - self.warmup, 1), 0, 1)


class Curve(NamedTuple):
    """min(1, step / warmup) * decay(step, run) * min(1, steps left / cooldown)."""

    warmup: str
    decay: Callable[[Any, RunLengths], Any]
    cooldown: str = "0 steps"


def constant(*, warmup: Duration = "0 steps") -> Curve:
    """1 after the warm-up."""
    return Curve(warmup, lambda step, run: 1.0)


def linear(*, warmup: Duration = "0 steps", final: Probability = 0.0) -> Curve:
    """1 -> final linearly, from the end of the warm-up to the end of the run.

    `final` is a fraction of the peak. Source: vision_transformer and big_vision, utils.py,
    where `linear_end` is a rate.
    """
    return Curve(warmup, lambda step, run: 1 - (1 - final) * run.progress(step))


def cosine(*, warmup: Duration = "0 steps", final: Probability = 0.0) -> Curve:
    """1 -> final along half a cosine, from the end of the warm-up to the end of the run.

    Source: Loshchilov 2017 (arXiv:1608.03983) eq. 5, without restarts.
    """

    def decay(step, run):
        return final + (1 - final) * (1 + jnp.cos(jnp.pi * run.progress(step))) / 2

    return Curve(warmup, decay)


def rsqrt(
    *,
    warmup: Duration = "0 steps",
    timescale: Cadence = "10000 steps",
    cooldown: Duration = "0 steps",
) -> Curve:
    """1 / sqrt(1 + steps since the warm-up / timescale), then linearly to 0 (cooldown).

    Source: Zhai 2022 (arXiv:2106.04560) sec. 3.5; big_vision utils.py with shift 0.
    """

    def decay(step, run):
        since = jnp.maximum(step - run.warmup, 0)
        return 1 / jnp.sqrt(1 + since / run.to_steps(timescale))

    return Curve(warmup, decay, cooldown)


def exponential(
    *, warmup: Duration = "0 steps", half_life: Cadence = "100000 steps"
) -> Curve:
    """0.5 ** (step / half_life), also during the warm-up.

    Source: slot_attention, object_discovery/train.py.
    """
    return Curve(warmup, lambda step, run: 0.5 ** (step / run.to_steps(half_life)))


def bert_linear(
    *, warmup: Duration = "0 steps", power: NonNegativeFloat = 1.0
) -> Curve:
    """step / warmup, then (1 - step / total) ** power; it drops at the end of the warm-up.

    The decay starts at step 0, unlike in `linear`. Source: google-research/bert,
    optimization.py, create_optimizer; with power 0.5 NVIDIA's DeepLearningExamples,
    schedulers.py, PolyWarmUpScheduler, whose steps count from 1.
    """

    def decay(step, run):
        left = jnp.maximum(run.total - step, 0) / max(run.total, 1)
        return jnp.where(step < run.warmup, 1.0, left**power)

    return Curve(warmup, decay)


SCHEDULES: dict[str, Callable[..., Curve]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "rsqrt": rsqrt,
    "exponential": exponential,
    "bert_linear": bert_linear,
}


def choose(known: Mapping[str, Callable], section: Section, key: str) -> Any:
    """Calls the function that a section names with the other keys as arguments.

    Raises:
        ValueError: the name is unknown.
    """
    name = section["name"]
    if name not in known:
        raise ValueError(
            f"config.{key}.name={name!r} is unknown; choose one of {', '.join(known)}."
        )
    return known[name](**{k: v for k, v in section.items() if k != "name"})
