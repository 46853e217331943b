"""Reads plain text as documents of sentences: embedded documentation, or the user's files.

Next-sentence pairs are drawn within a document, and documents are held out whole.
"""

import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Iterator, Sequence
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


class Files(NamedTuple):
    """The files of a corpus, and the names of files and folders that are not read."""

    paths: tuple[pathlib.Path, ...]
    left_out: tuple[str, ...] = ()


def read_documents(data: str, version: int = 3) -> Documents:
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
        version: of the rules for files and folders. Version 2 splits English prose only.
            Version 1 is that of runs before `config.task.corpus_version` existed: the file's
            name decides which documents are held out, and only the top folder is read, in
            the order of names.

    Raises:
        ValueError: the path does not exist; a file is not regular, has no text, is not
            UTF-8, or holds a NUL or a line above `MAX_LINE` bytes (the message has the
            byte); the text is too large for this machine's memory; there are fewer than
            four different documents; this Python has no docstrings.
    """
    files = find_files(data, version)
    if data == "stdlib":
        found = stdlib.read_stdlib(sysconfig.get_path("stdlib"))
        documents = [Document(*d) for d in found]
    else:
        _check_memory(files.paths)
        read = _read_folder if expand_local(data).is_dir() else _read_file
        documents = read(files.paths, version)
    different = len({document.key for document in documents})
    if different < LEAST_DOCUMENTS:
        left_out = bounded.join_names(files.left_out, 5)
        raise ValueError(
            f"{data!r} holds {different} different document(s)"
            + (f" (left out: {left_out})" if left_out else "")
            + f"; {LEAST_DOCUMENTS} are the least, since some are held out and pairs "
            "need two. In one file, a blank line separates documents; in a folder, "
            "each *.txt is one."
        )
    return Documents(documents, files.left_out)


def find_files(data: str, version: int = 3) -> Files:
    """Finds the files that `read_documents` reads; raises ValueError if there are none."""
    if data == "stdlib":
        return Files(tuple(stdlib.find_sources(sysconfig.get_path("stdlib"))))
    path = expand_local(data)
    if not data or not path.exists():
        where = "" if path.is_absolute() else f" (relative to {pathlib.Path.cwd()})"
        raise ValueError(
            f"{data!r} does not exist{where if data else ''}. Set config.task.data to "
            "'stdlib', to a text file (a sentence a line, a blank line between "
            "documents), to a folder of *.txt, or to one that prepare-text wrote."
        )
    if not path.is_dir():
        return Files((path,))
    if version == 1:
        return Files(tuple(sorted(path.glob("*.txt"))))
    return find_text_files(path)


def digest_files(data: str, files: Files, version: int = 3) -> str:
    """A digest of what `read_documents` reads, without splitting it into sentences.

    It covers the names of files only where documents depend on them.
    """
    root = pathlib.Path(sysconfig.get_path("stdlib")) if data == "stdlib" else None
    entries = []
    for path in files.paths:
        name = "" if version > 1 else path.name
        if root is not None:
            name = path.relative_to(root).as_posix()
        check_text_file(path)
        with path.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        entries.append((name, content))
    is_folder = root is None and expand_local(data).is_dir()
    described = repr((version, is_folder, sorted(entries)))
    return hashlib.sha256(described.encode()).hexdigest()


def choose_held_out(keys: Sequence[str]) -> set[str]:
    """Chooses a tenth of the different keys, at least two: those of the least SHA-256."""
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).digest())
    return set(ranked[: max(2, round(HELD_OUT * len(ranked)))])


def read_text(path: pathlib.Path | epath.Path, max_bytes: int | None = None) -> str:
    """Reads a UTF-8 file line by line; its lines end in "\n".

    Raises:
        ValueError: as `read_documents`; the file has more than `max_bytes`.
    """
    lines, end = [], 0
    for _, end, line in read_lines(path):
        lines.append(line)
        if max_bytes is not None and end > max_bytes:
            raise ValueError(f"{path} has more than {max_bytes:,} bytes.")
    text = "".join(lines)
    if not text.strip():
        raise ValueError(f"{path}: no text from byte 0 to its end at {end}.")
    return text


def read_lines(
    path: pathlib.Path | epath.Path, start: int = 0, max_line: int = MAX_LINE
) -> Iterator[tuple[int, int, str]]:
    """Yields (first byte, byte after it, line) of each line of a UTF-8 file.

    Lines end in "\n", also where they end in "\r\n" in the file.

    Args:
        start: lines that begin before this byte are left out.

    Raises:
        ValueError: as `read_documents`.
    """
    check_text_file(path)
    with path.open("rb") as file:
        end = start
        if start:  # the line of the byte before it is another reader's
            file.seek(start - 1)
            while (skipped := file.readline(max_line)) and skipped[-1:] != b"\n":
                pass
            end = file.tell()
        while line := file.readline(max_line + 1):
            begin, end = end, end + len(line)
            if len(line) > max_line:
                raise ValueError(
                    f"{path}: the line at byte {begin} is longer than {max_line:,} "
                    "bytes. Put one sentence or paragraph on a line."
                )
            try:
                text = line.decode("utf-8-sig" if begin == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: byte {begin + error.start} (0x{line[error.start]:02x}) is "
                    "not UTF-8. Convert the file, for example with iconv -t utf-8."
                ) from error
            if (nul := line.find(0)) >= 0:
                raise ValueError(
                    f"{path}: byte {begin + nul} is NUL, so this is no UTF-8 text. "
                    "Convert the file, for example with iconv -t utf-8."
                )
            yield begin, end, text.replace("\r\n", "\n")


def check_text_file(path: pathlib.Path | epath.Path) -> None:
    if not path.is_file():  # a FIFO or a device may never end
        raise ValueError(f"{path} is no regular file. Give a file of UTF-8 text.")


def _read_file(paths: Sequence[pathlib.Path], version: int) -> list[Document]:
    [path] = paths
    parts = prose.PARAGRAPH.split(read_text(path))
    lines = [tuple(filter(None, map(str.strip, part.splitlines()))) for part in parts]
    return [
        Document(
            f"{path.name}:{number}" if version == 1 else find_key(sentences),
            sentences,
        )
        for number, sentences in enumerate(filter(None, lines))
    ]


def _read_folder(paths: Sequence[pathlib.Path], version: int) -> list[Document]:
    documents = []
    for file in paths:
        sentences = tuple(prose.split_sentences(read_text(file), version))
        if not sentences:
            raise ValueError(
                f"{file}: no sentence of three words from byte 0 to its end. Remove "
                "the file, or give one file with a sentence per line, which is used as it "
                "is."
            )
        key = file.name if version == 1 else find_key(sentences)
        documents.append(Document(key, sentences))
    if version > 1:
        documents.sort()
    return documents


def find_key(sentences: Sequence[str]) -> str:
    """The key of a document, by its content."""
    return hashlib.sha256("\n".join(sentences).encode()).hexdigest()


def find_text_files(root: pathlib.Path, suffixes: Sequence[str] = (".txt",)) -> Files:
    """Finds the files below `root`, sorted, and the names of what else is there.

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
            elif not hidden and path.suffix.lower() in suffixes and entry.is_file():
                files.append(path)
            else:
                left_out.append(name)
    shown = (name.encode(errors="backslashreplace").decode() for name in left_out)
    return Files(tuple(sorted(files)), tuple(sorted(shown)))


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
