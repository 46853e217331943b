"""A tokenized corpus: flat arrays of token ids, split by document, cached on disk.

Training a vocabulary is a pure function of the text, so whoever has the same text
gets the same token ids.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32, Int64

from attn_jax.data import corpora
from attn_jax.data.vocabulary import make_tokenizer, train_vocabulary

SPLITS = ("train", "validation")
FORMAT = 1  # of a cache entry, and of the rules of `corpora`; raise it when they change


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Tokenized documents, as flat arrays.

    Attributes:
        token_ids: all sentences one after another.
        sentences: sentence s is token_ids[sentences[s]:sentences[s + 1]], never empty.
        documents: document d is sentences documents[d] to documents[d + 1] - 1.
    """

    token_ids: Int32[np.ndarray, " N"]
    sentences: Int64[np.ndarray, " S"]
    documents: Int64[np.ndarray, " D"]

    def tokens(self, first: int, last: int) -> np.ndarray:
        """int32 token ids of the sentences in [first, last)."""
        return self.token_ids[self.sentences[first] : self.sentences[last]]

    def length(self, first: int, last: int) -> int:
        """The number of tokens of the sentences in [first, last)."""
        return int(self.sentences[last] - self.sentences[first])

    def bounds(self, document: int) -> tuple[int, int]:
        """Its sentences as [first, last)."""
        return int(self.documents[document]), int(self.documents[document + 1])


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Both splits in one vocabulary. A cached corpus is pickled as a path."""

    splits: Mapping[str, Text]
    vocabulary: tuple[str, ...]  # line number = token id
    folder: pathlib.Path | None = None  # the cache entry that holds the arrays

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return _open_entry, (self.folder,)
        return Corpus, (self.splits, self.vocabulary)


def load_corpus(data: str, vocab_size: int, *, lower_case: bool = True) -> Corpus:
    """The corpus `data` (see `corpora.read_documents`), tokenized by its own vocabulary.

    The vocabulary is trained on the train split alone. The result is kept in
    $XDG_CACHE_HOME/attn_jax (else ~/.cache/attn_jax) under a digest of the text, the
    settings and the version of `tokenizers`. A damaged entry is built again; where the
    folder cannot be written, nothing is kept and a warning says so.

    Raises:
        ValueError: no such corpus, or it is too small for `vocab_size` word pieces.
    """
    documents = corpora.read_documents(data)
    settings = [FORMAT, tokenizers.__version__, vocab_size, lower_case]
    digest = hashlib.sha256(json.dumps([settings, documents]).encode()).hexdigest()
    folder = _cache_folder() / f"text-{digest[:32]}"
    if folder.is_dir():
        try:
            _check_digests(folder)
            return _open_entry(folder)
        except (OSError, ValueError, KeyError) as error:
            logging.warning("%s is damaged (%s) and is built again.", folder, error)
    corpus = build_corpus(documents, vocab_size, lower_case)
    try:
        _save_entry(corpus, folder)
    except OSError as error:
        logging.warning(
            "the tokenized text cannot be kept in %s (%s), so every start builds it "
            "again; set XDG_CACHE_HOME to a folder that can be written.",
            folder.parent,
            error,
        )
        return corpus
    return _open_entry(folder)


def build_corpus(
    documents: Sequence[corpora.Document], vocab_size: int, lower_case: bool
) -> Corpus:
    """Splits by document, trains the vocabulary, tokenizes."""
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
    splits = {name: tokenize(part, tokenizer) for name, part in parts.items()}
    for name, text in splits.items():
        if not len(text.token_ids):
            raise ValueError(
                f"the {name} split of the corpus has no text; give more documents."
            )
    return Corpus(splits, vocabulary)


def tokenize(
    documents: Sequence[corpora.Document], tokenizer: tokenizers.Tokenizer
) -> Text:
    """The documents as token ids; a sentence or document without a token is left out."""
    token_ids: list[int] = []
    sentences, bounds = [0], [0]
    for document in documents:
        for sentence in document.sentences:
            ids = tokenizer.encode(sentence, add_special_tokens=False).ids
            if ids:  # control characters alone leave none
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

    The entropy is the lowest loss that a guess without context can reach, given the
    held-out frequencies. The cross-entropy is what the training frequencies reach, with
    add-one smoothing. A masked language model that uses context must be below both."""
    counts = np.bincount(held_out.token_ids, minlength=vocab_size).astype(np.float64)
    seen = np.bincount(train.token_ids, minlength=vocab_size) + 1.0
    p = counts / counts.sum()
    own = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
    return own, -float(np.sum(p * np.log(seen / seen.sum())))


# --- cache ----------------------------------------------------------------------------


def _cache_folder() -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "attn_jax"


def _save_entry(corpus: Corpus, folder: pathlib.Path) -> None:
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


def _open_entry(folder: pathlib.Path) -> Corpus:
    """The corpus of a cache entry, with memory-mapped arrays."""

    def read(split: str, name: str) -> np.ndarray:
        return np.load(folder / f"{split}-{name}.npy", mmap_mode="r")

    names = [field.name for field in dataclasses.fields(Text)]
    splits = {s: Text(*(read(s, name) for name in names)) for s in SPLITS}
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    return Corpus(splits, tuple(vocabulary), folder)
