"""Text as numbers: a WordPiece vocabulary, a tokenised corpus, and its cache on disk.

Training a vocabulary is a pure function of the text here, so a run's folder need not
hold the corpus: whoever has the same text has the same numbers.
"""

import collections
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32, Int64
from tokenizers import models, normalizers, pre_tokenizers, trainers

from attn_jax.data import corpora

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIALS))
SPLITS = ("train", "validation")
FORMAT = 1  # of a cache entry, and of the rules of `corpora`; raise it when they change
LEAST_COUNT = 2  # of a character or a merged piece in the training text


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Tokenised documents, as flat arrays.

    Attributes:
        token_ids: all sentences one after another.
        sentences: sentence s is token_ids[sentences[s]:sentences[s + 1]], never empty.
        documents: document d is sentences documents[d] to documents[d + 1] - 1.
    """

    token_ids: Int32[np.ndarray, " N"]
    sentences: Int64[np.ndarray, " S"]
    documents: Int64[np.ndarray, " D"]

    def tokens(self, first: int, last: int) -> np.ndarray:
        """int32, of the sentences from `first` to before `last`."""
        return self.token_ids[self.sentences[first] : self.sentences[last]]

    def length(self, first: int, last: int) -> int:
        return int(self.sentences[last] - self.sentences[first])

    def bounds(self, document: int) -> tuple[int, int]:
        """Its first sentence, and the one after its last."""
        return int(self.documents[document]), int(self.documents[document + 1])


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Both splits in one vocabulary; to another process a cached one goes as a path."""

    splits: Mapping[str, Text]
    vocabulary: tuple[str, ...]  # line number = token id
    folder: pathlib.Path | None = None  # where the arrays lie

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return _opened, (self.folder,)
        return Corpus, (self.splits, self.vocabulary)


def load(data: str, vocab_size: int, *, lower_case: bool = True) -> Corpus:
    """The corpus `data` (see `corpora.read`), tokenised by its own vocabulary.

    The vocabulary is trained on the train split alone. The result is kept in
    $XDG_CACHE_HOME/attn_jax (else ~/.cache/attn_jax) under a digest of the text, the
    settings and the version of `tokenizers`. A damaged entry is built again; where the
    folder cannot be written, nothing is kept and a warning says so.

    Raises:
        ValueError: no such corpus, or it is too small for `vocab_size` word pieces.
    """
    documents = corpora.read(data)
    settings = [FORMAT, tokenizers.__version__, vocab_size, lower_case]
    digest = hashlib.sha256(json.dumps([settings, documents]).encode()).hexdigest()
    folder = _cache_folder() / f"text-{digest[:32]}"
    if folder.is_dir():
        try:
            _check_digests(folder)
            return _opened(folder)
        except (OSError, ValueError, KeyError) as error:
            logging.warning("%s is damaged (%s) and is built again.", folder, error)
    corpus = build(documents, vocab_size, lower_case)
    try:
        _save(corpus, folder)
    except OSError as error:
        logging.warning(
            "the tokenised text cannot be kept in %s (%s), so every start builds it "
            "anew; set XDG_CACHE_HOME to a folder that can be written.",
            folder.parent,
            error,
        )
        return corpus
    return _opened(folder)


def build(
    documents: Sequence[corpora.Document], vocab_size: int, lower_case: bool
) -> Corpus:
    """Splits by document, trains the vocabulary, tokenises."""
    held_out = corpora.held_out([document.name for document in documents])
    parts = {
        "train": [d for d in documents if d.name not in held_out],
        "validation": [d for d in documents if d.name in held_out],
    }
    vocabulary = train_vocabulary(
        [s for document in parts["train"] for s in document.sentences],
        vocab_size,
        lower_case=lower_case,
    )
    tokenizer = make_tokenizer(vocabulary, lower_case=lower_case)
    splits = {name: _tokenised(part, tokenizer) for name, part in parts.items()}
    for name, text in splits.items():
        if not len(text.token_ids):
            raise ValueError(
                f"the {name} split of the corpus has no text; give more documents."
            )
    return Corpus(splits, vocabulary)


# --- vocabulary -----------------------------------------------------------------------


