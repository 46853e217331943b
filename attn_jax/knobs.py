"""The top-level keys of a config: their types, and whether they may change on resume.

`configs/common.py` gives their default values, with unit and reason.
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
    """The type of a top-level key, and an example where the type is not obvious."""

    type: Any
    example: str = ""


# These define the run. To change one, start a new run, perhaps with `init_from`.
FIXED_KNOBS = {
    "model": Knob(dict),
    "task": Knob(dict),
    "init_from": Knob(
        Path | list[tuple[Path, str, Regex]],
        'runs/digits, or [["runs/digits", "", "head/.*"]]',
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
# These may differ when a run is resumed. Only `duration` can change an update: a warning
# is printed if it moves the schedule.
CHANGEABLE_KNOBS = {
    "recipe": Knob(str),
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
