"""The arrays of a row of BERT's pre-training: one sequence, or several packed together."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32


class Row(NamedTuple):
    """A sequence [CLS] A [SEP] B [SEP] or [CLS] A [SEP], with masked tokens."""

    token_ids: Int32[np.ndarray, " L"]  # the model's input
    positions: Int[np.ndarray, " K"]  # of the masked tokens, ascending
    labels: Int32[np.ndarray, " K"]  # the original tokens at these positions
    second: int  # where B begins; L if there is none
    is_random_next: bool


def lay_out(row: Row, *, size: int, predictions: int, pad: int) -> dict[str, Any]:
    """Pads one sequence to `size` tokens and `predictions` masked ones.

    Returns: as `MaskedLM.example`.
    """
    arrays = lay_out_packed([row], size=size, predictions=predictions, pad=pad, most=1)
    for name in ("sequence_ids", "position_ids", "cls_positions", "cls_mask"):
        del arrays[name]
    return arrays | {"is_random_next": np.int32(row.is_random_next)}


def lay_out_packed(
    rows: Sequence[Row], *, size: int, predictions: int, pad: int, most: int
) -> dict[str, Any]:
    """Puts up to `most` sequences one after the other, and pads.

    Returns: as `MaskedLM.example` with `packed`.
    """
    starts = np.cumsum([0, *(len(row.token_ids) for row in rows)])
    length, number = int(starts[-1]), len(rows)

    def fill(shape: int, values: Sequence[np.ndarray], empty: int = 0) -> np.ndarray:
        array = np.full(shape, empty, np.int32)
        joined = np.concatenate(values)
        array[: len(joined)] = joined
        return array

    lengths = [len(row.token_ids) for row in rows]
    masked = sum(len(row.positions) for row in rows)
    segments = [
        np.arange(n) >= row.second for n, row in zip(lengths, rows, strict=True)
    ]
    moved = [row.positions + s for row, s in zip(rows, starts[:-1], strict=True)]
    return {
        "token_ids": fill(size, [row.token_ids for row in rows], pad),
        "segment_ids": fill(size, segments),
        "mask": np.arange(size) < length,
        "sequence_ids": fill(size, [np.repeat(np.arange(1, number + 1), lengths)]),
        "position_ids": fill(size, [np.arange(n) for n in lengths]),
        "mlm_positions": fill(predictions, moved),
        "mlm_labels": fill(predictions, [row.labels for row in rows]),
        "mlm_valid": np.arange(predictions) < masked,
        "cls_positions": fill(most, [starts[:-1]]),
        "cls_mask": np.arange(most) < number,
        "is_random_next": fill(most, [np.array([r.is_random_next for r in rows])]),
    }
