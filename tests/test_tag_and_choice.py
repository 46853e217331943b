"""Tags of words and multiple choice: rows, losses, scores, and data that cannot be used."""

import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.data.conll import read_conll
from attn_jax.data.vocabulary import SPECIALS
from attn_jax.tasks.choice import Choice
from attn_jax.tasks.tag import Tag

PIECES = [
    *SPECIALS,
    "anna",
    "an",
    "##na",
    "sells",
    "hats",
    "in",
    "bonn",
    "b",
    "##onn",
    ".",
]
ASSETS = {"vocab.txt": "".join(f"{piece}\n" for piece in PIECES)}
TAGS = ("B-LOC", "B-PER", "O")


def make_tag(data="generated", **fields):
    fields = {"vocab_size": len(PIECES), "sequence_length": 10, "tags": TAGS, **fields}
    return Tag(data=str(data), **fields).bind(ASSETS)


def test_a_tag_is_read_at_the_first_piece_of_its_word():
    task = make_tag()
    record = {"words": ["Anna", "sells", "annana", "."], "labels": [1, 2, 0, 2]}
    row = task.example(record | {"tokenizer": task.tokenizer}, None)
    assert row["token_ids"].tolist() == [2, 5, 8, 5, 7, 14, 3, 0, 0, 0]
    assert row["labels"].tolist() == [-1, 1, 2, 0, -1, 2, -1, -1, -1, -1]


def test_a_sentence_longer_than_a_row_is_cut_between_words(tmp_path):
    words = ["Anna", "annana"] * 5
    lines = "".join(f"{word} NN O\n" for word in words)
    (tmp_path / "train.txt").write_text(f"-DOCSTART- -X- O\n\n{lines}\n")
    task = make_tag(tmp_path, sequence_length=8)
    source = task.source("train")
    assert [word for record in source for word in record["words"]] == words
    assert len(source) == 3
    for record in source:
        assert (task.example(record, None)["labels"] >= 0).sum() == len(record["words"])


def test_the_loss_counts_words_and_the_score_entities():
    task = make_tag()
    labels = np.array([[-1, 1, 2, 0, -1], [-1, 1, -1, -1, -1]])
    logits = np.zeros((2, 5, 3), np.float32)
    logits[0, 1, 1] = logits[0, 2, 2] = logits[0, 3, 2] = 5  # the place is missed
    batch = {"labels": jnp.asarray(labels), "valid": jnp.array([True, False])}
    terms = task.loss({"tag_logits": jnp.asarray(logits)}, batch)
    assert terms["accuracy"] == (2, 3)
    assert terms["cross_entropy"][1] == 3

    class Records:
        tags = TAGS

    predicted = {"predicted": logits.argmax(-1)[:1], "labels": labels[:1]}
    scores = task.score(predicted, Records)
    assert scores == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="the model has no tag_logits"):
        task.loss({}, batch)


def test_predicted_tags_come_with_entities_over_all_parts_of_a_text():
    task = make_tag(sequence_length=5)
    named, rows = task.read_input("Anna in Bonn sells hats .")
    assert len(rows) == 2  # of three words each
    logits = np.zeros((2, 5, 3), np.float32)
    logits[..., 2] = 1
    logits[0, 1, 1] = logits[0, 3, 0] = 5
    outputs = [{"tag_logits": part} for part in logits]
    found = task.describe_outputs(named, rows, outputs, top=1)
    assert found["tags"] == ["B-PER", "O", "B-LOC", "O", "O", "O"]
    assert found["entities"] == [
        {"text": "Anna", "type": "PER", "first": 0, "last": 0},
        {"text": "Bonn", "type": "LOC", "first": 2, "last": 2},
    ]
    for given in ("", [], [3], {"text": "x"}):
        with pytest.raises(ValueError, match="is no text"):
            task.read_input(given)


