"""Collects the metrics of training steps, and reports skipped updates."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from attn_jax import metrics


class StepMetrics:
    """Accumulates the metrics of training steps until they are logged.

    Values are fetched one step late, so that the device never waits for Python.

    Args:
        max_skipped: this many skipped updates in a row end the run.
        say: called with one line per skipped update.
    """

    def __init__(self, max_skipped: int, say: Callable[[str], None]):
        self.max_skipped, self.say = max_skipped, say
        self.pending: list[tuple[int, np.ndarray, Any]] = []
        self.total: dict[str, tuple[Any, Any]] = {}
        self.skipped = 0  # since the run began

    def add(self, step: int, index: np.ndarray, sums: Any) -> None:
        """Adds the metric sums of one step; `index` [B] are the numbers of its examples.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
        """
        self.pending.append((step, index, sums))
        if len(self.pending) > 1:
            self._fetch()

    def pop_means(self) -> dict[str, float]:
        """{"train/metric": mean} since the last call."""
        while self.pending:
            self._fetch()
        means = metrics.compute_means(self.total) | {"skipped": float(self.skipped)}
        self.total = {}
        return {f"train/{name}": value for name, value in means.items()}

    def _fetch(self) -> None:
        """Fetches the oldest pending step from the device and adds it."""
        step, index, sums = self.pending.pop(0)
        sums = jax.tree.map(float, jax.device_get(sums))  # added up in float64
        self.skipped = int(sums.pop("skipped")[0])
        in_a_row = int(sums.pop("skipped_in_a_row")[0])
        if not in_a_row:
            self.total = metrics.add(self.total, sums) if self.total else sums
            return  # the sums of a skipped step would spoil the mean
        norm = sums["gradient_norm"][0]
        cause = (
            "the new parameters or moments are not finite"
            if np.isfinite(norm)
            else "the gradient is not finite"
        )
        shown = ", ".join(map(str, index[:8]))
        batch = f"step {step:,}, examples {shown}{', ...' if len(index) > 8 else ''}"
        self.say(f"update skipped, {cause}: {batch}")
        if in_a_row >= self.max_skipped:
            raise FloatingPointError(
                f"{in_a_row} updates in a row were skipped; the last time {cause}, at "
                f"{batch} (config.max_skipped={self.max_skipped}). The state before them "
                "is saved. Lower the learning rate, or check these examples."
            )
