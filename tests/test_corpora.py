"""Corpora: what is read, how it is cut, what is held out."""

import hashlib
import os
import pathlib
import socket
import sys
import time

import pytest
from invented import documents, write

from attn_jax.data import corpora, stdlib
from attn_jax.data.prose import split_sentences


def test_the_stdlib_is_over_a_megabyte_of_english_and_reading_it_imports_nothing():
    loaded = set(sys.modules)
    documents = corpora.read_documents("stdlib").documents
    assert set(sys.modules) == loaded
    assert len({document.key for document in documents}) == len(documents)
    sentences = [s for document in documents for s in document.sentences]
    assert sum(map(len, sentences)) > 1_000_000
    assert not any(">>>" in s or "::=" in s or "\n" in s for s in sentences)
    assert any(document.key == "json/decoder.py" for document in documents)
    assert any(document.key == "topics/assert" for document in documents)


@pytest.mark.parametrize("topics", [True, False])
def test_a_python_without_documentation_is_refused(tmp_path, monkeypatch, topics):
    if topics:  # but its modules were stripped
        (tmp_path / "pydoc_data").mkdir()
        (tmp_path / "pydoc_data/topics.py").write_text("topics = {'if': 'One or two.'}")
        (tmp_path / "json.py").write_text("x = 1")
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="no corpus 'stdlib'.*config.task.data"):
        corpora.read_documents("stdlib")


def test_docstrings_come_in_the_order_of_the_source():
    source = b'''
"""Module."""
def f():
    """Function."""
    if True:
        class Inner:
            """Inner class."""
class C:
    """Class."""
    async def g(self):
        """Method."""
'''
    found = ["Module.", "Function.", "Inner class.", "Class.", "Method."]
    assert stdlib._find_docstrings(source) == found


@pytest.mark.parametrize(
    ("prose", "sentences"),
    [
        ("One two three. Four five six!", ["One two three.", "Four five six!"]),
        ("One two\n  three\tfour", ["One two three four"]),
        ("One two three\n\nfour five six", ["One two three", "four five six"]),
        ("See e.g. The small Print here.", ["See e.g. The small Print here."]),
        ('He said "stop now." Then he left.', ['He said "stop now."', "Then he left."]),
        ("About version 3.11 of it. x", ["About version 3.11 of it. x"]),
        ("Title of this\n=====\nmore of it", ["Title of this more of it"]),
        ("- One two three\n- Four five six", ["One two three", "Four five six"]),
        ("See how it works:\n>>> f(x)\nresult is here", ["See how it works:"]),
        ("stmt ::= one or two\n", []),
        ("x = f[0] + {a: b} # one two three", []),
        ("Two words.", []),
    ],
)
def test_sentences_are_cut_at_stops_bullets_and_blank_lines(prose, sentences):
    assert list(split_sentences(prose)) == sentences


def test_a_file_is_read_line_by_line_as_it_is(tmp_path):
    found = corpora.read_documents(
        write(tmp_path / "corpus.txt", documents())
    ).documents
    assert [list(document.sentences) for document in found] == documents()


def fill_folder(root, names):
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        stem = file.stem.strip(".")
        file.write_text(f"One is {stem}{stem}. Two is not.")


def test_each_text_file_of_a_folder_is_a_document_and_the_rest_is_named(tmp_path):
    fill_folder(tmp_path, ["a.txt", "b.TXT", "deep/er/c.txt", "d.txt"])
    fill_folder(tmp_path, ["notes.md", ".e.txt", ".git/f.txt"])
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to("nowhere")
    found = corpora.read_documents(str(tmp_path))
    firsts = sorted(document.sentences[0] for document in found.documents)
    assert firsts == ["One is aa.", "One is bb.", "One is cc.", "One is dd."]
    rest = (".e.txt", ".git/", "gone.txt", "loop", "notes.md", "pipe.txt")
    assert found.left_out == rest


def test_a_folder_without_texts_says_what_it_holds(tmp_path):
    fill_folder(tmp_path, ["a.md", "b.md", "c.md", "d.md"])
    with pytest.raises(ValueError, match=r"0 different document.*left out: a.md, b"):
        corpora.read_documents(str(tmp_path))


