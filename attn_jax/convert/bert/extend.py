"""Adds words to the vocabulary of a BERT, for text of a field with words of its own."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from attn_jax.data.tokenizing import Tokenizer
from attn_jax.data.vocabulary import parse_settings, parse_vocabulary
from attn_jax.models.bert import Bert


def extend_vocabulary(
    module: nn.Module,
    variables: Mapping[str, Any],
    vocabulary: Mapping[str, str],
    words: Sequence[str],
) -> tuple[Bert, dict[str, Any], dict[str, str], list[str]]:
    """Gives each word a piece of its own, at the end of the vocabulary.

    The row of a new piece in the token table, and its bias in the MLM head, are the means of those
    of the pieces that the word consisted of. All other pieces keep their ids. A longer word that
    begins with a new piece is then divided in another way too.

    Args:
        vocabulary: {"vocab.txt": text, "text.json": settings}, as
            `attn_jax.data.vocabulary.read_vocabulary` returns.
        words: as the tokenizer sees them, such as lower-case ones.

    Returns: module, variables, vocabulary, and the words that had a piece already.

    Raises:
        ValueError: the module is no BERT; the vocabulary is not that of the model; a word is repeated, unknown or is
            several words to the tokenizer.
    """
    if not isinstance(module, Bert):
        raise ValueError(f"a {type(module).__name__} has no vocabulary; give a BERT.")
    pieces = parse_vocabulary(vocabulary["vocab.txt"])
    if len(pieces) != module.vocab_size:
        raise ValueError(
            f"the vocabulary has {len(pieces):,} word pieces, but the model "
            f"{module.vocab_size:,}; give the vocabulary that it was trained with."
        )
    settings = parse_settings(vocabulary.get("text.json", "{}"))
    lower_case = bool(settings.get("lower_case", True))
    tokenizer = Tokenizer(pieces, lower_case=lower_case)
    known = set(pieces)
    added: dict[str, list[int]] = {}
    for number, word in enumerate(words, 1):
        if word in added:
            raise ValueError(f"word {number}, {word!r}, is repeated; leave it out.")
        if word not in known:
            added[word] = find_pieces(tokenizer, word, number)
    params = dict(variables["params"])
    table = params["token_embedding"]["embedding"]
    params["token_embedding"] = {"embedding": append_means(table, added.values())}
    if "mlm_bias" in params:
        params["mlm_bias"] = append_means(params["mlm_bias"], added.values())
    lines = "".join(f"{piece}\n" for piece in (*pieces, *added))
    return (
        module.clone(vocab_size=len(pieces) + len(added)),
        {**variables, "params": params},
        {"vocab.txt": lines, "text.json": json.dumps({"lower_case": lower_case})},
        [word for word in words if word in known],
    )


def find_pieces(tokenizer: Tokenizer, word: str, number: int) -> list[int]:
    """The ids of a word's pieces.

    Raises:
        ValueError: the tokenizer reads it as another word, as several, or does not know it.
    """
    found = tokenizer.split(word)
    if tokenizer.special.unk in tokenizer.number(found):
        raise ValueError(
            f"word {number}, {word!r}, has characters that the vocabulary does not know, so "
            "there are no pieces to start from; leave it out."
        )
    rest = [piece.removeprefix("##") for piece in found[1:]]
    is_one = all(piece.startswith("##") for piece in found[1:])
    if not found or not is_one or "".join([found[0], *rest]) != word:
        raise ValueError(
            f"word {number}, {word!r}, is {' '.join(found) or 'nothing'} to the tokenizer; "
            "give single words without punctuation, in lower case and without accents if "
            "the vocabulary is."
        )
    return tokenizer.number(found)


def append_means(array: Any, groups: Any) -> np.ndarray:
    rows = np.asarray(array)
    means = [rows[ids].mean(axis=0, dtype=np.float64) for ids in groups]
    return np.concatenate([rows, *(np.asarray(m, rows.dtype)[None] for m in means)])
