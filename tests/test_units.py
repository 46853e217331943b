"""Units of text: every document is read by one unit, wherever files are cut."""

import json
import random

import pytest

from attn_jax.data import units
from attn_jax.data.units import Piece, Settings

LINES = Settings(one_sentence_per_line=True)


def read(piece, settings=LINES):
    left_out = []
    found = units.read_piece(piece, settings, lambda *entry: left_out.append(entry))
    return [sentences for _, sentences in found], left_out


def read_in_parts(path, kind, cuts, settings=LINES):
    """The documents of a file that is cut at some bytes."""
    bounds = [0, *cuts, path.stat().st_size]
    pieces = [Piece(str(path), kind, a, b) for a, b in zip(bounds, bounds[1:])]  # noqa: B905
    return [document for piece in pieces for document in read(piece, settings)[0]]


def random_text(draw):
    """Lines of letters, blank lines, lines of spaces, Windows line ends, no last line end."""
    ends = ["\n", "\r\n"]
    lines = ["", "", " \t", "a b.", "é ü.", "words of a line.", "x" * 40]
    text = "".join(draw.choice(lines) + draw.choice(ends) for _ in range(30))
    return text + draw.choice(["", "the last one."])


def test_a_file_of_sentences_has_the_same_documents_wherever_it_is_cut(tmp_path):
    draw = random.Random(0)
    path = tmp_path / "text.txt"
    several = 0
    for _ in range(40):
        path.write_bytes(random_text(draw).encode())
        size = path.stat().st_size
        whole = read_in_parts(path, "lines", [])
        several += len(whole) > 1
        for cut in range(1, size):
            assert read_in_parts(path, "lines", [cut]) == whole
        cuts = sorted(draw.sample(range(1, size), 5))
        assert read_in_parts(path, "lines", cuts) == whole
    assert several > 30


def test_documents_are_separated_by_blank_lines_only(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\na b.\nc d.\n \t\n\ne f.\n")
    assert read_in_parts(path, "lines", []) == [("a b.", "c d."), ("e f.",)]


def test_lines_of_json_are_read_once_wherever_the_file_is_cut(tmp_path):
    path = tmp_path / "text.jsonl"
    texts = ["a b.\nc d.", "é" * 20, "g.", "i j k."]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join([*lines[:2], "", *lines[2:]]), encoding="utf-8")
    whole = [tuple(text.split("\n")) for text in texts]
    for cut in range(path.stat().st_size):
        assert read_in_parts(path, "jsonl", [cut] if cut else []) == whole


@pytest.mark.parametrize(
    "line, message",
    [
        ("[1]", "line 3 has no text"),
        ('{"body": "a"}', "line 3 has no 'text'"),
        ('{"text": 1}', "line 3 has no text"),
        ('{"text": ', "line 3 is no JSON"),
    ],
)
def test_a_broken_line_of_json_is_named(tmp_path, line, message):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a b."}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=f"{path}, {message}.*--json_key"):
        read_in_parts(path, "jsonl", [])
    with pytest.raises(ValueError, match=message):  # also by the unit that begins there
        read(Piece(str(path), "jsonl", 18, 40))


def test_text_that_is_not_utf_8_is_refused_with_file_and_byte(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"a b.\n\nc \xe9.\n")
    for start in (0, 5):
        with pytest.raises(ValueError, match=f"{path}: byte 8 .* not UTF-8"):
            read(Piece(str(path), "lines", start, 11))


def test_prose_is_one_document_and_one_without_sentences_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("This is one sentence. This is the second one.\n\nAnd a third one.")
    sentences = [
        "This is one sentence.",
        "This is the second one.",
        "And a third one.",
    ]
    assert read(Piece(str(path), "prose", 0, 50), Settings()) == (
        [tuple(sentences)],
        [],
    )
    path.write_text("No.")
    found, left_out = read(Piece(str(path), "prose", 0, 3), Settings())
    assert not found
    assert left_out == [(str(path), "no sentence")]


def test_units_hold_every_file_once_and_name_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 100)
    for name, size in [("b.txt", 60), ("sub/a.txt", 30), ("c.TXT", 20), ("d.txt", 0)]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x" * size)
    (tmp_path / "image.png").write_text("x")
    (tmp_path / "e.jsonl").write_text("x" * 250)
    plan = units.plan_units([str(tmp_path)], Settings())
    assert [[p.name.split("/")[-1] for p in unit] for unit in plan.units] == [
        ["b.txt", "c.TXT"],
        ["e.jsonl"],
        ["e.jsonl"],
        ["e.jsonl", "a.txt"],
    ]
    assert [p[2:] for unit in plan.units for p in unit if p.kind == "jsonl"] == [
        (0, 100),
        (100, 200),
        (200, 250),
    ]
    assert plan.left_out == (
        (f"{tmp_path}/image.png", "no *.txt or *.jsonl"),
        (f"{tmp_path}/d.txt", "empty"),
    )


def test_an_input_without_text_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--input=nowhere does not exist"):
        units.plan_units(["nowhere"], Settings())
    with pytest.raises(ValueError, match="no text in"):
        units.plan_units([str(tmp_path)], Settings())
    (tmp_path / "a.txt").write_text("x" * 20)
    monkeypatch.setattr(units, "MAX_DOCUMENT", 10)
    with pytest.raises(ValueError, match="one document of 20 bytes.*one_sentence_per"):
        units.plan_units([str(tmp_path)], Settings())
    assert units.plan_units([str(tmp_path)], LINES).units
