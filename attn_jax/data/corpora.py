"""Reads plain text as documents of sentences: embedded documentation, or the user's files.

Next-sentence pairs are drawn within a document, and documents are held out whole.
"""

import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from attn_jax.data import bounded, prose, stdlib
from attn_jax.folder import expand_local

HELD_OUT = 0.1  # share of the documents
MAX_LINE = 1_000_000  # bytes: a line is held in memory and tokenized as a whole
MEMORY_FACTOR = 20  # bytes of memory per byte of text; 16 were measured (3.4 MB)
# Two for training and two held out, since a pair may need another document.
LEAST_DOCUMENTS = 4


class Document(NamedTuple):
    key: str  # decides whether the document is held out
    sentences: tuple[str, ...]


class Documents(NamedTuple):
    """What was read, and the names of the files and folders that were not."""

    documents: list[Document]
    left_out: tuple[str, ...] = ()


def read_documents(data: str, version: int = 2) -> Documents:
    """Reads the documents of a corpus; they and their order do not depend on file names.

    Args:
        data: one of
            "stdlib": the English documentation that comes with Python: the language
                reference (`pydoc_data.topics`, each topic a document) and the standard
                library's docstrings (each module a document). Both are read as source
                text; no module is imported.
            "FILE": UTF-8 text with one sentence a line and a blank line between
                documents, used as it is (the format of google-research/bert).
            "DIR": each *.txt in it, at any depth, is a document of UTF-8 prose, split by
                `prose.split_sentences`. Hidden files, links to folders and other suffixes are
                left out.
        version: of the rules for files and folders. Version 1 is that of runs before
            `config.task.corpus_version` existed: the file's name decides which documents
            are held out, and only the top folder is read, in the order of names.

    Raises:
        ValueError: the path does not exist; a file is not regular, has no text, is not
            UTF-8, or holds a NUL or a line above `MAX_LINE` bytes (the message has the
            byte); the text is too large for this machine's memory; there are fewer than
            four different documents; this Python has no docstrings.
    """
    path = expand_local(data)
    left_out: tuple[str, ...] = ()
    if data == "stdlib":
        documents = [
            Document(*d) for d in stdlib.read_stdlib(sysconfig.get_path("stdlib"))
        ]
    elif not data or not path.exists():
        where = "" if path.is_absolute() else f" (relative to {pathlib.Path.cwd()})"
        raise ValueError(
            f"{data!r} does not exist{where if data else ''}. Set config.task.data to "
            "'stdlib', to a text file (a sentence a line, a blank line between "
            "documents) or to a folder of *.txt."
        )
    elif path.is_dir():
        documents, left_out = _read_folder(path, version)
    else:
        documents = _read_file(path, version)
    different = len({document.key for document in documents})
    if different < LEAST_DOCUMENTS:
        raise ValueError(
            f"{data!r} holds {different} different document(s)"
            + (f" (left out: {bounded.join_names(left_out, 5)})" if left_out else "")
            + f"; {LEAST_DOCUMENTS} are the least, since some are held out and pairs "
            "need two. In one file, a blank line separates documents; in a folder, "
            "each *.txt is one."
        )
    return Documents(documents, left_out)


def choose_held_out(keys: Sequence[str]) -> set[str]:
    """Chooses a tenth of the different keys, at least two: those of the least SHA-256."""
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).digest())
    return set(ranked[: max(2, round(HELD_OUT * len(ranked)))])


def read_text(path: pathlib.Path | epath.Path, max_bytes: int | None = None) -> str:
    """Reads a UTF-8 file line by line; its lines end in "\n".

    Raises:
        ValueError: as `read_documents`; the file has more than `max_bytes`.
    """
    if not path.is_file():  # a FIFO or a device may never end
        raise ValueError(f"{path} is no regular file. Give a file of UTF-8 text.")
    lines, start = [], 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise ValueError(
                    f"{path}: the line at byte {start} is longer than {MAX_LINE:,} "
                    "bytes. Put one sentence or paragraph on a line."
                )
            try:
                lines.append(line.decode("utf-8-sig" if start == 0 else "utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: byte {start + error.start} (0x{line[error.start]:02x}) is "
                    "not UTF-8. Convert the file, for example with iconv -t utf-8."
                ) from error
            if (nul := line.find(0)) >= 0:
                raise ValueError(
                    f"{path}: byte {start + nul} is NUL, so this is no UTF-8 text. "
                    "Convert the file, for example with iconv -t utf-8."
                )
            start += len(line)
            if max_bytes is not None and start > max_bytes:
                raise ValueError(f"{path} has more than {max_bytes:,} bytes.")
    text = "".join(lines).replace("\r\n", "\n")
    if not text.strip():
        raise ValueError(f"{path}: no text from byte 0 to its end at {start}.")
    return text


def _read_file(path: pathlib.Path, version: int) -> list[Document]:
    _check_memory([path])
    parts = prose.PARAGRAPH.split(read_text(path))
    lines = [tuple(filter(None, map(str.strip, part.splitlines()))) for part in parts]
    return [
        Document(
            f"{path.name}:{number}" if version == 1 else _content_key(sentences),
            sentences,
        )
        for number, sentences in enumerate(filter(None, lines))
    ]


def _read_folder(
    root: pathlib.Path, version: int
) -> tuple[list[Document], tuple[str, ...]]:
    left_out: tuple[str, ...] = ()
    if version == 1:
        files = sorted(root.glob("*.txt"))
    else:
        files, left_out = _find_text_files(root)
    _check_memory(files)
    documents = []
    for file in files:
        sentences = tuple(prose.split_sentences(read_text(file)))
        if not sentences:
            raise ValueError(
                f"{file}: no sentence of three words from byte 0 to its end. Remove "
                "the file, or give one file with a sentence per line, which is used as it "
                "is."
            )
        key = file.name if version == 1 else _content_key(sentences)
        documents.append(Document(key, sentences))
    if version > 1:
        documents.sort()
    return documents, left_out


def _content_key(sentences: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sentences).encode()).hexdigest()


def _find_text_files(
    root: pathlib.Path,
) -> tuple[list[pathlib.Path], tuple[str, ...]]:
    """Finds the *.txt below `root`, sorted, and the names of what else is there.

    Links to folders are not followed, so there are no loops.
    """
    files, left_out, pending = [], [], [root]
    while pending:
        folder = pending.pop()
        for entry in os.scandir(folder):
            path = pathlib.Path(entry.path)
            name = path.relative_to(root).as_posix()
            hidden = entry.name.startswith(".")
            if entry.is_dir(follow_symlinks=False):
                if hidden:
                    left_out.append(f"{name}/")
                else:
                    pending.append(path)
            elif not hidden and path.suffix.lower() == ".txt" and entry.is_file():
                files.append(path)
            else:
                left_out.append(name)
    shown = (name.encode(errors="backslashreplace").decode() for name in left_out)
    return sorted(files), tuple(sorted(shown))


def _check_memory(files: Sequence[pathlib.Path]) -> None:
    """Raises ValueError if tokenizing these files would fill this machine's memory."""
    size = sum(file.stat().st_size for file in files if file.is_file())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size * MEMORY_FACTOR > memory:
        raise ValueError(
            f"{size / 1e9:.1f} GB of text take about {size * MEMORY_FACTOR / 1e9:.0f} GB "
            f"of memory to tokenize, and this machine has {memory / 1e9:.0f}. Give less "
            "text, or tokenize it where there is more memory and copy the cache."
        )
