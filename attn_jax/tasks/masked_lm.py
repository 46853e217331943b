"""BERT's pre-training: masked language modeling and next-sentence prediction."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax import metrics
from attn_jax.data.masked_text import MaskedText
from attn_jax.data.tokenizing import refuse_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(MaskedText):
    """The masked tokens of each row, and whether its second sentence follows the first.

    `next_sentence` adds the second objective; the rows are those of `MaskedText`.

    Source: Devlin et al. 2019, sec. 3.1; google-research/bert, run_pretraining.py.
    """

    @property
    def coefficients(self) -> dict[str, float]:
        terms = ("mlm_loss", "nsp_loss") if self.next_sentence else ("mlm_loss",)
        return dict.fromkeys(terms, 1.0)

    def read_input(self, given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Tokenizes a text in which words to fill in are written [MASK].

        Raises:
            ValueError: it is no text, the name of a file, or longer than a row.
        """
        refuse_file(given)
        if not isinstance(given, str):
            raise ValueError(f"{given!r:.80} is no text; give a string with [MASK].")
        marks = self.tokenizer.special
        ids = [marks.cls]
        for number, between in enumerate(given.split("[MASK]")):
            ids += [marks.mask] * (number > 0)
            ids += self.tokenizer.encode(between)
        ids.append(marks.sep)
        size, length = self.sequence_length, len(ids)
        if length > size:
            raise ValueError(
                f"the text has {length} tokens with [CLS] and [SEP], but the model takes {size}; "
                f"shorten it: {given:.60}"
            )
        token_ids = np.full(size, marks.pad, np.int32)
        token_ids[:length] = ids
        masked = np.flatnonzero(token_ids == marks.mask)
        limit = self.predictions_per_row
        parts = [masked[i : i + limit] for i in range(0, len(masked), limit)]
        rows = []
        for part in parts or [masked]:
            positions = np.zeros(limit, np.int32)
            positions[: len(part)] = part
            rows.append(
                {
                    "token_ids": token_ids,
                    "segment_ids": np.zeros(size, np.int32),
                    "mask": np.arange(size) < length,
                    "mlm_positions": positions,
                    "mlm_valid": np.arange(limit) < len(part),
                }
            )
        return {"text": given}, rows

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, np.ndarray]],
        top: int,
    ) -> dict[str, Any]:
        """`masks`: for each [MASK] the `top` most probable pieces; `filled`: the text with them.

        Raises:
            ValueError: the text has no [MASK], or the model no MLM head.
        """
        text = named["text"]
        if "[MASK]" not in text:
            raise ValueError(f"there is no [MASK] to fill in the text {text!r:.80}.")
        masks: list[list[dict[str, Any]]] = []
        for row, output in zip(rows, outputs, strict=True):
            arrays = {name: jnp.asarray(array) for name, array in output.items()}
            logits = self.check_head(arrays, "mlm", self.vocab_size)[row["mlm_valid"]]
            masks += [
                metrics.rank_classes(chances, self._pieces, top)
                for chances in np.asarray(jax.nn.softmax(logits))
            ]
        filled = text
        for best, *_ in masks:
            piece = best["label"]
            before, _, after = filled.partition("[MASK]")
            joined = before.rstrip() if piece.startswith("##") else before
            filled = joined + piece.removeprefix("##") + after
        return {"masks": masks, "filled": filled}

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        names = ["token_ids", "segment_ids", "mask", "mlm_positions"]
        if "sequence_ids" in batch:
            names += ["sequence_ids", "position_ids", "cls_positions"]
        return {name: batch[name] for name in names}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Cross-entropy in nats and accuracy, over all masked tokens and over all pairs.

        Every masked token has the same weight; padding has none. The original divides by
        the number of tokens on each device plus 1e-5 instead.

        Raises:
            ValueError: the model lacks a head, or has another vocabulary.
        """
        valid = batch["valid"].astype(jnp.float32)
        counted = batch["mlm_valid"].astype(jnp.float32) * valid[:, None]
        logits = self.check_head(outputs, "mlm", self.vocab_size)
        terms = classification_terms(logits, batch["mlm_labels"], counted, "mlm")
        if self.next_sentence:
            logits = self.check_head(outputs, "nsp", 2)
            pairs_counted = valid
            if "cls_mask" in batch:
                pairs_counted = batch["cls_mask"] * valid[:, None]
            terms |= classification_terms(
                logits, batch["is_random_next"], pairs_counted, "nsp"
            )
        return terms

    def check_head(
        self, outputs: Mapping[str, jax.Array], name: str, classes: int
    ) -> jax.Array:
        """The float32 logits of a head.

        Raises:
            ValueError: the model lacks the head, or it has another number of classes.
        """
        logits = outputs.get(f"{name}_logits")
        if logits is None:
            other = (
                " or set config.task.next_sentence to False" if name == "nsp" else ""
            )
            raise ValueError(
                f"the model outputs no {name}_logits; add {name!r} to "
                f"config.model.heads{other}."
            )
        if logits.shape[-1] != classes:
            raise ValueError(
                f"{name}_logits has {logits.shape[-1]} classes, but the task {classes}; "
                "set config.model.vocab_size and config.task.vocab_size to the same number."
            )
        return logits.astype(jnp.float32)


def classification_terms(
    logits: jax.Array, labels: jax.Array, counted: jax.Array, name: str
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """`NAME_loss` and `NAME_accuracy`, as sums and counts weighted by `counted`."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = logits.argmax(-1) == labels
    count = counted.sum()
    return {
        f"{name}_loss": ((losses * counted).sum(), count),
        f"{name}_accuracy": ((correct * counted).sum(), count),
    }
