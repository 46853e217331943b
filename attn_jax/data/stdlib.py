"""Reads the English documentation that comes with Python, as source text."""

import ast
import functools
import pathlib
from collections.abc import Iterator

from attn_jax.data import prose

# Folders of the standard library with tests, third-party code or tables only.
SKIPPED = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages"),
    *("lib2to3", "encodings", "turtledemo", "__pycache__"),
}
LEAST_MODULES = 100  # with docstrings; if there are fewer, they were stripped


@functools.lru_cache(maxsize=1)  # parsing takes seconds, and every split needs it
def read_stdlib(folder: str) -> list[tuple[str, tuple[str, ...]]]:
    """Returns (name, sentences) of every topic and documented module below `folder`.

    A repeated paragraph is read once: otherwise modules that copy each other's docstrings
    would leak held-out documents into the training split.

    Raises:
        ValueError: this Python comes without documentation.
    """
    root = pathlib.Path(folder)
    topics, *files = find_sources(folder)
    texts = {f"topics/{k}": [text] for k, text in sorted(_parse_topics(topics).items())}
    modules = {}
    for file in files:
        if docstrings := _find_docstrings(file.read_bytes()):
            modules[file.relative_to(root).as_posix()] = docstrings
    if len(modules) < LEAST_MODULES:
        raise ValueError(
            f"only {len(modules)} modules below {root} have docstrings, so there is no "
            "corpus 'stdlib' (a zipped or stripped distribution). Set config.task.data "
            "to a text file or a folder."
        )
    seen: set[str] = set()
    documents = []
    for name, parts in (texts | modules).items():
        sentences: list[str] = []
        for paragraph in prose.PARAGRAPH.split("\n\n".join(parts)):
            words = " ".join(paragraph.split())
            if words not in seen:
                # Version 3 would cut four sentences of 20,985 in two, and change every result.
                sentences += prose.split_sentences(paragraph, version=2)
            seen.add(words)
        if sentences:
            documents.append((name, tuple(sentences)))
    return documents


def find_sources(folder: str) -> list[pathlib.Path]:
    """Finds the files that are read: that of the topics, then the modules.

    Raises:
        ValueError: this Python comes without documentation.
    """
    root = pathlib.Path(folder)
    topics = root / "pydoc_data" / "topics.py"
    if not topics.is_file():
        raise ValueError(
            f"this Python has no {topics}, so there is no corpus 'stdlib' (a zipped or "
            "stripped distribution). Set config.task.data to a text file or a folder."
        )
    return [topics] + [
        file
        for file in sorted(root.rglob("*.py"))
        if SKIPPED.isdisjoint(file.relative_to(root).parts) and file != topics
    ]


def _parse_topics(file: pathlib.Path) -> dict[str, str]:
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Assign):
            return ast.literal_eval(node.value)
    raise ValueError(
        f"{file} assigns no topics. Set config.task.data to a text file or a folder."
    )


def _find_docstrings(source: bytes) -> list[str]:
    """Finds the docstrings of a module, its classes and functions, in source order."""
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
    except SyntaxError:  # a template, or for another version of Python
        return []
