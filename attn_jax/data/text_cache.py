"""Keeps tokenized corpora on disk, where runs open them without reading the text again."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import stat
import tempfile

import numpy as np
import tokenizers
from absl import logging

from attn_jax.data import corpora, shards
from attn_jax.data.text import SPLITS, Corpus, Text, build_corpus
from attn_jax.data.vocabulary import (
    find_special_ids,
    parse_vocabulary,
    train_vocabulary,
)
from attn_jax.folder import find_cache

FORMAT = 3  # of an entry, and of the rules for text; raise it when they change
SIDE_FILES = ("vocab.txt", "digests.json")  # of an entry, beside its arrays
DTYPES = {"token_ids": np.int32, "sentences": np.int64, "documents": np.int64}


def load_corpus(
    data: str,
    vocab_size: int,
    *,
    lower_case: bool = True,
    vocabulary: tuple[str, ...] | None = None,
    version: int = 3,
) -> Corpus:
    """Reads the corpus `data`, splits it by document and tokenizes it; cached on disk.

    The cache is $XDG_CACHE_HOME/attn_jax (by default ~/.cache/attn_jax); an entry is named
    by a digest of the files, the settings and the version of `tokenizers`. An entry that is
    damaged, or that another user wrote, is built again. If the folder cannot be written, a
    warning says that nothing is cached.

    Args:
        data: see `corpora.read_documents`.
        vocab_size: of the vocabulary that is trained on the train split.
        vocabulary: word pieces to use instead of training a vocabulary.
        version: of the rules for reading files, see `corpora.read_documents`.

    Raises:
        ValueError: the corpus cannot be read, or is too small for `vocab_size` word pieces;
            the vocabulary lacks most of its words.
    """
    files = corpora.find_files(data, version)
    content = corpora.digest_files(data, files, version)
    settings = [FORMAT, tokenizers.__version__, vocabulary or vocab_size, lower_case]
    digest = hashlib.sha256(json.dumps([settings, content]).encode()).hexdigest()
    folder = find_cache() / f"text-{digest[:32]}"
    if folder.is_dir():
        try:
            _check_entry(folder)
            return _open_entry(folder, lower_case, files.left_out)
        except (OSError, ValueError) as error:
            logging.warning("%s is damaged (%s) and is built again.", folder, error)
    documents, left_out = corpora.read_documents(data, version)
    corpus = build_corpus(documents, vocab_size, lower_case, vocabulary)
    corpus = dataclasses.replace(corpus, left_out=left_out)
    try:
        _save_entry(corpus, folder)
    except OSError as error:
        logging.warning(
            "the tokenized text cannot be cached in %s (%s), so every start builds it "
            "again; set XDG_CACHE_HOME to a writable folder.",
            folder.parent,
            error,
        )
        return corpus
    return _open_entry(folder, lower_case, left_out)


@functools.lru_cache(4)  # every split of a mixture needs it
def find_vocabulary(
    corpora_of: tuple[str, ...], vocab_size: int, lower_case: bool, version: int
) -> tuple[str, ...]:
    """The vocabulary of a mixture: of its first prepared corpus, or trained on all texts.

    Args:
        corpora_of: the data, each as for `load_corpus`, or a folder of `prepare-text`.
    """
    folders = [shards.find_prepared(data) for data in corpora_of]
    for folder in folders:
        if folder is not None:
            return parse_vocabulary(shards.read_assets(folder)["vocab.txt"])
    sentences: list[str] = []
    for data in corpora_of:
        documents, _ = corpora.read_documents(data, version)
        held_out = corpora.choose_held_out([document.key for document in documents])
        for document in documents:
            if document.key not in held_out:
                sentences += document.sentences
    return train_vocabulary(sentences, vocab_size, lower_case=lower_case)


def _save_entry(corpus: Corpus, folder: pathlib.Path) -> None:
    """Writes beside `folder`, then renames, so that no reader sees half an entry."""
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
            if _is_whole(folder):  # another process wrote the same entry first
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


def _check_entry(folder: pathlib.Path) -> None:
    """Raises OSError or ValueError unless the entry is ours, whole, and a corpus.

    Digests prove that the files are as written, but not who wrote them, so the owner and
    the arrays are checked too.
    """
    names = [field.name for field in dataclasses.fields(Text)]
    arrays = [f"{split}-{name}.npy" for split in SPLITS for name in names]
    for path in (folder, *(folder / name for name in (*arrays, *SIDE_FILES))):
        status = path.lstat()
        if status.st_uid not in (os.getuid(), 0):
            raise ValueError(f"{path.name} belongs to another user")
        if path != folder and not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is no regular file")
    try:
        digests = json.loads((folder / "digests.json").read_bytes())
    except RecursionError as error:
        raise ValueError("digests.json is nested too deeply") from error
    if not isinstance(digests, dict) or digests.keys() != {*arrays, "vocab.txt"}:
        raise ValueError("digests.json does not list the files of an entry")
    for name, digest in digests.items():
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} has changed since it was written")
    corpus = _open_entry(folder)
    find_special_ids(corpus.vocabulary)
    for split, text in corpus.splits.items():
        for name in names:
            array = getattr(text, name)
            if array.ndim != 1 or array.dtype != DTYPES[name] or not len(array):
                raise ValueError(f"{split}-{name}.npy has a wrong shape or type")
        ends = (
            ("sentences", len(text.token_ids)),
            ("documents", len(text.sentences) - 1),
        )
        for name, end in ends:
            bounds = getattr(text, name)
            if bounds[0] != 0 or bounds[-1] != end or (np.diff(bounds) <= 0).any():
                raise ValueError(f"{split}-{name}.npy does not divide its text")
        ids = text.token_ids
        if ids.min() < 0 or ids.max() >= len(corpus.vocabulary):
            raise ValueError(f"{split}-token_ids.npy is not of this vocabulary")


def _is_whole(folder: pathlib.Path) -> bool:
    try:
        _check_entry(folder)
    except (OSError, ValueError):
        return False
    return True


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _open_entry(
    folder: pathlib.Path, lower_case: bool = True, left_out: tuple[str, ...] = ()
) -> Corpus:
    """Opens the corpus of a cache entry; its arrays are memory-mapped."""

    def read(split: str, name: str) -> np.ndarray:
        return np.load(folder / f"{split}-{name}.npy", mmap_mode="r")

    names = [field.name for field in dataclasses.fields(Text)]
    splits = {s: Text(*(read(s, name) for name in names)) for s in SPLITS}
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    reopen = (_open_entry, (folder, lower_case, left_out))
    return Corpus(splits, tuple(vocabulary), lower_case, left_out, folder, reopen)
