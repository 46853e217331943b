"""A tokenized corpus: flat arrays of token ids, split by document, cached on disk.

Training a vocabulary is a pure function of the text, so the same text always has the same
token ids.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from absl import logging
from jaxtyping import Int32, Int64, Integer

from attn_jax.data import corpora
from attn_jax.data.vocabulary import find_special_ids, make_tokenizer, train_vocabulary

SPLITS = ("train", "validation")
FORMAT = 2  # of a cache entry, and of the rules of `prose`; raise it when they change
SIDE_FILES = ("vocab.txt", "digests.json")  # of a cache entry, beside its arrays
DTYPES = {"token_ids": np.int32, "sentences": np.int64, "documents": np.int64}
UNKNOWN_LIMIT = 0.5  # share of [UNK] above which a vocabulary does not fit the text


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Tokenized documents, as flat arrays.

    Attributes:
        token_ids: those of all sentences, concatenated; int32, on disk also uint16.
        sentences: sentence s is token_ids[sentences[s] : sentences[s + 1]], never empty.
        documents: document d has the sentences documents[d] to documents[d + 1] - 1.
    """

    token_ids: Integer[np.ndarray, " N"]
    sentences: Int64[np.ndarray, " S"]
    documents: Int64[np.ndarray, " D"]

    @property
    def num_documents(self) -> int:
        return len(self.documents) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def tokens(self, first: int, last: int) -> Int32[np.ndarray, " L"]:
        """The token ids of the sentences [first, last)."""
        found = self.token_ids[self.sentences[first] : self.sentences[last]]
        return np.asarray(found, np.int32)

    def bounds(self, document: int) -> tuple[int, int]:
        """[first, last) of the sentences of a document."""
        return int(self.documents[document]), int(self.documents[document + 1])

    def find_documents(
        self, sentences: Integer[np.ndarray, " R"]
    ) -> Int64[np.ndarray, " R"]:
        """The document of each sentence."""
        return np.searchsorted(self.documents, sentences, side="right") - 1

    def find_end(self, first: int, last: int, target: int) -> int:
        """The end of the shortest run from `first` with `target` tokens, or `last`."""
        wanted = int(self.sentences[first]) + max(target, 1)
        ends = self.sentences[first + 1 : last + 1]
        return min(first + 1 + int(np.searchsorted(ends, wanted)), last)

    def find_runs(self, target: int) -> Int64[np.ndarray, " R"]:
        """The first sentence of each run, and the number of sentences.

        A document is cut into runs of whole sentences, each as short as `target` tokens allow;
        its last run may have fewer.
        """
        ends = np.asarray(self.sentences[1:], np.int64)
        starts = np.asarray(self.sentences[:-1], np.int64)
        last = np.repeat(self.documents[1:], np.diff(self.documents))
        following = np.minimum(np.searchsorted(ends, starts + target) + 1, last)
        runs, sentence = [0], 0
        steps = following.tolist()
        while sentence < len(steps):
            sentence = steps[sentence]
            runs.append(sentence)
        return np.array(runs, np.int64)

    def count_tokens(self, vocab_size: int) -> Int64[np.ndarray, " V"]:
        """How often each token occurs."""
        return np.bincount(self.token_ids, minlength=vocab_size)

    def describe_content(self) -> Iterator[Any]:
        """Yields bytes that differ for other tokens or sentences."""
        for array in (self.token_ids, self.sentences):
            yield np.ascontiguousarray(array).data


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Both splits, with one vocabulary. A cached corpus is pickled as a path."""

    splits: Mapping[str, Text]
    vocabulary: tuple[str, ...]  # line number = token id
    lower_case: bool
    left_out: tuple[str, ...] = ()  # files and folders that were not read
    folder: pathlib.Path | None = None  # the cache entry that holds the arrays

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return _open_entry, (self.folder, self.lower_case, self.left_out)
        return Corpus, (self.splits, self.vocabulary, self.lower_case, self.left_out)


def load_corpus(
    data: str,
    vocab_size: int,
    *,
    lower_case: bool = True,
    vocabulary: tuple[str, ...] | None = None,
    version: int = 2,
) -> Corpus:
    """Reads the corpus `data`, splits it by document and tokenizes it; cached on disk.

    The cache is $XDG_CACHE_HOME/attn_jax (by default ~/.cache/attn_jax); an entry is named
    by a digest of the text, the settings and the version of `tokenizers`. An entry that is
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
    documents, left_out = corpora.read_documents(data, version)
    settings = [FORMAT, tokenizers.__version__, vocabulary or vocab_size, lower_case]
    digest = hashlib.sha256(json.dumps([settings, documents]).encode()).hexdigest()
    folder = _cache_folder() / f"text-{digest[:32]}"
    if folder.is_dir():
        try:
            _check_entry(folder)
            return _open_entry(folder, lower_case, left_out)
        except (OSError, ValueError) as error:
            logging.warning("%s is damaged (%s) and is built again.", folder, error)
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


def build_corpus(
    documents: Sequence[corpora.Document],
    vocab_size: int,
    lower_case: bool,
    vocabulary: tuple[str, ...] | None = None,
) -> Corpus:
    """Splits by document, trains a vocabulary unless one is given, and tokenizes.

    Raises:
        ValueError: a split has no text, or half of its tokens are unknown.
    """
    held_out = corpora.choose_held_out([document.key for document in documents])
    parts = {
        "train": [d for d in documents if d.key not in held_out],
        "validation": [d for d in documents if d.key in held_out],
    }
    if vocabulary is None:
        vocabulary = train_vocabulary(
            [s for document in parts["train"] for s in document.sentences],
            vocab_size,
            lower_case=lower_case,
        )
    unknown = find_special_ids(vocabulary).unk
    tokenizer = make_tokenizer(vocabulary, lower_case=lower_case)
    splits = {name: tokenize(part, tokenizer) for name, part in parts.items()}
    for name, text in splits.items():
        if not len(text.token_ids):
            raise ValueError(
                f"the {name} split of the corpus has no text; give more documents."
            )
        share = float(np.mean(text.token_ids == unknown))
        if share > UNKNOWN_LIMIT:
            raise ValueError(
                f"the vocabulary does not know {share:.0%} of the {name} split (its "
                "tokens are [UNK]), so predicting them is trivial. Give text in the language "
                "and script of the vocabulary, or train a new one."
            )
    return Corpus(splits, vocabulary, lower_case)


def tokenize(
    documents: Sequence[corpora.Document], tokenizer: tokenizers.Tokenizer
) -> Text:
    """Tokenizes documents; sentences and documents without tokens are left out."""
    token_ids: list[int] = []
    sentences, bounds = [0], [0]
    for document in documents:
        for sentence in document.sentences:
            ids = tokenizer.encode(sentence, add_special_tokens=False).ids
            if ids:  # none for control characters alone
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
    train: Int64[np.ndarray, " V"], held_out: Int64[np.ndarray, " V"]
) -> tuple[float, float]:
    """Returns the unigram (entropy, cross-entropy) of held-out tokens, in nats per token.

    The entropy is the lowest loss that a guess without context can reach, given the
    held-out frequencies; the cross-entropy is the loss of the training frequencies with
    add-one smoothing. A masked language model that uses context must be below both.

    Args:
        train, held_out: how often each token occurs.
    """
    p = held_out / held_out.sum()
    seen = train + 1.0
    own = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
    return own, -float(np.sum(p * np.log(seen / seen.sum())))


# --- cache ----------------------------------------------------------------------------


def _cache_folder() -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "attn_jax"


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
    return Corpus(splits, tuple(vocabulary), lower_case, left_out, folder)
