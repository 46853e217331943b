"""A tokenized corpus in many files, which training maps into memory.

`prepare` writes it: a folder with corpus.json (the settings), vocab.txt and, for each shard, its
arrays and an index NUMBER.json with their sizes and digests. Flat arrays, and no compressed
records, so that any run of sentences is read without decoding its neighbors.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Integer

from attn_jax.data import bounded
from attn_jax.data.text import SPLITS, Corpus, Text
from attn_jax.data.vocabulary import MAX_BYTES, parse_settings, parse_vocabulary
from attn_jax.folder import expand_local

SETTINGS, VOCABULARY = "corpus.json", "vocab.txt"
ARRAYS = ("token_ids", "sentences", "documents", "counts")
FORMAT = 1
OPEN_SHARDS = 1024  # that stay mapped; Linux allows 65,530 maps for a process


class Shards:
    """The texts of one split of all shards, one after the other, with the methods of `Text`.

    Sentences and documents are numbered through all shards.
    """

    def __init__(self, folder: pathlib.Path, split: str, indexes: Sequence[dict]):
        self.folder, self.split = folder, split
        kept = [index for index in indexes if index["splits"][split]["documents"]]
        self.numbers = [index["number"] for index in kept]
        self.parts = [index["splits"][split] for index in kept]
        self.first_sentences = self._add_up("sentences")
        self.first_documents = self._add_up("documents")
        self.read_text = functools.lru_cache(OPEN_SHARDS)(self._read_text)

    def _add_up(self, key: str) -> Int64[np.ndarray, " P"]:
        return np.cumsum([0, *(part[key] for part in self.parts)], dtype=np.int64)

    def _read_text(self, part: int) -> Text:
        stem = self.folder / name_shard(self.numbers[part])
        arrays = (
            np.load(f"{stem}-{self.split}-{name}.npy", mmap_mode="r")
            for name in ARRAYS[:3]
        )
        return Text(*arrays)

    @property
    def num_documents(self) -> int:
        return int(self.first_documents[-1])

    @property
    def num_tokens(self) -> int:
        return sum(part["tokens"] for part in self.parts)

    def find_part(self, sentence: int) -> tuple[Text, int]:
        """(the shard's text of a sentence, the number of its first sentence)."""
        part = int(np.searchsorted(self.first_sentences, sentence, side="right")) - 1
        return self.read_text(part), int(self.first_sentences[part])

    def tokens(self, first: int, last: int) -> Int32[np.ndarray, " L"]:
        text, offset = self.find_part(first)
        return text.tokens(first - offset, last - offset)

    def bounds(self, document: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.first_documents, document, side="right")) - 1
        first, last = self.read_text(part).bounds(
            document - int(self.first_documents[part])
        )
        offset = int(self.first_sentences[part])
        return first + offset, last + offset

    def find_documents(
        self, sentences: Integer[np.ndarray, " R"]
    ) -> Int64[np.ndarray, " R"]:
        found = np.empty(len(sentences), np.int64)
        owners = np.searchsorted(self.first_sentences, sentences, side="right") - 1
        for part in np.unique(owners).tolist():
            chosen = owners == part
            local = sentences[chosen] - self.first_sentences[part]
            found[chosen] = self.read_text(part).find_documents(local)
            found[chosen] += self.first_documents[part]
        return found

    def find_end(self, first: int, last: int, target: int) -> int:
        text, offset = self.find_part(first)
        return text.find_end(first - offset, last - offset, target) + offset

    def find_runs(self, target: int, short: float = 0.0) -> Int64[np.ndarray, " R"]:
        runs = [
            self._read_text(part).find_runs(target, short)[:-1] + first
            for part, first in enumerate(self.first_sentences[:-1])
        ]
        return np.concatenate([*runs, self.first_sentences[-1:]])

    def measure_runs(self, runs: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R-1"]:
        cuts = np.searchsorted(runs, self.first_sentences)
        lengths = [
            self._read_text(part).measure_runs(runs[cut : end + 1] - first)
            for part, (first, cut, end) in enumerate(
                zip(self.first_sentences[:-1], cuts[:-1], cuts[1:], strict=True)
            )
        ]
        return np.concatenate(lengths)

    def count_tokens(self, vocab_size: int) -> Int64[np.ndarray, " V"]:
        counts = np.zeros(vocab_size, np.int64)
        for number in self.numbers:
            stem = self.folder / name_shard(number)
            counts += np.load(f"{stem}-{self.split}-counts.npy")
        return counts

    def describe_content(self) -> Iterator[bytes]:
        """Yields the digests of the shards, which are not read again."""
        for part in self.parts:
            for name in ARRAYS[:2]:
                yield part["files"][name]["sha256"].encode()


def name_shard(number: int) -> str:
    return f"{number:06d}"


def find_prepared(data: str) -> pathlib.Path | None:
    """The folder of `config.task.data`, if it holds a prepared corpus."""
    if data == "stdlib":
        return None
    folder = expand_local(data)
    return folder if is_prepared(folder) else None


def is_prepared(folder: pathlib.Path) -> bool:
    """Whether a folder holds a prepared corpus."""
    return (folder / SETTINGS).is_file()


def read_assets(folder: pathlib.Path) -> dict[str, str]:
    """The vocabulary of a prepared corpus, and how it was used, as assets of a run."""
    settings = read_settings(folder)
    path = folder / VOCABULARY
    if not path.is_file() or bounded.check_regular(path) > MAX_BYTES:
        raise ValueError(f"{path} is missing or too large; prepare the text again.")
    text = path.read_bytes().decode("utf-8", "replace")
    if hashlib.sha256(text.encode()).hexdigest() != settings["vocabulary"]:
        raise ValueError(
            f"{path} is not the vocabulary that the shards were made with; put the file of "
            "the machine that prepared them there."
        )
    known = {"lower_case": settings["lower_case"]}
    return {"vocab.txt": text, "text.json": json.dumps(known)}


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """The settings of a prepared corpus.

    Raises:
        ValueError: corpus.json is damaged, or of a later release.
    """
    path = folder / SETTINGS
    try:
        settings = parse_settings(path.read_text(encoding="utf-8"))
        known = settings["format"], settings["units"], settings["lower_case"]
        settings["vocabulary"], settings["left_out"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare again.") from error
    if known[0] != FORMAT or not isinstance(known[1], int):
        raise ValueError(
            f"{path} has the format {known[0]!r:.20}, but this release reads {FORMAT}; "
            "prepare the text again."
        )
    return settings


def open_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Opens a prepared corpus; nothing but its indexes is read.

    Raises:
        ValueError: a shard is missing or not as long as its index says; a split is empty.
    """
    folder = pathlib.Path(path)
    settings = read_settings(folder)
    pieces = parse_vocabulary(read_assets(folder)["vocab.txt"])
    numbers = range(settings["units"])
    missing = [n for n in numbers if not find_index(folder, n).is_file()]
    if missing:
        names = bounded.join_names([find_index(folder, n).name for n in missing], 5)
        raise ValueError(
            f"{folder} lacks {len(missing):,} of {len(numbers):,} shards: {names}. Run "
            "prepare-text again with the same arguments; it makes what is missing."
        )
    indexes = [read_index(folder, number) for number in numbers]
    splits = {split: Shards(folder, split, indexes) for split in SPLITS}
    for split, text in splits.items():
        if not text.num_documents:
            raise ValueError(
                f"the {split} split of {folder} has no documents; prepare more text, or "
                "change --held_out."
            )
    left_out = tuple(
        [name for name, _ in settings["left_out"]]
        + [name for index in indexes for name, _ in index["left_out"]]
    )
    lower_case = settings["lower_case"]
    reopen = (open_corpus, (str(folder),))
    return Corpus(splits, pieces, lower_case, left_out, folder, reopen)


def find_index(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"{name_shard(number)}.json"


def read_index(folder: pathlib.Path, number: int) -> dict[str, Any]:
    """The index of a shard, whose files have the sizes that it says.

    Raises:
        ValueError: they have not, or the index is damaged.
    """
    path = find_index(folder, number)
    remedy = "delete this index and run prepare-text again, or copy the shard again."
    try:
        index = parse_settings(path.read_text(encoding="utf-8"))
        index["number"], index["left_out"]
        for split in SPLITS:
            for name in ARRAYS:
                file = folder / f"{name_shard(number)}-{split}-{name}.npy"
                wanted = index["splits"][split]["files"][name]["bytes"]
                found = file.stat().st_size if file.is_file() else None
                if found != wanted:
                    is_there = "is missing" if found is None else f"has {found:,} bytes"
                    raise ValueError(f"{file.name} {is_there}, not {wanted:,}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}; {remedy}") from error
    return index


def write_shard(
    folder: pathlib.Path,
    number: int,
    texts: Mapping[str, Text],
    vocab_size: int,
    left_out: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Writes the arrays of a shard, then its index, and returns it.

    A file appears under its name when it is whole.
    """
    splits = {}
    for split, text in texts.items():
        arrays = {**vars(text), "counts": text.count_tokens(vocab_size)}
        files = {}
        for name in ARRAYS:
            path = folder / f"{name_shard(number)}-{split}-{name}.npy"
            temporary = path.with_name(f".{path.name}")
            with temporary.open("wb") as file:
                np.save(file, arrays[name])
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = temporary.stat().st_size
            files[name] = {"bytes": size, "sha256": digest}
            os.replace(temporary, path)
        splits[split] = {
            "documents": text.num_documents,
            "sentences": len(text.sentences) - 1,
            "tokens": text.num_tokens,
            "files": files,
        }
    index = {"number": number, "splits": splits, "left_out": list(left_out)}
    write_whole(find_index(folder, number), json.dumps(index, indent=1))
    return index


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that appears under its name when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
