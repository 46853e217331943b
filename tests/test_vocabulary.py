"""Vocabularies: training, special tokens, tokens as of BERT."""

import json
import subprocess
import sys

import pytest
from invented import S, V, documents, write

from attn_jax.data import corpora, text, vocabulary
from attn_jax.tasks.masked_lm import MaskedLM


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("corpus") / "corpus.txt", documents())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A folder of the test run's own, instead of the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def task(corpus_file):
    return MaskedLM(data=corpus_file, vocab_size=V, sequence_length=S)


TRAIN = """
import json, sys
from attn_jax.data import corpora, text
corpus = text.build_corpus(corpora.read_documents(sys.argv[1]), int(sys.argv[2]), True)
print(json.dumps(corpus.vocabulary))
"""


def test_a_vocabulary_is_the_same_in_every_process(corpus_file):
    ours = text.build_corpus(corpora.read_documents(corpus_file), V, True).vocabulary
    again = text.build_corpus(corpora.read_documents(corpus_file), V, True).vocabulary
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
        text.load_corpus(corpus_file, size)


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
