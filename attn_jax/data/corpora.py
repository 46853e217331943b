"""Plain text as documents of sentences: embedded documentation, or files of one's own.

A document is what next-sentence pairs are drawn from, and what is held out whole.
"""

import ast
import functools
import hashlib
import pathlib
import re
import sysconfig
from collections.abc import Iterator, Sequence
from typing import NamedTuple

HELD_OUT = 0.1  # share of the documents
LEAST_DOCUMENTS = (
    4  # two for training and two held out: a pair may need another document
)
# Folders of the standard library with tests, third-party code or mere tables.
SKIPPED = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages"),
    *("lib2to3", "encodings", "turtledemo", "__pycache__"),
}
UNDOCUMENTED = 100  # fewer documented modules than this: the docstrings were stripped

PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
BULLET = re.compile(r"\s*(?:[-*+•o]|\d+[.)])\s+(?=\S)")
# A full stop, closing quotes and brackets, white space, and a capital in what follows.
SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))(?<!e\.g\.)(?<!i\.e\.)\s+(?=[\"'(\[`*]*[A-Z])"
)
WORD = re.compile(r"[^\W\d_]{2,}")


class Document(NamedTuple):
    name: str  # what decides whether it is held out
    sentences: tuple[str, ...]


def read_documents(data: str) -> list[Document]:
    """The documents of a corpus, in an order that depends on their names alone.

    Args:
        data: one of
            "stdlib": the English documentation that comes with Python: the language
                reference (`pydoc_data.topics`, each topic a document) and the standard
                library's docstrings (each module a document). Both are read as source
                text; no module is imported.
            "FILE": UTF-8 text with one sentence a line and a blank line between
                documents, taken as it is (the format of google-research/bert).
            "DIR": each *.txt in it is a document of UTF-8 prose, cut by `sentences_of`.

    Raises:
        ValueError: nothing there; a file without text or that is not UTF-8, with the
            byte where that shows; fewer than four documents; a Python without
            docstrings.
    """
    path = pathlib.Path(data).expanduser()
    if data == "stdlib":
        documents = _stdlib(sysconfig.get_path("stdlib"))
    elif data and path.is_file():
        documents = _from_file(path)
    elif data and path.is_dir():
        documents = _from_folder(path)
    else:
        raise ValueError(
            f"{data!r} does not exist. Set config.task.data to 'stdlib', to a text "
            "file (a sentence a line, a blank line between documents) or to a folder "
            "of *.txt."
        )
    if len(documents) < LEAST_DOCUMENTS:
        raise ValueError(
            f"{data!r} holds {len(documents)} document(s); {LEAST_DOCUMENTS} are the "
            "least, since some are held out and pairs need two. In one file, a blank "
            "line separates documents."
        )
    return documents


def held_out(names: Sequence[str]) -> set[str]:
    """A tenth of the names, two at least: those of the smallest SHA-256."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ranked[: max(2, round(HELD_OUT * len(names)))])


def sentences_of(text: str) -> Iterator[str]:
    """The English sentences of prose with some markup, each with single spaces.

    A blank line ends a sentence, so does a bullet; within a paragraph, a full stop, "!"
    or "?" does before a capital letter. Left out are the rest of a paragraph from ">>>"
    on, grammar rules ("::="), underlines, and what is no prose: fewer than three words,
    or over a fifth of the characters neither letter nor space.
    """
    for paragraph in PARAGRAPH.split(text):
        parts: list[list[str]] = [[]]
        for line in paragraph.splitlines():
            if line.lstrip().startswith(">>>"):
                break
            if "::=" in line or not any(map(str.isalpha, line)):
                continue
            if bullet := BULLET.match(line):
                line = line[bullet.end() :]
                parts.append([])
            parts[-1].append(line)
        for part in parts:
            for sentence in SENTENCE_END.split(" ".join(" ".join(part).split())):
                if _is_prose(sentence):
                    yield sentence


def _is_prose(sentence: str) -> bool:
    letters = sum(map(str.isalpha, sentence)) + sentence.count(" ")
    return letters >= 0.8 * len(sentence) and len(WORD.findall(sentence)) >= 3


def _from_file(path: pathlib.Path) -> list[Document]:
    parts = PARAGRAPH.split(_decoded(path))
    lines = [tuple(filter(None, map(str.strip, part.splitlines()))) for part in parts]
    return [
        Document(f"{path.name}:{number}", sentences)
        for number, sentences in enumerate(filter(None, lines))
    ]


def _from_folder(path: pathlib.Path) -> list[Document]:
    documents = []
    for file in sorted(path.glob("*.txt")):
        sentences = tuple(sentences_of(_decoded(file)))
        if not sentences:
            raise ValueError(
                f"{file}: no sentence of three words from byte 0 to its end. Remove "
                "the file, or give one file with a sentence a line, which is taken as "
                "it is."
            )
        documents.append(Document(file.name, sentences))
    return documents


def _decoded(path: pathlib.Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8. "
            "Convert the file, for example with iconv -t utf-8."
        ) from error
    if not text.strip():
        raise ValueError(f"{path}: no text from byte 0 to its end at {len(data)}.")
    return text.replace("\r\n", "\n")


@functools.lru_cache(maxsize=1)  # parsing takes seconds, and every split asks for it
def _stdlib(folder: str) -> list[Document]:
    """Topics and modules below `folder`; a paragraph seen before is left out, for
    modules that copy each other's docstrings would tell what is held out."""
    root = pathlib.Path(folder)
    topics = root / "pydoc_data" / "topics.py"
    if not topics.is_file():
        raise ValueError(
            f"this Python has no {topics}, so there is no corpus 'stdlib' (a zipped or "
            "stripped distribution). Set config.task.data to a text file or a folder."
        )
    texts = {f"topics/{k}": [text] for k, text in sorted(_topics(topics).items())}
    modules = {}
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if SKIPPED.isdisjoint(name.split("/")) and file != topics:
            if docstrings := _docstrings(file.read_bytes()):
                modules[name] = docstrings
    if len(modules) < UNDOCUMENTED:
        raise ValueError(
            f"only {len(modules)} modules below {root} have docstrings, so there is no "
            "corpus 'stdlib' (a zipped or stripped distribution). Set config.task.data "
            "to a text file or a folder."
        )
    seen: set[str] = set()
    documents = []
    for name, parts in (texts | modules).items():
        sentences: list[str] = []
        for paragraph in PARAGRAPH.split("\n\n".join(parts)):
            words = " ".join(paragraph.split())
            if words not in seen:
                sentences += sentences_of(paragraph)
            seen.add(words)
        if sentences:
            documents.append(Document(name, tuple(sentences)))
    return documents


def _topics(file: pathlib.Path) -> dict[str, str]:
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Assign):
            return ast.literal_eval(node.value)
    raise ValueError(
        f"{file} assigns no topics. Set config.task.data to a text file or a folder."
    )


def _docstrings(source: bytes) -> list[str]:
    """Those of the module, its classes and functions, in the order of the source."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, documented):
            if text := ast.get_docstring(node):
                yield text.encode("utf-8", "replace").decode()  # a lone surrogate: "?"
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield from walk(child)

    try:
        return list(walk(ast.parse(source)))
    except SyntaxError:  # a template, or a file for another version of Python
        return []
