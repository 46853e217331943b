"""Corpora: what is read, how it is cut, what is held out."""

import sys

import pytest
from invented import documents, write

from attn_jax.data import corpora


def test_the_stdlib_is_over_a_megabyte_of_english_and_reading_it_imports_nothing():
    loaded = set(sys.modules)
    documents = corpora.read_documents("stdlib")
    assert set(sys.modules) == loaded
    assert len({document.name for document in documents}) == len(documents)
    sentences = [s for document in documents for s in document.sentences]
    assert sum(map(len, sentences)) > 1_000_000
    assert not any(">>>" in s or "::=" in s or "\n" in s for s in sentences)
    assert any(document.name == "json/decoder.py" for document in documents)
    assert any(document.name == "topics/assert" for document in documents)


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
    assert corpora._docstrings(source) == found


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
    assert list(corpora.sentences_of(prose)) == sentences


def test_a_file_is_read_line_by_line_as_it_is(tmp_path):
    found = corpora.read_documents(write(tmp_path / "corpus.txt", documents()))
    assert [list(document.sentences) for document in found] == documents()


def test_each_text_file_of_a_folder_is_a_document(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(f"One is {name}{name}. Two is not.")
    (tmp_path / "notes.md").write_text("Not read at all.")
    found = corpora.read_documents(str(tmp_path))
    assert [document.name for document in found] == [f"{n}.txt" for n in "abcd"]
    assert found[1].sentences == ("One is bb.", "Two is not.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "corpus.txt: no text from byte 0 to its end at 0"),
        (b" \n\n \n", "corpus.txt: no text from byte 0 to its end at 5"),
        (b"fine\n\xff\n", r"corpus.txt: byte 5 \(0xff\) is not UTF-8"),
        (b"one\n\ntwo\n", "holds 2 document.*4 are the least"),
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
    held = corpora.held_out(names)
    assert len(held) == 20
    assert corpora.held_out(names[::-1]) == held