def test_the_names_of_files_change_nothing(tmp_path):
    for number, folder in enumerate(["one", "two"]):
        for i, letter in enumerate("abcdefghijklmnopqrst"):
            fill_folder(tmp_path / folder, [f"{letter}.txt"])
            file = tmp_path / folder / f"{letter}.txt"
            if number:
                file.rename(file.with_name(f"{7 * i % 23}-other.txt"))
    one, two = (corpora.read_documents(str(tmp_path / f)) for f in ("one", "two"))
    assert one == two


def test_version_1_splits_by_the_names_of_files_as_earlier_releases_did(tmp_path):
    fill_folder(tmp_path, ["d.txt", "a.txt", "c.txt", "b.txt", "deep/e.txt", "f.TXT"])
    found = corpora.read_documents(str(tmp_path), 1)
    assert [d.key for d in found.documents] == ["a.txt", "b.txt", "c.txt", "d.txt"]
    (tmp_path / "all.txt").write_text("one\n\ntwo\n\nthree\n\nfour\n")
    found = corpora.read_documents(str(tmp_path / "all.txt"), 1)
    assert [d.key for d in found.documents] == [f"all.txt:{i}" for i in range(4)]


def test_repeated_documents_are_on_one_side_and_count_once(tmp_path):
    lines = [["a b."], ["c d."], ["a b."], ["e f."], ["g h."], ["a b."]]
    found = corpora.read_documents(write(tmp_path / "corpus.txt", lines)).documents
    assert found[0].key == found[2].key == found[5].key
    with pytest.raises(ValueError, match="holds 3 different document"):
        corpora.read_documents(write(tmp_path / "few.txt", lines[:4]))


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "line", "sparse"])
def test_a_file_that_may_not_end_is_refused_at_once(tmp_path, monkeypatch, kind):
    path = tmp_path / "corpus.txt"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        path = pathlib.Path("corpus.sock")  # a socket's path may have 107 characters
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(path))
    else:
        with path.open("wb") as file:
            if kind == "line":
                file.write(b"word " * 250_000)
            file.truncate(10**9)  # a hole: no disk is used
    match = "is no regular file" if kind in ("fifo", "device", "socket") else "byte 0"
    began = time.perf_counter()
    with pytest.raises(ValueError, match=match):
        corpora.read_documents(str(path))
    assert time.perf_counter() - began < 5  # reading a gigabyte took longer


def test_more_text_than_fits_into_memory_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "corpus.txt", documents())
    corpora.read_documents(path)
    monkeypatch.setattr(corpora, "MEMORY_FACTOR", 1e12)
    with pytest.raises(ValueError, match="GB of text take about .* this machine has"):
        corpora.read_documents(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "corpus.txt: no text from byte 0 to its end at 0"),
        (b" \n\n \n", "corpus.txt: no text from byte 0 to its end at 5"),
        (b"fine\none\0two\n", "corpus.txt: byte 8 is NUL"),
        ("one".encode("utf-16"), r"byte 0 \(0xff\) is not UTF-8"),
        (b"fine\n\xff\n", r"corpus.txt: byte 5 \(0xff\) is not UTF-8"),
        (b"one\n\ntwo\n", "holds 2 different document.*4 are the least"),
    ],
)
def test_a_file_that_is_no_corpus_is_refused(tmp_path, content, message):
    (tmp_path / "corpus.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        corpora.read_documents(str(tmp_path / "corpus.txt"))


def test_a_bad_file_of_a_folder_is_named(tmp_path):
    (tmp_path / "good.txt").write_text("One two three.")
    (tmp_path / "zz.txt").write_bytes(b"One two three.\x80")
    with pytest.raises(ValueError, match="zz.txt: byte 14"):
        corpora.read_documents(str(tmp_path))


def test_a_corpus_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'absent' does not exist.*'stdlib'"):
        corpora.read_documents("absent")


def test_a_tenth_of_the_documents_is_held_out_whatever_their_order():
    names = [f"document {i}" for i in range(200)]
    held = corpora.choose_held_out(names)
    assert len(held) == 20
    assert corpora.choose_held_out(names[::-1]) == held
    # A document that stands there 70 times counts once.
    first = min(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert len(corpora.choose_held_out([*names, *[first] * 70])) == 20
