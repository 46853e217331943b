"""Converts the arguments of a call of the official PyTorch Hopfield layers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from attn_jax.convert.hopfield.config import HOPFIELD_MODULES, fill_in_defaults


class Call(NamedTuple):
    """Arguments of a layer's call.

    Attributes:
        inputs: our names, in the official order.
        single: whether one input may stand for all of them.
        padding: {official padding mask: ours}.
        associations: {official association mask: (our prefix, Hopfield module of the
            layer)}.
    """

    inputs: tuple[str, ...]
    single: bool
    padding: dict[str, str]
    associations: dict[str, tuple[str, str | None]]


PADDING = {"stored_pattern_padding_mask": "stored_mask"}
ASSOCIATION: dict[str, tuple[str, str | None]] = {"association_mask": ("", None)}
CALLS = {
    "Hopfield": Call(("stored", "state", "projection"), True, PADDING, ASSOCIATION),
    "HopfieldPooling": Call(("stored", "projection"), True, PADDING, ASSOCIATION),
    "HopfieldLayer": Call(("state",), True, PADDING, ASSOCIATION),
    "HopfieldEncoderLayer": Call(
        ("patterns",),
        True,
        {"src_key_padding_mask": "stored_mask"},
        {"src_mask": ("", "hopfield_association")},
    ),
    "HopfieldDecoderLayer": Call(
        ("state", "stored"),
        False,
        {
            "tgt_key_padding_mask": "state_mask",
            "memory_key_padding_mask": "stored_mask",
        },
        {
            "tgt_mask": ("self_", "hopfield_association_self"),
            "memory_mask": ("", "hopfield_association_cross"),
        },
    ),
}


def inputs_from_torch(
    kind: str,
    config: Mapping[str, Any],
    input: np.ndarray | tuple[np.ndarray, ...],
    stored_pattern_padding_mask: np.ndarray | None = None,
    association_mask: np.ndarray | None = None,
    **masks: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Converts the arguments of an official call to those of ours.

    Args:
        input: an array; or (stored, state, projection) of "Hopfield", (stored,
            projection) of "HopfieldPooling", or (tgt, memory) of "HopfieldDecoderLayer". [B,
            T, D], or [T, B, D] if not `batch_first`.
        stored_pattern_padding_mask: [B, K], True = ignore.
        association_mask: [Q, K] or [B*H, Q, K], boolean (True = blocked) or float
            (added).
        masks: likewise `src_key_padding_mask` and `src_mask` of "HopfieldEncoderLayer";
            `tgt_key_padding_mask`, `memory_key_padding_mask`, `tgt_mask` and
            `memory_mask` of "HopfieldDecoderLayer".

    Raises:
        ValueError: the kind, an argument or a mask is unknown, or the kind does not take
            this number of inputs.
    """
    config = fill_in_defaults(kind, config)
    call = CALLS[kind]
    parts = input if isinstance(input, tuple) else (input,)
    if len(parts) != len(call.inputs) and not (call.single and len(parts) == 1):
        single = "one input or " if call.single else ""
        raise ValueError(
            f"{kind} takes {single}{len(call.inputs)} ({', '.join(call.inputs)}), "
            f"not {len(parts)}."
        )
    inner = [config[name] for name in HOPFIELD_MODULES.get(kind, ())] or [config]
    if not inner[0]["batch_first"]:
        parts = tuple(np.swapaxes(part, 0, 1) for part in parts)
    ours = dict(zip(call.inputs, parts, strict=False))
    masks = {
        "stored_pattern_padding_mask": stored_pattern_padding_mask,
        "association_mask": association_mask,
        **masks,
    }
    for name, mask in masks.items():
        if mask is None:
            continue
        if name in call.padding:
            ours[call.padding[name]] = ~np.asarray(mask, bool)
        elif name in call.associations:
            prefix, module = call.associations[name]
            heads = (config if module is None else config[module])["num_heads"]
            mask = np.asarray(mask)
            mask = mask.reshape(-1, heads if mask.ndim == 3 else 1, *mask.shape[-2:])
            if mask.dtype == bool:
                ours[f"{prefix}association_mask"] = ~mask
            else:
                ours[f"{prefix}association_bias"] = mask
        else:
            raise ValueError(
                f"{name!r} is no mask of the official {kind}; it has "
                f"{', '.join([*call.padding, *call.associations])}."
            )
    return ours
