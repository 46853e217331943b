"""Bags drawn from a seed: bit patterns, some of which are signals, and latch sequences.

Axes: N bags, K instances, F features (bits or characters), S signals.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8


class Bags(NamedTuple):
    """Instances of 0 and 1, and labels of 0 and 1."""

    instances: UInt8[np.ndarray, "N K F"]
    labels: Integer[np.ndarray, " N"]


class TorchIntegers:
    """The integers that PyTorch's `randint` draws on a CPU after `manual_seed(seed)`.

    Both are the Mersenne Twister with the same start, and NumPy promises that `RandomState` never
    changes. PyTorch takes each 32-bit number modulo the length of the range.
    """

    def __init__(self, seed: int):
        self._numbers = np.random.RandomState(seed)

    def draw(self, low: int, high: int, *shape: int) -> Integer[np.ndarray, "..."]:
        """Integers from `low` to `high` - 1."""
        raw = self._numbers.randint(2**32, size=shape, dtype=np.uint32)
        return low + (raw % np.uint32(high - low)).astype(np.int64)


def draw_bit_patterns(
    *,
    bags: int,
    instances: int,
    bits: int,
    signals: int,
    signals_per_bag: int,
    positive: float,
    signal_seed: int,
    bag_seed: int,
) -> tuple[Bags, UInt8[np.ndarray, "S F"]]:
    """Returns (bags, the signals, sorted). A bag is positive if it holds a signal.

    The signals are distinct patterns, none of them all zeros. Every other instance is drawn from
    all patterns but zeros and the signals. The positive bags come first; in each,
    `signals_per_bag` instances are replaced by signals. The numbers are those of the official code
    with the same seeds, bit for bit.

    Args:
        positive: share of positive bags, rounded up.

    Raises:
        ValueError: too many signals for the bits or the bag; the share is not in (0, 1).

    Source: ml-jku/hopfield-layers f56f929, `BitPatternSet`, whose example has 2,048 bags of 16
    instances, eight bits, eight signals, one in each positive bag.
    """
    if not signals < 2**bits - 1:
        raise ValueError(
            f"{signals=} must be fewer than the {2**bits - 1} patterns of {bits=} that are "
            "not zero, so that other instances are left; lower signals or raise bits."
        )
    if not 1 <= signals_per_bag <= instances:
        raise ValueError(
            f"{signals_per_bag=} must be from 1 to {instances=}; a bag holds no more."
        )
    if not 0 < positive < 1:
        raise ValueError(f"{positive=} must be more than 0 and less than 1.")
    numbers = TorchIntegers(signal_seed)
    found = np.zeros((0, bits), np.int64)
    while len(found) < signals:
        drawn = numbers.draw(0, 2, signals - len(found), bits)
        found = np.unique(np.concatenate([found, drawn]), axis=0)
        found = found[found.any(axis=1)]

    numbers = TorchIntegers(bag_seed)
    patterns = numbers.draw(0, 2, bags, instances, bits)
    place = 2 ** np.arange(bits)  # a pattern as one number
    refused = np.append(found @ place, 0)
    while (again := np.isin(patterns @ place, refused)).any():
        patterns[again] = numbers.draw(0, 2, int(again.sum()), bits)
    number = min(bags, int(np.ceil(bags * positive)))
    for bag in patterns[:number]:
        slots: list[int] = []
        while len(slots) < signals_per_bag:
            [slot] = numbers.draw(0, instances, 1).tolist()
            if slot not in slots:
                slots.append(slot)
                bag[slot] = found[numbers.draw(0, signals, 1)[0]]
    labels = (np.arange(bags) < number).astype(np.int64)
    return Bags(patterns.astype(np.uint8), labels), found.astype(np.uint8)


def draw_latch_sequences(
    *, sequences: int, length: int, characters: int, seed: int
) -> Bags:
    """Draws sequences of one-hot characters, of which the first alone tells the label.

    It is character 0 or 1, the label; all others are drawn from the remaining characters. The
    numbers are those of the official code with the same seed.

    Raises:
        ValueError: there are fewer than three characters.

    Source: ml-jku/hopfield-layers f56f929, `LatchSequenceSet`, whose example has 4,096 sequences of
    32 out of 20 characters; the task is that of Hochreiter & Mozer 2001.
    """
    if characters < 3:
        raise ValueError(f"{characters=} must be 3 or more: two are the labels.")
    numbers = TorchIntegers(seed)
    symbols = numbers.draw(2, characters, sequences, length)
    labels = numbers.draw(0, 2, sequences)
    symbols[:, 0] = labels
    return Bags(np.eye(characters, dtype=np.uint8)[symbols], labels)


class GeneratedBags:
    """One split of drawn bags: the first and the last `held_out` of them are the test split.

    A record holds `instances` [K, F] (uint8), `label` (1 or 0) and `name`.

    Raises:
        ValueError: the split is none of train and test; no bag is left for it.

    Source: the official examples, of whose bags an eighth at each end is not trained on.
    """

    labels = ("absent", "present")

    def __init__(self, bags: Bags, split: str, held_out: int):
        number = len(bags.labels)
        if split not in ("train", "test"):
            raise ValueError(f"{split=} must be 'train' or 'test'; there is no other.")
        if not 0 < 2 * held_out < number:
            raise ValueError(
                f"{held_out=} bags at each end must leave some of {number} for training, "
                "and be 1 or more. Change config.task.held_out."
            )
        inside = np.arange(held_out, number - held_out)
        outside = np.setdiff1d(np.arange(number), inside)
        self.chosen = inside if split == "train" else outside
        self.bags = bags

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(self.chosen[index])
        return {
            "instances": self.bags.instances[number],
            "label": int(self.bags.labels[number]),
            "name": f"bag {number}",
        }

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for array in (self.bags.instances, self.bags.labels):
            chosen = np.ascontiguousarray(array[self.chosen])
            digest.update(f"{chosen.shape} {chosen.dtype}".encode())
            digest.update(chosen.data)
        return digest.hexdigest()[:16]
