"""A source that mixes the rows of several sources."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attn_jax.data.pipeline import read_fingerprint, rows_per_epoch


class Mixture:
    """Rows of several sources, each with its weight; sources may plan rows of their own.

    An epoch has as many rows as all sources together, of each source a share by its weight. Each
    source goes through its own epochs: with half of its size, it takes two epochs of the mixture
    until all of its rows were seen. Records are numbered through all sources.

    Args:
        weights: a positive number for each source; None: by size, so that each row is seen once
            an epoch.

    Raises:
        ValueError: there are not as many weights as sources, or one is not positive.
    """

    labels = None

    def __init__(self, sources: Sequence[Any], weights: Sequence[float] | None = None):
        if weights is not None:
            check_weights(weights, len(sources))
        self.sources, self.weights = tuple(sources), weights
        self.sizes = [rows_per_epoch(source) for source in self.sources]
        self.rows_per_epoch = sum(self.sizes)
        self.shares = (
            self.sizes if weights is None else divide(self.rows_per_epoch, weights)
        )
        self.first_records = np.cumsum([0, *map(len, self.sources)])

    def __reduce__(self) -> tuple[Any, ...]:
        return Mixture, (self.sources, self.weights)

    def __len__(self) -> int:
        return int(self.first_records[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        owner = int(np.searchsorted(self.first_records, index, side="right")) - 1
        record = self.sources[owner][index - int(self.first_records[owner])]
        return {**record, "number": int(index)}

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the files and folders that were not read."""
        return tuple(name for source in self.sources for name in source.left_out)

    def rows(self, seed: int, epoch: int) -> "MixedRows":
        plans: list[Any] = []  # the epochs of sources of which this epoch has rows
        plan_of: list[np.ndarray] = []
        row_of: list[np.ndarray] = []
        for owner, source in enumerate(self.sources):
            size, share = self.sizes[owner], self.shares[owner]
            positions = np.arange(epoch * share, (epoch + 1) * share)
            own_epochs, own_rows = np.divmod(positions, size)
            first = int(own_epochs[0]) if share else 0
            plan_of.append(own_epochs - first + len(plans))
            row_of.append(own_rows)
            for own_epoch in range(first, int(own_epochs[-1]) + 1 if share else first):
                plan = plan_rows(source, seed, own_epoch, owner)
                plans.append((plan, int(self.first_records[owner])))
        rng = np.random.default_rng([seed, epoch, len(self.sources)])
        order = rng.permutation(self.rows_per_epoch)
        chosen = np.concatenate(plan_of)[order], np.concatenate(row_of)[order]
        return MixedRows(plans, *chosen)

    def fingerprint(self) -> str:
        """A digest of those of the sources and of the weights."""
        prints = [read_fingerprint(source) for source in self.sources]
        text = repr((prints, None if self.weights is None else tuple(self.weights)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class MixedRows(Sequence):
    """The rows of an epoch: tuples of record numbers."""

    def __init__(
        self, plans: Sequence[tuple[Any, int]], plan_of: np.ndarray, row_of: np.ndarray
    ):
        self.plans, self.plan_of, self.row_of = plans, plan_of, row_of

    def __len__(self) -> int:
        return len(self.row_of)

    def __getitem__(self, index: Any) -> Any:
        plan, offset = self.plans[int(self.plan_of[index])]
        found = plan[int(self.row_of[index])]
        row = found if isinstance(found, tuple) else (int(found),)
        return tuple(record + offset for record in row)


def plan_rows(source: Any, seed: int, epoch: int, owner: int) -> Any:
    """The rows of a source's epoch: as it plans them, or its records in random order."""
    if hasattr(source, "rows"):
        return source.rows(seed, epoch)
    return np.random.default_rng([seed, epoch, owner]).permutation(len(source))


def check_weights(weights: Sequence[float], number: int) -> None:
    if len(weights) != number:
        raise ValueError(
            f"config.task.weights={tuple(weights)} are {len(weights)} weights for {number} "
            "corpora; give one for each in config.task.data."
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(
            f"config.task.weights={tuple(weights)} must be positive numbers; leave out a "
            "corpus that has no weight."
        )


def divide(total: int, weights: Sequence[float]) -> list[int]:
    """Divides a number by weights: rounded down, then one more for the largest remainders."""
    exact = [total * weight / math.fsum(weights) for weight in weights]
    parts = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts
