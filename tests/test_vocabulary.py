"""Vocabularies: training, special tokens, tokens as of BERT."""

import json
import subprocess
import sys

import pytest
from invented import S, V

from attn_jax.data import corpora, text, text_cache, vocabulary
from attn_jax.tasks.masked_lm import MaskedLM

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def task(corpus_file):
    return MaskedLM(data=corpus_file, vocab_size=V, sequence_length=S)


TRAIN = """
import json, sys
from attn_jax.data import corpora, text
corpus = text.build_corpus(corpora.read_documents(sys.argv[1]).documents, int(sys.argv[2]), True)
print(json.dumps(corpus.vocabulary))
"""


def test_a_vocabulary_is_the_same_in_every_process(corpus_file):
    ours = text.build_corpus(
        corpora.read_documents(corpus_file).documents, V, True
    ).vocabulary
    again = text.build_corpus(
        corpora.read_documents(corpus_file).documents, V, True
    ).vocabulary
    command = [sys.executable, "-c", TRAIN, corpus_file, str(V)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert list(ours) == list(again) == json.loads(run.stdout.splitlines()[-1])


def test_a_vocabulary_starts_with_the_special_tokens_and_has_the_size_asked_for(task):
    found = task.source("train").corpus.vocabulary
    assert vocabulary.SPECIALS == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert found[:5] == vocabulary.SPECIALS
    assert len(set(found)) == len(found) == V


@pytest.mark.parametrize(
    ("size", "message"),
    [(100_000, "yields [0-9]+ word pieces.*or less"), (12, "leaves no room beside")],
)
def test_a_vocabulary_of_an_impossible_size_is_refused(corpus_file, size, message):
    with pytest.raises(ValueError, match=message):
        text_cache.load_corpus(corpus_file, size)


def test_tokens_are_those_of_bert():
    # The vector of google-research/bert, tokenization_test.py,
    # test_wordpiece_tokenizer.
    pieces = ["[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn"]
    tokenizer = vocabulary.make_tokenizer([*pieces, "##ing", ","])
    found = tokenizer.encode("UNwant\u00e9d,running").tokens
    assert found == ["un", "##want", "##ed", ",", "runn", "##ing"]
    assert tokenizer.encode("unwantedX running").tokens == ["[UNK]", "runn", "##ing"]


def test_no_text_becomes_a_special_token():
    tokenizer = vocabulary.make_tokenizer(
        [*vocabulary.SPECIALS, "[", "]", "mask", "sep"]
    )
    assert tokenizer.encode("[MASK] [SEP]").tokens == [
        "[",
        "mask",
        "]",
        "[",
        "sep",
        "]",
    ]


def google_vocabulary(folder):
    """A vocab.txt in the order of the released ones, and its number of pieces."""
    letters = "abcdefgh."
    unused = [f"[unused{i}]" for i in range(3)]
    pieces = ["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [*letters, *(f"##{letter}" for letter in letters), "\u2028"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return tuple(pieces)


def test_a_vocabulary_is_found_in_each_kind_of_checkpoint(tmp_path):
    pieces = google_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    (tmp_path / "run").mkdir()
    google_vocabulary(tmp_path / "run" / "assets")
    (tmp_path / "run" / "assets" / "text.json").write_text('{"lower_case": true}')
    places = {
        tmp_path: False,
        tmp_path / "vocab.txt": False,
        tmp_path / "model.safetensors": False,
        tmp_path / "run": True,
    }
    for place, lower_case in places.items():
        assets = vocabulary.read_vocabulary(place)
        assert vocabulary.parse_vocabulary(assets["vocab.txt"]) == pieces
        assert json.loads(assets["text.json"])["lower_case"] is lower_case
    assert vocabulary.read_vocabulary(tmp_path / "absent" / "model.npz") is None
    assert vocabulary.read_vocabulary(tmp_path / "run" / "nothing") is None


@pytest.mark.parametrize(
    ("added", "lower_case"),
    [
        (["Berlin", "##X", "the"], False),
        (["berlin", "the"], True),
        # A token or two of a user are no text that the vocabulary was trained on.
        (["URL", *(f"word{'x' * i}" for i in range(200))], True),
        (["stra\u00dfe", "caf\u00e9"], None),  # accents are kept: not "uncased"
    ],
)
def test_a_vocabulary_alone_shows_whether_it_is_cased(tmp_path, added, lower_case):
    google_vocabulary(tmp_path)
    with (tmp_path / "vocab.txt").open("a", encoding="utf-8") as file:
        file.writelines(f"{piece}\n" for piece in added)
    settings = json.loads(vocabulary.read_vocabulary(tmp_path)["text.json"])
    assert settings.get("lower_case") is lower_case
    # What is written beside it counts more.
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    settings = json.loads(vocabulary.read_vocabulary(tmp_path)["text.json"])
    assert settings["lower_case"] is False


def test_special_ids_are_found_wherever_they_stand(tmp_path):
    ids = vocabulary.find_special_ids(google_vocabulary(tmp_path))
    assert ids == (0, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("[MASK]\n", ""), r"lacks \[MASK\]"),
        (lambda text: text + "a\n", "repeats 'a'"),
        (lambda text: text.replace("##b\n", "\n"), "is empty"),
        (lambda text: "", "no text"),
        (lambda text: text + "\0", "is NUL"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, change, message):
    google_vocabulary(tmp_path)
    file = tmp_path / "vocab.txt"
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=f"vocab.txt: .*{message}"):
        vocabulary.read_vocabulary(tmp_path)


@pytest.mark.parametrize("content", ["[", "[" * 100_000, "[1]", '"x"'])
def test_damaged_settings_of_a_tokenizer_are_refused(tmp_path, content):
    google_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match="tokenizer_config.json is damaged"):
        vocabulary.read_vocabulary(tmp_path)


def test_a_vocabulary_too_large_or_without_end_is_refused(tmp_path):
    (tmp_path / "vocab.txt").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is no regular file"):
        vocabulary.read_vocabulary(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "vocab.txt").write_bytes(
        (b"x" * 999 + b"\n") * (vocabulary.MAX_BYTES // 1000 + 1)
    )
    with pytest.raises(ValueError, match="has more than 64,000,000 bytes"):
        vocabulary.read_vocabulary(tmp_path)