def train_vocabulary(
    sentences: Iterable[str], size: int, *, lower_case: bool = True
) -> tuple[str, ...]:
    """`size` word pieces: [PAD] [UNK] [CLS] [SEP] [MASK], characters, then merges.

    The trainer merges the most frequent pair of pieces again and again (byte-pair
    encoding with "##"), as all WordPiece trainers of `tokenizers` do. It numbers the
    characters in the order of a hash map seeded at random, and numbers break ties, so
    two runs differ; here it is given all characters in sorted order beforehand.

    Raises:
        ValueError: `size` is smaller than the alphabet, or larger than what the text
            yields.

    Source: google-research/bert released no trainer; Hugging Face's
    train_bert_wordpiece.py has the same steps and the same least count.
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
    lines = (
        f"{word} " * count for word, count in words.items()
    )  # counts are all it reads
    tokenizer.train_from_iterator(lines, trainer)
    numbers = tokenizer.get_vocab()
    if len(numbers) != size:
        raise ValueError(
            f"the text yields {len(numbers)} word pieces that occur {LEAST_COUNT} "
            f"times, but vocab_size={size}; set config.task.vocab_size and "
            f"config.model.vocab_size to {len(numbers)} or less, or give more text."
        )
    return tuple(sorted(numbers, key=lambda piece: numbers[piece]))


def make_tokenizer(
    vocabulary: Sequence[str] | None, *, lower_case: bool = True
) -> tokenizers.Tokenizer:
    """BERT's tokenizer: clean, split off punctuation, longest piece first.

    A literal "[MASK]" in a text is three ordinary pieces, as in google-research/bert:
    nothing that is read becomes a special token.
    """
    known = {piece: number for number, piece in enumerate(vocabulary or SPECIALS)}
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(known, unk_token="[UNK]", max_input_chars_per_word=200)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _tokenised(
    documents: Sequence[corpora.Document], tokenizer: tokenizers.Tokenizer
) -> Text:
    token_ids: list[int] = []
    sentences, bounds = [0], [0]
    for document in documents:
        for sentence in document.sentences:
            ids = tokenizer.encode(sentence, add_special_tokens=False).ids
            if ids:  # none where cleaning leaves nothing, as of control characters
                token_ids += ids
                sentences.append(len(token_ids))
        if len(sentences) - 1 > bounds[-1]:
            bounds.append(len(sentences) - 1)
    return Text(
        np.array(token_ids, np.int32),
        np.array(sentences, np.int64),
        np.array(bounds, np.int64),
    )


def unigram_entropy(
    train: Text, held_out: Text, vocab_size: int
) -> tuple[float, float]:
    """(entropy of the held-out tokens, their cross-entropy under train), nats a token.

    The first is the lowest loss that any guess without context reaches on them, and
    only by knowing their frequencies; the second is what the training frequencies, one
    added to each count, reach. A masked language model that reads context must be
    below."""
    counts = np.bincount(held_out.token_ids, minlength=vocab_size).astype(np.float64)
    seen = np.bincount(train.token_ids, minlength=vocab_size) + 1.0
    p = counts / counts.sum()
    own = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
    return own, -float(np.sum(p * np.log(seen / seen.sum())))


# --- cache ----------------------------------------------------------------------------


def _cache_folder() -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "attn_jax"


def _save(corpus: Corpus, folder: pathlib.Path) -> None:
    """Writes beside `folder` and renames, so that no reader sees half an entry."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        for split, text in corpus.splits.items():
            for name, array in vars(text).items():
                np.save(temporary / f"{split}-{name}.npy", array)
        lines = "".join(f"{piece}\n" for piece in corpus.vocabulary)
        (temporary / "vocab.txt").write_text(lines, encoding="utf-8")
        digests = {f.name: _digest(f) for f in sorted(temporary.iterdir())}
        (temporary / "digests.json").write_text(json.dumps(digests))
        temporary.chmod(0o755)
        if folder.exists():
            if _is_whole(folder):  # another process was faster with the same
                return
            stale = folder.rename(temporary.with_name(f"{temporary.name}.old"))
            shutil.rmtree(stale, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:
            if not _is_whole(folder):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_digests(folder: pathlib.Path) -> None:
    digests = json.loads((folder / "digests.json").read_text())
    for name, digest in digests.items():
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} is not as it was written")


def _is_whole(folder: pathlib.Path) -> bool:
    try:
        _check_digests(folder)
    except (OSError, ValueError):
        return False
    return True


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _opened(folder: pathlib.Path) -> Corpus:
    """The corpus of a cache entry; its arrays are read from disk as they are used."""

    def read(split: str, name: str) -> np.ndarray:
        return np.load(folder / f"{split}-{name}.npy", mmap_mode="r")

    names = [field.name for field in dataclasses.fields(Text)]
    splits = {s: Text(*(read(s, name) for name in names)) for s in SPLITS}
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    return Corpus(splits, tuple(vocabulary), folder)
