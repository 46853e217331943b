"""Sentences with a tag for each word, in the files of CoNLL."""

import pathlib
from typing import NamedTuple

from attn_jax.data import bounded, corpora
from attn_jax.folder import expand_local

FILES = {
    "train": ("train.txt", "eng.train"),
    "validation": ("valid.txt", "dev.txt", "eng.testa"),
    "test": ("test.txt", "eng.testb"),
}


class Tagged(NamedTuple):
    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_split(data: str, split: str) -> list[Tagged]:
    """Reads the sentences of a split of a folder with one of the names of `FILES`.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    folder = expand_local(data)
    names = FILES.get(split, ())
    for name in names:
        if (folder / name).exists():
            return read_conll(folder / name)
    raise ValueError(
        f"{data!r} has no split {split!r}; it must be a folder with "
        f"{' or '.join(names) or 'train.txt, valid.txt and test.txt'}."
    )


def read_conll(path: pathlib.Path) -> list[Tagged]:
    """Reads the sentences of a file of CoNLL; lines "-DOCSTART-" are left out.

    Raises:
        ValueError: the file is no UTF-8 text; a line has no tag.
    """
    sentences: list[Tagged] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*corpora.read_text(path).split("\n"), ""], 1):
        cells = line.split()
        if not cells or cells[0] == "-DOCSTART-":
            if words:
                sentences.append(Tagged(tuple(words), tuple(tags)))
            words, tags = [], []
        elif len(cells) < 2 or (cells[-1] != "O" and cells[-1][:2] not in ("B-", "I-")):
            raise ValueError(
                f"{bounded.printable(path)}, line {number}: {line!r:.50} does not end in a tag "
                "(O, B-TYPE or I-TYPE)."
            )
        else:
            words.append(cells[0])
            tags.append(cells[-1])
    if not sentences:
        raise ValueError(f"{bounded.printable(path)} holds no sentences.")
    return sentences
