"""Tokenized text and its cache on disk."""

import hashlib
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
from invented import (
    DOCUMENTS,
    UNK,
    S,
    V,
    check_equal,
    check_same_corpus,
    documents,
    write,
)

from attn_jax.data import corpora, text, text_cache, vocabulary
from attn_jax.tasks.masked_lm import MaskedLM

GREEK = str.maketrans("abcdefgh", "αβγδεζηθ")


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def new_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "attn_jax"


@pytest.fixture
def task(corpus_file):
    return MaskedLM(data=corpus_file, vocab_size=V, sequence_length=S)


def test_what_the_cache_gives_equals_a_fresh_build(corpus_file, new_cache, monkeypatch):
    fresh = text.build_corpus(corpora.read_documents(corpus_file).documents, V, True)
    first = text_cache.load_corpus(corpus_file, V)
    monkeypatch.setattr(
        text, "build_corpus", lambda *arguments: pytest.fail("built again")
    )
    check_same_corpus(text_cache.load_corpus(corpus_file, V), fresh)
    check_same_corpus(first, fresh)
    assert [path.name for path in new_cache.iterdir()] == [first.folder.name]


def test_another_text_or_setting_is_another_entry(corpus_file, new_cache, tmp_path):
    other = tmp_path / "corpus.txt"
    other.write_text(pathlib.Path(corpus_file).read_text() + "a b.\n")
    found = {
        text_cache.load_corpus(corpus_file, V).folder,
        text_cache.load_corpus(corpus_file, V + 1).folder,
        text_cache.load_corpus(corpus_file, V, lower_case=False).folder,
        text_cache.load_corpus(str(other), V).folder,
    }
    assert len(found) == len(list(new_cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "digests"])
def test_a_damaged_entry_is_built_again(corpus_file, new_cache, caplog, damage):
    folder = text_cache.load_corpus(corpus_file, V).folder
    file = folder / ("digests.json" if damage == "digests" else "train-token_ids.npy")
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2])
    again = text_cache.load_corpus(corpus_file, V)
    assert "damaged" in caplog.text
    check_same_corpus(
        again, text.build_corpus(corpora.read_documents(corpus_file).documents, V, True)
    )
    assert [path.name for path in new_cache.iterdir()] == [folder.name]
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_only_a_warning(
    corpus_file, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    corpus = text_cache.load_corpus(corpus_file, V)
    assert "XDG_CACHE_HOME" in caplog.text
    assert corpus.folder is None
    check_same_corpus(
        corpus,
        text.build_corpus(corpora.read_documents(corpus_file).documents, V, True),
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
    read = corpora.read_documents(write(tmp_path / "corpus.txt", documents())).documents
    held = corpora.choose_held_out([document.key for document in read])
    changed = [
        document._replace(sentences=("ab zzz c.",))
        if document.key in held
        else document
        for document in read
    ]
    ours, theirs = (text.build_corpus(d, V, True) for d in (read, changed))
    assert ours.vocabulary == theirs.vocabulary
    check_equal(vars(ours.splits["train"]), vars(theirs.splits["train"]))
    assert UNK in theirs.splits["validation"].token_ids


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
    own, cross = text.unigram_entropy(np.array([3, 2, 1]), np.array([2, 2, 0]))
    # Sums of two logarithms in float64.
    assert own == pytest.approx(np.log(2), abs=1e-12)
    assert cross == pytest.approx(-(np.log(4 / 9) + np.log(3 / 9)) / 2, abs=1e-12)


def test_a_copy_under_another_name_has_the_same_splits(corpus_file, tmp_path):
    other = write(tmp_path / "another.txt", documents())
    check_same_corpus(
        text_cache.load_corpus(other, V), text_cache.load_corpus(corpus_file, V)
    )


def test_a_given_vocabulary_is_used_instead_of_a_new_one(corpus_file, new_cache):
    own = text_cache.load_corpus(corpus_file, V)
    given = own.vocabulary[::-1]
    corpus = text_cache.load_corpus(corpus_file, V, vocabulary=given)
    assert corpus.vocabulary == given
    for split in text.SPLITS:
        theirs = V - 1 - own.splits[split].token_ids
        np.testing.assert_array_equal(corpus.splits[split].token_ids, theirs)
    assert text_cache.load_corpus(corpus_file, V).vocabulary == own.vocabulary


def test_a_vocabulary_of_another_script_is_refused(tmp_path, corpus_file):
    greek = [[line.translate(GREEK) for line in lines] for lines in documents()]
    given = text_cache.load_corpus(corpus_file, V).vocabulary
    with pytest.raises(ValueError, match=r"does not know [0-9]+% of the train split"):
        text_cache.load_corpus(
            write(tmp_path / "greek.txt", greek), V, vocabulary=given
        )


def make_hostile(folder, fault):
    """Puts something else in an entry, with digests that agree."""
    file = folder / "train-token_ids.npy"
    ids = np.load(file)
    if fault == "pickle":
        np.save(file, np.array([{}], object), allow_pickle=True)
    elif fault == "ids":
        ids[3] = V
        np.save(file, ids)
    elif fault == "bounds":
        bounds = np.load(folder / "train-sentences.npy")
        bounds[1] = 10**9
        np.save(folder / "train-sentences.npy", bounds)
    elif fault == "huge":
        header = np.lib.format
        with file.open("wb") as opened:
            shape = {"descr": "<i4", "fortran_order": False, "shape": (10**15,)}
            header.write_array_header_1_0(opened, shape)
    elif fault == "vocabulary":
        (folder / "vocab.txt").write_text("[PAD]\n")
    elif fault == "fifo":
        file.unlink()
        os.mkfifo(file)
        return
    elif fault == "device":
        file.unlink()
        file.symlink_to("/dev/zero")
        return
    elif fault == "names":
        (folder / "digests.json").write_text('{"../../etc/passwd": "0"}')
        return
    elif fault == "list":
        (folder / "digests.json").write_text("[1]")
        return
    elif fault == "nested":
        (folder / "digests.json").write_text("[" * 100_000)
        return
    files = [f for f in folder.iterdir() if f.name != "digests.json"]
    (folder / "digests.json").write_text(json.dumps({f.name: digest(f) for f in files}))


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "fault",
    ["pickle", "ids", "bounds", "huge", "vocabulary"]
    + ["fifo", "device", "names", "list", "nested"],
)
def test_an_entry_that_another_program_wrote_is_built_again(
    corpus_file, new_cache, caplog, fault
):
    first = text_cache.load_corpus(corpus_file, V)
    make_hostile(first.folder, fault)
    again = text_cache.load_corpus(corpus_file, V)
    assert "is built again" in caplog.text
    fresh = text.build_corpus(corpora.read_documents(corpus_file).documents, V, True)
    check_same_corpus(again, fresh)
    caplog.clear()
    text_cache.load_corpus(corpus_file, V)
    assert not caplog.text


def test_an_entry_of_another_user_is_built_again(
    corpus_file, new_cache, caplog, monkeypatch
):
    folder = text_cache.load_corpus(corpus_file, V).folder
    # As root, an entry is given away; as somebody else, we become another.
    if os.getuid() == 0:
        os.chown(folder / "vocab.txt", 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    corpus = text_cache.load_corpus(corpus_file, V)
    assert "belongs to another user" in caplog.text
    assert len(corpus.vocabulary) == V