def test_tags_of_a_run_are_bound():
    task = make_tag(tags=None)
    source = task.source("train")
    assert source.tags == ("B-LOC", "B-PER", "I-PER", "O")
    assets = task.assets(source)
    bound = Tag(data="generated", vocab_size=len(PIECES), sequence_length=10).bind(
        assets
    )
    assert bound.tags == source.tags
    assert bound.source("validation").tags == source.tags


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("Anna B-PER\nsells\n", {}, "line 2: 'sells' does not end in a tag"),
        ("Anna B-PER\nin XX\n", {}, "line 2: 'in XX' does not end in a tag"),
        ("\n\n-DOCSTART- O\n", {}, "holds no sentences"),
        ("Anna B-ORG\n", {}, "sentence 1 has the tag 'B-ORG', which is none of B-LOC"),
        ("Anna B-PER\n", {"num_tags": 5}, "has 3 tags .*num_tags=5"),
    ],
)
def test_a_file_of_tags_that_cannot_be_used_names_the_line(
    text, fields, message, tmp_path
):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        make_tag(tmp_path, **fields).source("train")
    with pytest.raises(ValueError, match="has no split 'test'"):
        make_tag(tmp_path).source("test")


def test_conll_documents_and_columns_are_read(tmp_path):
    text = "-DOCSTART- -X- -X- O\n\nAnna NNP B-NP B-PER\n. . O O\n\nHats NNS B-NP O\n"
    (tmp_path / "t").write_text(text)
    first, second = read_conll(tmp_path / "t")
    assert first == (("Anna", "."), ("B-PER", "O"))
    assert second == (("Hats",), ("O",))


# --- multiple choice --------------------------------------------------------------------

HEADER = "sent1,sent2,ending0,ending1,ending2,ending3,label"


def make_choice(data="generated"):
    task = Choice(data=str(data), vocab_size=len(PIECES), sequence_length=10)
    return task.bind(ASSETS)


def test_each_ending_is_a_row_after_its_context(tmp_path):
    row = 'Anna sells hats.,Anna,"sells",in,hats,.,2\n'
    (tmp_path / "train.csv").write_text(f"{HEADER}\n{row}")
    task = make_choice(tmp_path)
    example = task.example(task.source("train")[0], None)
    context = [2, 5, 8, 9, 14, 3]
    endings = [[5, 8], [5, 10], [5, 9], [5, 14]]
    wanted = [context + ending + [3] for ending in endings]
    assert example["token_ids"][:, :9].tolist() == wanted
    assert example["segment_ids"][:, :9].tolist() == [[0] * 6 + [1] * 3] * 4
    assert example["labels"] == 2


def test_the_loss_is_over_the_endings():
    task = make_choice()
    logits = jnp.array([[0.0, 0.0, 9.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    batch = {"labels": jnp.array([2, 1]), "valid": jnp.array([True, False])}
    terms = task.loss({"choice_logits": logits}, batch)
    assert terms["accuracy"] == (1, 1)
    assert float(terms["cross_entropy"][0]) == pytest.approx(3 * np.exp(-9.0), rel=1e-3)
    with pytest.raises(ValueError, match="the model has no choice_logits"):
        task.loss({}, batch)


def test_endings_are_ranked():
    task = make_choice()
    given = {"context": "Anna sells", "endings": ["hats", "in", "Bonn", "."]}
    named, rows = task.read_input(given)
    assert rows[0]["token_ids"].shape == (4, 10)
    outputs = [{"choice_logits": np.array([0.0, 1.0, 3.0, 2.0], np.float32)}]
    found = task.describe_outputs(named, rows, outputs, top=2)["predictions"]
    assert [entry["label"] for entry in found] == ["Bonn", "."]
    for bad, message in [
        ({"context": "x", "endings": ["y"]}, "there are 1 endings"),
        ({"context": "x"}, "is no question"),
    ]:
        with pytest.raises(ValueError, match=message):
            task.read_input(bad)


@pytest.mark.parametrize(
    ("row", "message"),
    [("a,b,c,d,e,f,7", "line 2: the label '7'"), ("a,b", "line 2: 2 columns instead")],
)
def test_a_broken_row_of_swag_is_named(row, message, tmp_path):
    (tmp_path / "train.csv").write_text(f"{HEADER}\n{row}\n")
    with pytest.raises(ValueError, match=message):
        make_choice(tmp_path).source("train")
