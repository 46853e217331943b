"""Tokenized text and its cache on disk."""

import pathlib
import pickle

import numpy as np
import pytest
from invented import DOCUMENTS, S, V, check_equal, check_same_corpus, documents, write

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
def new_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "attn_jax"


@pytest.fixture
def task(corpus_file):
    return MaskedLM(data=corpus_file, vocab_size=V, sequence_length=S)


def test_what_the_cache_gives_equals_a_fresh_build(corpus_file, new_cache, monkeypatch):
    fresh = text.build_corpus(corpora.read_documents(corpus_file), V, True)
    first = text.load_corpus(corpus_file, V)
    monkeypatch.setattr(
        text, "build_corpus", lambda *arguments: pytest.fail("built again")
    )
    check_same_corpus(text.load_corpus(corpus_file, V), fresh)
    check_same_corpus(first, fresh)
    assert [path.name for path in new_cache.iterdir()] == [first.folder.name]


def test_another_text_or_setting_is_another_entry(corpus_file, new_cache, tmp_path):
    other = tmp_path / "corpus.txt"
    other.write_text(pathlib.Path(corpus_file).read_text() + "a b.\n")
    found = {
        text.load_corpus(corpus_file, V).folder,
        text.load_corpus(corpus_file, V + 1).folder,
        text.load_corpus(corpus_file, V, lower_case=False).folder,
        text.load_corpus(str(other), V).folder,
    }
    assert len(found) == len(list(new_cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "digests"])
def test_a_damaged_entry_is_built_again(corpus_file, new_cache, caplog, damage):
    folder = text.load_corpus(corpus_file, V).folder
    file = folder / ("digests.json" if damage == "digests" else "train-token_ids.npy")
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2])
    again = text.load_corpus(corpus_file, V)
    assert "damaged" in caplog.text
    check_same_corpus(
        again, text.build_corpus(corpora.read_documents(corpus_file), V, True)
    )
    assert [path.name for path in new_cache.iterdir()] == [folder.name]
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_only_a_warning(
    corpus_file, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    corpus = text.load_corpus(corpus_file, V)
    assert "XDG_CACHE_HOME" in caplog.text
    assert corpus.folder is None
    check_same_corpus(
        corpus, text.build_corpus(corpora.read_documents(corpus_file), V, True)
    )
    # It then travels by value.
    check_same_corpus(pickle.loads(pickle.dumps(corpus)), corpus)


def test_a_cached_source_travels_as_a_path_and_reads_the_same(task):
    source = task.source("train")
    sent = pickle.dumps(source)
    assert len(sent) < 1000  # bytes; its tokens are several thousand
    again = pickle.loads(sent)
    assert len(again) == len(source)
    assert again.fingerprint() == source.fingerprint()
    for index in (0, len(source) - 1):
        rngs = np.random.default_rng(0), np.random.default_rng(0)
        ours = task.example(source[index], rngs[0])
        check_equal(ours, task.example(again[index], rngs[1]))


def test_the_vocabulary_knows_nothing_of_what_is_held_out(tmp_path):
    path = write(tmp_path / "corpus.txt", documents())
    names = [document.name for document in corpora.read_documents(path)]
    held = corpora.held_out(names)
    changed = [
        ["zzz yyy."] if name in held else lines
        for name, lines in zip(names, documents(), strict=True)
    ]
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "corpus.txt", changed)
    ours, theirs = text.load_corpus(path, V), text.load_corpus(other, V)
    assert ours.vocabulary == theirs.vocabulary
    check_equal(vars(ours.splits["train"]), vars(theirs.splits["train"]))
    assert vocabulary.UNK in theirs.splits["validation"].token_ids


def test_the_splits_hold_every_sentence_once_and_share_no_document(task):
    corpus = task.source("train").corpus
    tokenizer = vocabulary.make_tokenizer(corpus.vocabulary)
    found = []
    for part in corpus.splits.values():
        for document in range(len(part.documents) - 1):
            first, last = part.bounds(document)
            found.append([part.tokens(s, s + 1).tolist() for s in range(first, last)])
    encoded = [[tokenizer.encode(s).ids for s in lines] for lines in documents()]
    assert sorted(found) == sorted(encoded)
    assert len(corpus.splits["validation"].documents) - 1 == DOCUMENTS // 10


def test_unigram_entropy_is_that_of_a_known_distribution():
    def of(ids):
        bounds = np.array([0, len(ids)])
        return text.Text(np.array(ids, np.int32), bounds, np.array([0, 1]))

    own, cross = text.unigram_entropy(of([0, 0, 0, 1, 1, 2]), of([0, 1, 0, 1]), 3)
    # Sums of two logarithms in float64.
    assert own == pytest.approx(np.log(2), abs=1e-12)
    assert cross == pytest.approx(-(np.log(4 / 9) + np.log(3 / 9)) / 2, abs=1e-12)
