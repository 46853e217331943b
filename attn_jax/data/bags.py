"""Bags of instances with one label each: multiple instance learning (MIL) data."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, Num, Shaped

from attn_jax.data.sources import Source
from attn_jax.data.views import read_labels


class LabeledBags:
    """Bags drawn from labeled records; the label tells whether one has the target label.

    The size of a bag is drawn from N(mean, std), rounded, and clipped to [1, `max_size`].
    Odd-numbered bags are positive: drawn from all records, until the target appears, or, with
    `witnesses`, of so many records of the target and the rest of other labels. Even
    ones are drawn from the records of other labels. A bag holds no record twice. Bag i is a
    pure function of (`seed`, i) and the records.

    A record holds `instances` (a list of the source's records), `label` (1 or 0) and
    `name`.

    Raises:
        ValueError: a size is out of range; no record has the target label; there are too
            few records for a bag.

    Source: Ilse et al. 2018 section 4.2 (MNIST-bags), whose sizes are N(10, 2).
    """

    labels = ("absent", "present")

    def __init__(
        self,
        source: Source,
        *,
        target: int,
        bags: int,
        mean_size: float,
        std_size: float,
        max_size: int,
        seed: int,
        witnesses: int | None = None,
        name: str = "bag",
    ):
        if bags < 1 or max_size < 1 or std_size < 0:
            raise ValueError(
                f"{bags=} and {max_size=} must be at least 1, {std_size=} at least 0."
            )
        self.source, self.target, self.bags, self.name = source, target, bags, name
        self.mean_size, self.std_size, self.max_size = mean_size, std_size, max_size
        self.seed, self.witnesses = seed, witnesses
        targets = read_labels(source)
        self.skipped = getattr(source, "skipped", 0)
        self.left_out = getattr(source, "left_out", ())
        self.is_target = targets == target
        others = int((~self.is_target).sum())
        if not self.is_target.any() or others < max_size:
            raise ValueError(
                f"{name}: {int(self.is_target.sum())} records have the label {target} "
                f"and {others} another; bags of up to {max_size} need at least 1 and "
                f"{max_size}. Change config.task.target, max_size or holdout."
            )
        available = int(self.is_target.sum())
        if witnesses is not None and not 1 <= witnesses <= min(available, max_size):
            raise ValueError(
                f"{name}: {witnesses=} must be from 1 to the number of records of the "
                f"target, {available}, and to {max_size=}. Change config.task.witnesses."
            )

    def __len__(self) -> int:
        return self.bags

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "instances": [self.source[int(i)] for i in self.draw_members(index)],
            "label": index % 2,
            "name": f"{self.name} {index}",
        }

    def draw_members(self, index: int) -> Integer[np.ndarray, " n"]:
        """Draws the indices of the records in a bag."""
        rng = np.random.default_rng((self.seed, int(index)))
        size = round(rng.normal(self.mean_size, self.std_size))
        size = min(max(size, 1), self.max_size)
        if index % 2 == 0:
            return rng.choice(np.flatnonzero(~self.is_target), size, replace=False)
        if self.witnesses is not None:
            hits = min(self.witnesses, size)
            drawn = [
                rng.choice(np.flatnonzero(self.is_target), hits, replace=False),
                rng.choice(np.flatnonzero(~self.is_target), size - hits, replace=False),
            ]
            return rng.permutation(np.concatenate(drawn))
        while True:  # each try succeeds with at least the target's share
            members = rng.choice(len(self.is_target), size, replace=False)
            if self.is_target[members].any():
                return members

    def fingerprint(self) -> str:
        settings: tuple[float, ...] = (
            self.target,
            self.bags,
            self.mean_size,
            self.std_size,
            self.max_size,
            self.seed,
        )
        if self.witnesses is not None:  # without them as in older runs
            settings += (self.witnesses,)
        text = f"{self.source.fingerprint()} {settings}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def pad_bag(
    instances: Sequence[Shaped[np.ndarray, "..."]], max_size: int, *, name: str
) -> tuple[Shaped[np.ndarray, "K ..."], Bool[np.ndarray, " K"]]:
    """Returns (instances stacked and padded by zeros to K = `max_size`, mask of real ones).

    Args:
        name: of the bag in error messages.

    Raises:
        ValueError: the bag is empty, or holds more than `max_size` instances.
    """
    if not 1 <= len(instances) <= max_size:
        raise ValueError(
            f"{name} holds {len(instances)} instances; a bag has 1 to {max_size}. "
            "Leave out empty bags, and set config.task.max_size to the size of the largest."
        )
    first = np.asarray(instances[0])
    stacked = np.zeros((max_size, *first.shape), first.dtype)
    stacked[: len(instances)] = np.stack(instances)
    return stacked, np.arange(max_size) < len(instances)


def area_under_roc(
    labels: Integer[np.ndarray, " N"], scores: Num[np.ndarray, " N"]
) -> float:
    """Returns the area under the ROC curve; nan unless both labels occur."""
    from sklearn.metrics import roc_auc_score  # slow to import

    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(roc_auc_score(labels, scores))
