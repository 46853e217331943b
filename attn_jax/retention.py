"""Decides which checkpoints are kept: the newest, and the best by one metric."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from orbax.checkpoint import checkpoint_managers as policies


class Ranking:
    """The scores of checkpoints by `config.keep_best`.

    Args:
        keep_best: "max:name/metric" or "min:name/metric"; None ranks nothing.

    Raises:
        ValueError: `keep_best` has another form.
    """

    def __init__(self, keep_best: str | None):
        self.mode, self.metric = parse_best(keep_best) if keep_best else ("", "")
        self._scores: dict[int, float] = {}  # higher is better

    def add(self, step: int, results: Mapping[str, float]) -> None:
        """Ranks a step by its results, unless the metric is absent or not finite."""
        value = float(results.get(self.metric, math.nan)) if self.metric else math.nan
        if math.isfinite(value):
            self._scores[step] = value if self.mode == "max" else -value

    def __contains__(self, step: int) -> bool:
        return step in self._scores

    def remove(self, step: int) -> None:
        self._scores.pop(step, None)

    def best(self, steps: Collection[int]) -> int | None:
        """The best of these steps, the newest if values are equal; None if none is ranked."""
        scored = [(self._scores[step], step) for step in steps if step in self._scores]
        return max(scored)[1] if scored else None

    def is_in(self, results: Mapping[str, float]) -> bool:
        """Whether these results contain the metric of `keep_best`.

        Raises:
            ValueError: they are from the right evaluation, but lack the metric.
        """
        if not self.metric or self.metric in results:
            return bool(self.metric)
        evaluation = self.metric.split("/")[0] + "/"
        if ours := [name for name in results if name.startswith(evaluation)]:
            raise ValueError(unknown_metric(self.metric, ours))
        return False

    def check(self, known: Mapping[str, Collection[str] | None]) -> None:
        """Raises ValueError if `keep_best` names an unknown evaluation or metric.

        Args:
            known: {evaluation: its metrics as `name/metric`; None if they are known only
                after it was run}.
        """
        name = self.metric.split("/")[0]
        if self.metric and name not in known:
            raise ValueError(
                f"config.keep_best names the evaluation {name!r}, but those with a cadence "
                f"are {sorted(known)}; correct it, or set `every` of that evaluation."
            )
        metrics = known[name] if self.metric else None
        if metrics is not None and self.metric not in metrics:
            raise ValueError(unknown_metric(self.metric, sorted(metrics)))


def parse_best(text: str) -> tuple[str, str]:
    """("max" | "min", "name/metric") of `config.keep_best`."""
    mode, _, metric = text.partition(":")
    if mode not in ("max", "min") or "/" not in metric:
        raise ValueError(
            f"config.keep_best={text!r} must read 'max:name/metric' or 'min:name/metric', "
            "such as 'max:validation/accuracy'."
        )
    return mode, metric


def unknown_metric(metric: str, known: Collection[str]) -> str:
    return (
        f"config.keep_best: {metric!r} is not a metric of that evaluation; it has "
        f"{', '.join(known)}."
    )


@dataclasses.dataclass(frozen=True)
class Retention(policies.PreservationPolicy):
    """A policy for orbax that keeps the steps which `choose` returns."""

    choose: Callable[[Collection[int]], Collection[int | None]]

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        del context
        kept = self.choose([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]
