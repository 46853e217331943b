"""WordPiece vocabularies: trains and reads them, and makes tokenizers."""

import collections
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Bool
from tokenizers import models, normalizers, pre_tokenizers, trainers

from attn_jax.data import corpora
from attn_jax.folder import expand_path

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LEAST_COUNT = 2  # occurrences of a character or merged piece in the training text
EXTENSION_E = {chr(code) for code in range(0x2B820, 0x2B920)}
LINEAR_B = "\U00010087"
RARE = re.compile("[\U0002b820-\U0002b91f\ue000-\uf8ff\U000f0000-\U0010ffff]")
MAX_BYTES = 64_000_000  # of a vocabulary; the largest released ones have 1 to 5 MB


class SpecialIds(NamedTuple):
    """Ids of the special tokens: 0 to 4 in vocabularies trained here, not in Google's."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


def find_special_ids(vocabulary: Sequence[str]) -> SpecialIds:
    """Finds the special tokens; raises ValueError if one is missing."""
    if missing := [piece for piece in SPECIALS if piece not in vocabulary]:
        raise ValueError(
            f"the vocabulary lacks {', '.join(missing)}; give a WordPiece vocabulary of "
            "BERT (vocab.txt, one piece per line)."
        )
    return SpecialIds(*map(vocabulary.index, SPECIALS))


def find_continuing(vocabulary: Sequence[str]) -> Bool[np.ndarray, " V"]:
    """Finds the pieces that continue a word ("##")."""
    return np.array([piece.startswith("##") for piece in vocabulary])


def parse_vocabulary(text: str) -> tuple[str, ...]:
    """Parses a vocab.txt to word pieces; the number of a line is the token id.

    Raises:
        ValueError: a piece is empty or repeated, or a special token is missing.
    """
    # Not by splitlines: U+2028 and the like are pieces of some vocabularies.
    pieces = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    numbers: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if not piece or piece in numbers:
            fault = f"repeats {piece!r}" if piece else "is empty"
            raise ValueError(
                f"line {number + 1} of the vocabulary {fault}; give a vocab.txt with "
                "one word piece per line."
            )
        numbers[piece] = number
    find_special_ids(pieces)
    return tuple(pieces)


def read_vocabulary(path: epath.PathLike) -> dict[str, str] | None:
    """Reads the vocabulary that a checkpoint was trained with, as assets of a run.

    Args:
        path: a workdir (assets/vocab.txt), a folder of a checkpoint (vocab.txt, else
            tokenizer.json; tokenizer_config.json for `do_lower_case`), a file in one, the
            prefix of a TensorFlow checkpoint, or a vocab.txt.

    Returns:
        {"vocab.txt": pieces, "text.json": settings}, which `MaskedLM.bind` takes. If nothing
        beside the vocabulary says so, `lower_case` is what its words show, and left out if
        they show neither. None if there is no vocabulary.

    Raises:
        ValueError: a file is no text, too large, or no vocabulary.
    """
    # pathlib where possible: epath's `is_file` is true for a FIFO, whose reading blocks.
    path = expand_path(path)
    if "://" not in str(path):
        path = pathlib.Path(path)
    if path.is_dir():
        run = path / "assets" / "vocab.txt"
        file = run if run.exists() else path / "vocab.txt"
    else:
        file = path if path.suffix == ".txt" else path.parent / "vocab.txt"
    settings = _read_json(file.parent / "text.json")
    described = file.parent / "tokenizer.json"
    if file.exists():
        text = corpora.read_text(file, MAX_BYTES)
    elif described.exists():
        try:
            pieces, settings["lower_case"] = parse_tokenizer(_read_json(described))
        except ValueError as error:
            raise ValueError(f"{described}: {error}") from error
        file, text = described, "".join(f"{piece}\n" for piece in pieces)
    else:
        return None
    try:
        all_pieces = parse_vocabulary(text)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    foreign = _read_json(file.parent / "tokenizer_config.json")
    if "do_lower_case" in foreign:
        settings.setdefault("lower_case", foreign["do_lower_case"])
    if "lower_case" not in settings:
        shown = detect_lower_case(all_pieces)
        settings |= {} if shown is None else {"lower_case": shown}
    return {"vocab.txt": text, "text.json": json.dumps(settings)}


def detect_lower_case(pieces: Sequence[str]) -> bool | None:
    """Whether a vocabulary is of lower-cased text; None if its words do not show it.

    Text that is lower-cased and stripped of accents yields no piece with a capital or an accent, but
    users add some ("URL"). In Google's cased vocabularies a third of the pieces has capitals.
    """
    words = [
        piece.removeprefix("##")
        for piece in pieces
        if not (piece.startswith("[") and piece.endswith("]"))
    ]
    few = len(words) / 100
    if sum(word != word.lower() for word in words) > few:
        return False
    normal = make_tokenizer(None, lower_case=True).normalizer
    changed = sum(
        normal.normalize_str(word).strip() not in ("", word) for word in words
    )
    return True if changed <= few and any(map(str.islower, words)) else None


def parse_tokenizer(described: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Parses (word pieces, whether text is lower-cased) of a tokenizer.json of BERT.

    Raises:
        ValueError: it is no WordPiece, or cleans text in another way than BERT; its ids are not
            0, 1, 2, ...
    """
    model, normalizer = described.get("model"), described.get("normalizer")
    if not isinstance(model, dict) or model.get("type") != "WordPiece":
        raise ValueError("its model is no WordPiece, which BERT needs")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        raise ValueError("its normalizer is not BertNormalizer, which BERT needs")
    lower_case = normalizer.get("lowercase", True)
    wanted = {
        "clean_text": (True,),
        "handle_chinese_chars": (True,),
        "strip_accents": (None, lower_case),
    }
    for key, values in wanted.items():
        if normalizer.get(key, values[0]) not in values:
            raise ValueError(
                f"{key}={normalizer[key]!r:.40} is not supported, only {values[-1]}"
            )
    try:
        added = {t["content"]: t["id"] for t in described.get("added_tokens", [])}
        numbers: dict[str, int] = {**model["vocab"], **added}
        pieces = sorted(numbers, key=lambda piece: numbers[piece])
    except (TypeError, KeyError) as error:
        raise ValueError(f"its vocabulary is damaged: {error!r:.80}") from error
    if [numbers[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError("its ids are not 0, 1, 2, ...; save the tokenizer again")
    return pieces, lower_case


def parse_settings(text: str) -> dict[str, Any]:
    """Parses a JSON object; raises ValueError for any other text."""
    try:
        settings = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(settings, dict):
        raise ValueError("not a JSON object")
    return settings


def _read_json(file: pathlib.Path | epath.Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return parse_settings(corpora.read_text(file, MAX_BYTES))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def train_vocabulary(
    sentences: Iterable[str], size: int, *, lower_case: bool = True
) -> tuple[str, ...]:
    """Trains `size` word pieces: the special tokens, the characters, then merges.

    The trainer of `tokenizers` repeatedly merges the most frequent pair of pieces (byte-pair
    encoding with "##"). It numbers characters in the order of a randomly seeded hash map,
    and breaks ties by number, so its result differs from run to run. Passing all characters
    in sorted order as special tokens makes it deterministic.

    Raises:
        ValueError: `size` is smaller than the alphabet, or larger than the number of pieces
            in the text.

    Source: google-research/bert released no trainer; Hugging Face's
    train_bert_wordpiece.py takes the same steps, with the same minimum count.
    """
    tokenizer = make_tokenizer(None, lower_case=lower_case)
    starts: collections.Counter[str] = collections.Counter()
    rests: collections.Counter[str] = collections.Counter()
    words: collections.Counter[str] = collections.Counter()
    for sentence in sentences:
        sentence = tokenizer.normalizer.normalize_str(sentence)
        parts = tokenizer.pre_tokenizer.pre_tokenize_str(sentence)
        words.update(word for word, _ in parts)
    for word, count in words.items():
        starts[word[0]] += count
        for character in word[1:]:
            rests[character] += count
    both = starts + rests
    alphabet = sorted(c for c, count in both.items() if count >= LEAST_COUNT)
    known = [*SPECIALS, *alphabet, *(f"##{c}" for c in alphabet if c in rests)]
    if len(known) >= size:
        raise ValueError(
            f"vocab_size={size} leaves no room beside {len(known)} special tokens and "
            "characters of the text; raise config.task.vocab_size and "
            "config.model.vocab_size."
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=LEAST_COUNT,
        limit_alphabet=len(alphabet),
        special_tokens=known,
        show_progress=False,
    )
    # The trainer reads word counts only, so each word stands once per occurrence.
    lines = (f"{word} " * count for word, count in words.items())
    tokenizer.train_from_iterator(lines, trainer)
    numbers = tokenizer.get_vocab()
    if len(numbers) != size:
        raise ValueError(
            f"the text yields {len(numbers)} word pieces that occur {LEAST_COUNT} "
            f"times or more, but vocab_size={size}; set config.task.vocab_size and "
            f"config.model.vocab_size to {len(numbers)} or less, or give more text."
        )
    return tuple(sorted(numbers, key=lambda piece: numbers[piece]))


def adapt_text(text: str) -> str:
    """Rewrites the characters that `tokenizers` reads in another way than the original.

    It drops private-use characters, which the original keeps, so that their word is [UNK]: they
    become a letter that no vocabulary of BERT has. It does not split off the ideographs U+2B820
    to U+2B91F, which the original does: they get spaces around them.
    """
    if RARE.search(text) is None:
        return text
    return RARE.sub(
        lambda found: f" {found[0]} " if found[0] in EXTENSION_E else LINEAR_B, text
    )


def make_tokenizer(
    vocabulary: Sequence[str] | None, *, lower_case: bool = True
) -> tokenizers.Tokenizer:
    """Makes BERT's tokenizer: cleans, splits off punctuation, takes longest pieces first.

    As in google-research/bert, no text becomes a special token: a literal "[MASK]" becomes
    three ordinary pieces. Equal to the original on text that `adapt_text` has rewritten.
    """
    known = {piece: number for number, piece in enumerate(vocabulary or SPECIALS)}
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(known, unk_token="[UNK]", max_input_chars_per_word=200)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
