"""The top-level keys of a config: type, rule, and whether a resumed run may change them.

`configs/common.py` gives each its value, unit and reason.
"""

from typing import Any, NamedTuple

from attn_jax.bounds import (
    BatchSize,
    Cadence,
    DecayRate,
    Duration,
    NonNegativeFloat,
    NonNegativeInt,
    Path,
    PositiveFloat,
    PositiveInt,
    Regex,
)


class Knob(NamedTuple):
    """A top-level key; `example` shows its form where a type alone does not."""

    type: Any
    example: str = ""


# These define the run; to change one, start a new run, with `init_from` if it is to begin
# from the parameters of this one.
FIXED_KNOBS = {
    "model": Knob(dict),
    "task": Knob(dict),
    "init_from": Knob(
        list[tuple[Path, str, Regex]], '[["runs/digits", "", "head/.*"]]'
    ),
    "seed": Knob(NonNegativeInt),
    "batch_size": Knob(BatchSize),
    "micro_batches": Knob(PositiveInt),
    "clip_norm": Knob(PositiveFloat | None),
    "optimizer": Knob(dict),
    "learning_rate_multipliers": Knob(
        list[tuple[Regex, PositiveFloat | list[PositiveFloat]]], '[["block_0/.*", 0.5]]'
    ),
    "weight_decay_on": Knob(list[Regex], '[".*/kernel"]'),
    "schedule": Knob(dict),
    "freeze": Knob(list[Regex], '["embedding/.*"]'),
    "ema_decay": Knob(DecayRate | None),
    "deterministic": Knob(bool),
}
# These may differ when a run is resumed. None changes the update of a given step but
# `duration`, for which train.py warns if it moves the schedule.
CHANGEABLE_KNOBS = {
    "mesh": Knob(dict[str, int]),
    "sharding_rules": Knob(
        list[tuple[Regex, list[str | None]]], '[["head/kernel", [null, "tensor"]]]'
    ),
    "fsdp_min_elements": Knob(NonNegativeInt),
    "duration": Knob(Duration),
    "evals": Knob(dict, '{"test": {"split": "test"}}'),
    "data_workers": Knob(NonNegativeInt),
    "data_threads": Knob(PositiveInt),
    "data_prefetch": Knob(PositiveInt),
    "checkpoint_every": Knob(Cadence),
    "keep_latest": Knob(PositiveInt),
    "keep_best": Knob(str | None, '"max:validation/accuracy"'),
    "save_patience_seconds": Knob(NonNegativeFloat),
    "log_every": Knob(Cadence),
    "profile": Knob(list[NonNegativeInt], "[10, 20]"),
    "watchdog_seconds": Knob(PositiveFloat),
    "max_skipped": Knob(NonNegativeInt),
}
KNOBS = FIXED_KNOBS | CHANGEABLE_KNOBS
# The keys of one evaluation: {key: (type, default)}.
EVALUATION: dict[str, tuple] = {
    "split": (str, "validation"),
    "every": (Cadence | None, None),
    "batch_size": (BatchSize | None, None),
    "task": (dict, {}),
}
