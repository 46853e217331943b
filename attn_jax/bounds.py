"""Types of settings with a rule attached: `width: PositiveInt`, `warmup: Duration`.

Fields of modules and tasks and arguments of optimizers and schedules are annotated with
these types. To Python and to type checkers `PositiveInt` is an `int`;
`attn_jax.config` reads the rule from the annotation. Every number of a config must be
finite, with or without a rule.
"""

import dataclasses
import math
from typing import Annotated, Any

from attn_jax.patterns import find_fault


@dataclasses.dataclass(frozen=True)
class Bound:
    """Numbers from `low` to `high`; an open end excludes the bound itself."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def complaint(self, value: Any) -> str | None:
        """What the value must be, as text after "must be"; None if it is valid."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        if above and below:
            return None
        if not self.open_low and not self.open_high and self.high < math.inf:
            return f"from {self.low:,} to {self.high:,}"
        lower = f"{'more than' if self.open_low else 'at least'} {self.low:,}"
        if self.high == math.inf:
            return lower
        return (
            f"{lower} and {'less than' if self.open_high else 'at most'} {self.high:,}"
        )


@dataclasses.dataclass(frozen=True)
class NonEmpty:
    """Texts of at least one character."""

    example: str

    def complaint(self, value: Any) -> str | None:
        return None if value else f"a path or name such as {self.example}, not empty"


@dataclasses.dataclass(frozen=True)
class DurationText:
    """Texts such as "500 steps"."""

    positive: bool = False
    example = "'500 steps', '10 epochs' or '1000000 examples'"

    def complaint(self, value: Any) -> str | None:
        try:
            number, _ = parse_duration(value)
        except ValueError:
            return f"a number and a unit: {self.example}"
        return "more than zero" if self.positive and number == 0 else None


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Regexes that match in bounded time."""

    def complaint(self, value: Any) -> str | None:
        return find_fault(value)


PositiveInt = Annotated[int, Bound(1)]
NonNegativeInt = Annotated[int, Bound(0)]
# Sizes have an upper limit far above any model in use, so that a damaged or hostile config
# is refused before anything is traced or allocated.
Depth = Annotated[int, Bound(1, 256)]  # layers, stages or iterations: all unrolled
Width = Annotated[int, Bound(1, 2**20)]  # channels, heads, classes or tokens
Pixels = Annotated[int, Bound(1, 2**13)]  # a side of an image, patch or grid
BatchSize = Annotated[int, Bound(1, 2**24)]  # examples
PositiveFloat = Annotated[float, Bound(0, open_low=True)]
NonNegativeFloat = Annotated[float, Bound(0)]
Probability = Annotated[float, Bound(0, 1)]
DecayRate = Annotated[float, Bound(0, 1, open_high=True)]  # of a moving average
GridSide = Annotated[int, Bound(1, 2**10)]  # of a grid of positions, made by NumPy
Count = Annotated[int, Bound(0, 2**16)]  # of extra tokens
Classes = Annotated[int, Bound(0, 2**20)]  # outputs of a head; 0: no head
Regex = Annotated[str, Pattern()]  # of whole parameter names
Path = Annotated[str, NonEmpty("'runs/digits'")]
Duration = Annotated[str, DurationText()]
Cadence = Annotated[str, DurationText(positive=True)]  # more than zero


def parse_duration(duration: str) -> tuple[float, str]:
    """(number, "steps" | "epochs" | "examples") of a text such as "500 steps".

    Raises:
        ValueError: the text is not a non-negative number and one of the three units.
    """
    number, _, unit = str(duration).strip().partition(" ")
    unit = unit.strip() if unit.strip().endswith("s") else unit.strip() + "s"
    try:
        value = float(number.replace("_", "").replace(",", ""))
    except ValueError:
        value = -1.0
    if unit not in ("steps", "epochs", "examples") or not 0 <= value < math.inf:
        raise ValueError(
            f"the duration {duration!r} must be a number and a unit: '500 steps', "
            "'10 epochs' or '1000000 examples'."
        )
    return value, unit


def to_steps(duration: str, *, batch_size: int, epoch_rows: int) -> int:
    """Optimizer steps in "500 steps", "10 epochs" or "1000000 examples"; at least 1 if > 0.

    Raises:
        ValueError: the text is not a non-negative number and one of the three units.
    """
    value, unit = parse_duration(duration)
    rows = {"steps": batch_size, "epochs": epoch_rows, "examples": 1}[unit]
    return max(round(value * rows / batch_size), int(value > 0))
