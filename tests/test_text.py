"""Corpora, vocabularies, the cache of tokenised text, rows of a masked model."""

import json
import pathlib
import pickle
import random
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.data import corpora, pairs, pipeline, text
from attn_jax.tasks.masked_lm import MaskedLM

V, S = 120, 32  # vocabulary and sequence length of most tests
DOCUMENTS = 40


def written(path, documents):
    """The documents in Google's format: a sentence a line, a blank line between."""
    path.write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def documents():
    """Forty documents of 1 to 20 sentences in an invented language."""
    draw = random.Random(0)
    words = [
        "".join(draw.choices("abcdefgh", k=draw.randint(1, 8))) for _ in range(200)
    ]

    def sentence():
        return " ".join(draw.choices(words, k=draw.randint(2, 9))) + "."

    return [[sentence() for _ in range(draw.randint(1, 20))] for _ in range(DOCUMENTS)]


@pytest.fixture(scope="module")
def corpus_file(documents, tmp_path_factory):
    return written(tmp_path_factory.mktemp("corpus") / "corpus.txt", documents)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A folder of this module's own, instead of the user's cache."""
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


def examples(task, number, split="train"):
    source = task.source(split)
    for i in range(number):
        yield task.example(source[i % len(source)], np.random.default_rng([7, i]))


def check_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def check_same_corpus(ours, theirs):
    assert ours.vocabulary == theirs.vocabulary
    for split in text.SPLITS:
        check_equal(vars(ours.splits[split]), vars(theirs.splits[split]))


# --- corpora --------------------------------------------------------------------------


def test_the_stdlib_is_over_a_megabyte_of_english_and_reading_it_imports_nothing():
    loaded = set(sys.modules)
    documents = corpora.read("stdlib")
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
        corpora.read("stdlib")


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


def test_a_file_is_read_line_by_line_as_it_is(corpus_file, documents):
    found = corpora.read(corpus_file)
    assert [list(document.sentences) for document in found] == documents


def test_each_text_file_of_a_folder_is_a_document(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(f"One is {name}{name}. Two is not.")
    (tmp_path / "notes.md").write_text("Not read at all.")
    found = corpora.read(str(tmp_path))
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
        corpora.read(str(tmp_path / "corpus.txt"))


def test_a_bad_file_of_a_folder_is_named(tmp_path):
    (tmp_path / "good.txt").write_text("One two three.")
    (tmp_path / "zz.txt").write_bytes(b"One two three.\x80")
    with pytest.raises(ValueError, match="zz.txt: byte 14"):
        corpora.read(str(tmp_path))


def test_a_corpus_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'absent' does not exist.*'stdlib'"):
        corpora.read("absent")


def test_a_tenth_of_the_documents_is_held_out_whatever_their_order():
    names = [f"document {i}" for i in range(200)]
    held = corpora.held_out(names)
    assert len(held) == 20
    assert corpora.held_out(names[::-1]) == held


# --- vocabulary -----------------------------------------------------------------------


TRAIN = """
import json, sys
from attn_jax.data import corpora, text
corpus = text.build(corpora.read(sys.argv[1]), int(sys.argv[2]), True)
print(json.dumps(corpus.vocabulary))
"""


def test_a_vocabulary_is_the_same_in_every_process(corpus_file):
    ours = text.build(corpora.read(corpus_file), V, True).vocabulary
    again = text.build(corpora.read(corpus_file), V, True).vocabulary
    command = [sys.executable, "-c", TRAIN, corpus_file, str(V)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert list(ours) == list(again) == json.loads(run.stdout.splitlines()[-1])


def test_a_vocabulary_starts_with_the_special_tokens_and_has_the_size_asked_for(task):
    vocabulary = task.source("train").corpus.vocabulary
    assert (
        vocabulary[:5]
        == text.SPECIALS
        == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    )
    assert len(set(vocabulary)) == len(vocabulary) == V


@pytest.mark.parametrize(
    ("size", "message"),
    [(100_000, "yields [0-9]+ word pieces.*or less"), (12, "leaves no room beside")],
)
def test_a_vocabulary_of_an_impossible_size_is_refused(corpus_file, size, message):
    with pytest.raises(ValueError, match=message):
        text.load(corpus_file, size)


def test_the_vocabulary_knows_nothing_of_what_is_held_out(documents, tmp_path):
    path = written(tmp_path / "corpus.txt", documents)
    names = [document.name for document in corpora.read(path)]
    held = corpora.held_out(names)
    changed = [
        ["zzz yyy."] if name in held else lines
        for name, lines in zip(names, documents, strict=True)
    ]
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other" / "corpus.txt", changed)
    ours, theirs = text.load(path, V), text.load(other, V)
    assert ours.vocabulary == theirs.vocabulary
    check_equal(vars(ours.splits["train"]), vars(theirs.splits["train"]))
    assert text.UNK in theirs.splits["validation"].token_ids


def test_tokens_are_those_of_bert():
    # The vector of google-research/bert, tokenization_test.py,
    # test_wordpiece_tokenizer.
    pieces = ["[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn"]
    tokenizer = text.make_tokenizer([*pieces, "##ing", ","])
    found = tokenizer.encode("UNwant\u00e9d,running").tokens
    assert found == ["un", "##want", "##ed", ",", "runn", "##ing"]
    assert tokenizer.encode("unwantedX running").tokens == ["[UNK]", "runn", "##ing"]


def test_no_text_becomes_a_special_token():
    tokenizer = text.make_tokenizer([*text.SPECIALS, "[", "]", "mask", "sep"])
    assert tokenizer.encode("[MASK] [SEP]").tokens == [
        "[",
        "mask",
        "]",
        "[",
        "sep",
        "]",
    ]


def test_the_splits_hold_every_sentence_once_and_share_no_document(task, documents):
    corpus = task.source("train").corpus
    tokenizer = text.make_tokenizer(corpus.vocabulary)
    found = []
    for part in corpus.splits.values():
        for document in range(len(part.documents) - 1):
            first, last = part.bounds(document)
            found.append([part.tokens(s, s + 1).tolist() for s in range(first, last)])
    encoded = [[tokenizer.encode(s).ids for s in lines] for lines in documents]
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


# --- cache ----------------------------------------------------------------------------


def test_what_the_cache_gives_equals_a_fresh_build(corpus_file, new_cache, monkeypatch):
    fresh = text.build(corpora.read(corpus_file), V, True)
    first = text.load(corpus_file, V)
    monkeypatch.setattr(text, "build", lambda *arguments: pytest.fail("built again"))
    check_same_corpus(text.load(corpus_file, V), fresh)
    check_same_corpus(first, fresh)
    assert [path.name for path in new_cache.iterdir()] == [first.folder.name]


def test_another_text_or_setting_is_another_entry(corpus_file, new_cache, tmp_path):
    other = tmp_path / "corpus.txt"
    other.write_text(pathlib.Path(corpus_file).read_text() + "a b.\n")
    found = {
        text.load(corpus_file, V).folder,
        text.load(corpus_file, V + 1).folder,
        text.load(corpus_file, V, lower_case=False).folder,
        text.load(str(other), V).folder,
    }
    assert len(found) == len(list(new_cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "digests"])
def test_a_damaged_entry_is_built_again(corpus_file, new_cache, caplog, damage):
    folder = text.load(corpus_file, V).folder
    file = folder / ("digests.json" if damage == "digests" else "train-token_ids.npy")
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2])
    again = text.load(corpus_file, V)
    assert "damaged" in caplog.text
    check_same_corpus(again, text.build(corpora.read(corpus_file), V, True))
    assert [path.name for path in new_cache.iterdir()] == [folder.name]
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_only_a_warning(
    corpus_file, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    corpus = text.load(corpus_file, V)
    assert "XDG_CACHE_HOME" in caplog.text
    assert corpus.folder is None
    check_same_corpus(corpus, text.build(corpora.read(corpus_file), V, True))
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


# --- pairs ----------------------------------------------------------------------------


def test_runs_cover_every_sentence_once_in_order_and_stay_in_their_document(task):
    source = task.source("train")
    expected = 0
    for document, first, last in source.runs.tolist():
        start, end = source.text.bounds(document)
        assert start <= first < last <= end
        assert first == expected
        # No sentence more than needed; fewer tokens only at the document's end.
        assert source.text.length(first, last - 1) < task.text_length
        assert last == end or source.text.length(first, last) >= task.text_length
        expected = last
    assert expected == len(source.text.sentences) - 1


def test_duplicates_repeat_the_runs_of_an_evaluation_but_not_its_rows(corpus_file):
    once, thrice = (
        MaskedLM(corpus_file, V, S, duplicates=n).source("validation") for n in (1, 3)
    )
    task = MaskedLM(corpus_file, V, S, duplicates=3)
    assert len(task.source("train")) == len(MaskedLM(corpus_file, V, S).source("train"))
    assert len(thrice) == 3 * len(once)
    assert thrice.fingerprint() != once.fingerprint()
    rows = [task.example(thrice[i], None) for i in range(len(thrice))]
    check_equal(rows[0], task.example(once[0], None))
    ids = [row["token_ids"].tobytes() for row in rows]
    assert len(set(ids)) == len(ids)


def drawn(task, number):
    source = task.source("train")
    for i in range(number):
        record = source[i % len(source)]
        where = record["document"], record["first"], record["last"]
        rng = np.random.default_rng([3, i])
        yield source.text, where, pairs.draw_pair(source.text, *where, S - 3, rng)


def test_a_true_pair_is_consecutive_and_a_random_one_from_another_document(task):
    counts = {True: 0, False: 0}
    for of, (document, first, last), pair in drawn(task, 600):
        counts[pair.is_random] += 1
        other, start, stop = pair.second
        np.testing.assert_array_equal(pair.b, of.tokens(start, stop))
        if pair.is_random:
            assert other != document
            begin, end = of.bounds(other)
            assert begin <= start < stop <= end
        else:
            assert other == document
            assert stop == last
            joined = np.concatenate([pair.a, pair.b])
            np.testing.assert_array_equal(joined, of.tokens(first, last))
        assert len(pair.a) and len(pair.b)
    assert min(counts.values()) > 100


def test_half_the_pairs_of_two_sentences_or_more_are_random_and_all_of_one(task):
    single, several = [], []
    for _, (_, first, last), pair in drawn(task, 2000):
        (single if last - first == 1 else several).append(pair.is_random)
    assert single and all(single)
    # Four standard deviations of a binomial mean.
    assert abs(np.mean(several) - 0.5) < 4 * 0.5 / np.sqrt(len(several))
    assert np.mean(single + several) > 0.5


def test_a_random_pair_may_come_from_every_other_document(task):
    source = task.source("train")
    documents = {
        pair.second[0]
        for of, (document, *_), pair in drawn(task, 3000)
        if pair.is_random
    }
    assert documents == set(range(len(source.text.documents) - 1))


def test_truncation_takes_from_the_longer_end_by_end():
    rng = np.random.default_rng(0)
    fronts = 0
    for _ in range(500):
        lengths = rng.integers(1, 40, size=2)
        a = np.arange(lengths[0], dtype=np.int32)
        b = np.arange(lengths[1], dtype=np.int32)
        limit = int(rng.integers(2, 50))
        short_a, short_b = pairs.truncate(a, b, limit, rng)
        assert len(short_a) + len(short_b) == min(limit, len(a) + len(b))
        assert len(short_a) and len(short_b)
        # The longer one until both are equal, then in turn, B first.
        if len(short_a) < len(a) and len(short_b) < len(b):
            assert len(short_a) - len(short_b) in (0, 1)
        for cut, whole in ((short_a, a), (short_b, b)):
            begin = cut[0]
            np.testing.assert_array_equal(cut, whole[begin : begin + len(cut)])
        fronts += int(short_a[0] > 0)
    assert fronts > 50  # of some 300 that were cut


# --- masks ----------------------------------------------------------------------------


def test_rows_have_the_shapes_that_the_task_promises(task):
    shapes = pipeline.batch_shapes(task.source("train"), task, 4)
    found = {name: (s.shape, str(s.dtype)) for name, s in shapes.items()}
    assert found == {
        "token_ids": ((4, S), "int32"),
        "segment_ids": ((4, S), "int32"),
        "mask": ((4, S), "bool"),
        "mlm_positions": ((4, 5), "int32"),
        "mlm_labels": ((4, 5), "int32"),
        "mlm_valid": ((4, 5), "bool"),
        "is_random_next": ((4,), "int32"),
        "index": ((4,), "int32"),
        "valid": ((4,), "bool"),
    }


def test_a_row_reads_cls_a_sep_b_sep_and_padding(task):
    for row in examples(task, 300):
        whole = row["token_ids"].copy()
        places = row["mlm_positions"][row["mlm_valid"]]
        whole[places] = row["mlm_labels"][row["mlm_valid"]]
        length = int(row["mask"].sum())
        assert row["mask"][:length].all()
        assert not whole[length:].any()
        assert not row["segment_ids"][length:].any()
        assert whole[0] == text.CLS
        [first, second] = np.flatnonzero(whole == text.SEP)
        assert 2 <= first < second - 1
        assert second == length - 1
        assert (row["segment_ids"] == 1).nonzero()[0].tolist() == list(
            range(first + 1, length)
        )


def test_hidden_places_ascend_are_no_special_tokens_and_as_many_as_the_rule_says(task):
    most = 0
    for row in examples(task, 500):
        count, length = int(row["mlm_valid"].sum()), int(row["mask"].sum())
        places = row["mlm_positions"][:count]
        assert row["mlm_valid"][:count].all()
        assert (np.diff(places) > 0).all()
        assert (row["mlm_labels"][:count] != text.CLS).all()
        assert (row["mlm_labels"][:count] != text.SEP).all()
        assert count == min(5, max(1, round(0.15 * length)))
        assert not row["mlm_positions"][count:].any()
        most = max(most, count)
    assert most == 5


def test_fewer_predictions_are_kept_where_fewer_are_asked_for(corpus_file):
    task = MaskedLM(corpus_file, V, S, max_predictions=2)
    counts = {int(row["mlm_valid"].sum()) for row in examples(task, 100)}
    assert counts <= {1, 2}


def test_hidden_tokens_are_80_10_10():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 1000, size=20_000).astype(np.int32)
    seen, positions, labels = pairs.mask_tokens(
        ids,
        np.ones(len(ids), bool),
        probability=1.0,
        limit=len(ids),
        vocab_size=1000,
        rng=rng,
    )
    np.testing.assert_array_equal(labels, ids[positions])
    is_mask, is_same = seen[positions] == text.MASK, seen[positions] == labels
    other = seen[positions][~is_mask & ~is_same]
    # A random piece is [MASK] or the same one in a thousandth of a tenth of the cases.
    for share, rate in (
        (is_mask.mean(), 0.8001),
        (is_same.mean(), 0.1001),
        (len(other) / len(ids), 0.0998),
    ):
        # Four standard deviations of a binomial mean.
        assert abs(share - rate) < 4 * np.sqrt(rate * (1 - rate) / len(ids))
    # Of the whole vocabulary: 2,000 draws of 1,000 pieces leave 135 unseen on average,
    # standard deviation below 11.
    assert 1000 - len(set(other.tolist())) < 200
    assert other.min() < 5  # special ones included


def test_every_place_is_hidden_equally_often():
    counts = np.zeros(20)
    maskable = np.arange(20) % 5 != 0
    for seed in range(2000):
        masked = pairs.mask_tokens(
            np.arange(20, dtype=np.int32),
            maskable,
            probability=0.2,
            limit=9,
            vocab_size=20,
            rng=np.random.default_rng(seed),
        )
        counts[masked.positions] += 1
    assert not counts[~maskable].any()
    # 4 of 16 places, 2,000 times: mean 500, standard deviation below 20.
    assert (abs(counts[maskable] - 500) < 80).all()


def test_masking_leaves_the_corpus_as_it_was(task):
    source = task.source("train")
    before = source.fingerprint()
    list(examples(task, 50))
    assert task.source("train").fingerprint() == source.fingerprint() == before


def test_a_tenth_of_the_rows_is_short(corpus_file):
    def lengths(probability):
        task = MaskedLM(corpus_file, V, S, short_sequence_probability=probability)
        return np.array([row["mask"].sum() for row in examples(task, 1000)])

    assert lengths(1.0).mean() < lengths(0.1).mean() - 2 < lengths(0.0).mean() - 2


def test_without_next_sentence_a_row_is_one_segment(corpus_file):
    task = MaskedLM(corpus_file, V, S, next_sentence=False)
    assert set(task.coefficients) == {"mlm_loss"}
    longest = 0
    for row in examples(task, 200):
        length = int(row["mask"].sum())
        assert not row["segment_ids"].any()
        assert not row["is_random_next"]
        assert row["token_ids"][length - 1] == text.SEP
        longest = max(longest, length)
    assert longest == S


def batches(task, batch_size):
    return pipeline.evaluation_batches(
        task.source("validation"),
        task,
        batch_size=batch_size,
        rows=np.arange(batch_size),
    )


def test_evaluation_rows_are_the_same_at_every_reading_and_batch_size(task):
    def rows(batch_size):
        read = list(batches(task, batch_size))
        joined = {n: np.concatenate([b[n] for b in read]) for n in read[0]}
        return {name: array[joined["valid"]] for name, array in joined.items()}

    check_equal(rows(3), rows(8))


def test_training_rows_differ_from_epoch_to_epoch(task):
    source = task.source("train")
    size = len(source)
    stream = pipeline.training_batches(
        source, task, seed=0, batch_size=size, rows=np.arange(size)
    )
    first, second = next(stream), next(stream)
    assert sorted(first["index"]) == sorted(second["index"]) == list(range(size))
    ids = [
        {i: row.tobytes() for i, row in zip(b["index"], b["token_ids"], strict=True)}
        for b in (first, second)
    ]
    same = sum(ids[0][i] == ids[1][i] for i in range(size))
    assert same < size / 4  # short rows hide one token of few


# --- the task -------------------------------------------------------------------------


def batch_of(rows, valid):
    stacked = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    return stacked | {"valid": jnp.array(valid)}


def test_the_loss_counts_hidden_tokens_of_valid_rows_alone(task):
    rows = list(examples(task, 3))
    batch = batch_of(rows, [True, False, True])
    rng = np.random.default_rng(0)
    mlm = rng.normal(size=(3, 5, V)).astype(np.float32)
    nsp = rng.normal(size=(3, 2)).astype(np.float32)
    outputs = {"mlm_logits": jnp.array(mlm), "nsp_logits": jnp.array(nsp)}
    terms = task.loss(outputs, batch)

    def nats(logits, label):
        return np.log(np.exp(logits.astype(np.float64)).sum()) - logits[label]

    tokens = [
        (mlm[i, p], int(rows[i]["mlm_labels"][p]))
        for i in (0, 2)
        for p in range(int(rows[i]["mlm_valid"].sum()))
    ]
    labels = [(nsp[i], int(rows[i]["is_random_next"])) for i in (0, 2)]
    for name, cases in (("mlm", tokens), ("nsp", labels)):
        total, count = terms[f"{name}_loss"]
        hits, hit_count = terms[f"{name}_accuracy"]
        assert count == hit_count == len(cases)
        # A sum of some ten float32 terms near 5.
        expected = sum(nats(logits, label) for logits, label in cases)
        assert float(total) == pytest.approx(expected, rel=1e-5)
        assert hits == sum(logits.argmax() == label for logits, label in cases)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "no mlm_logits.*'mlm' to config.model.heads"),
        ({"mlm_logits": (5, V + 1)}, "has 121 classes and the task 120"),
        ({"mlm_logits": (5, V)}, "no nsp_logits.*next_sentence to False"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(task, outputs, message):
    batch = batch_of(list(examples(task, 2)), [True, True])
    arrays = {name: jnp.zeros((2, *shape)) for name, shape in outputs.items()}
    with pytest.raises(ValueError, match=message):
        task.loss(arrays, batch)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequence_length": 4}, "leaves 1 tokens.*8"),
        ({"mask_probability": 1.5}, "is no probability"),
        ({"max_predictions": 0}, "must be 1 or more"),
        ({"duplicates": 0}, "must be 1 or more"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskedLM(**{"data": "stdlib", "vocab_size": V, "sequence_length": S, **fields})


def test_there_is_no_test_split(task):
    with pytest.raises(ValueError, match="splits 'train' and 'validation'"):
        task.source("test")


def test_assets_say_the_vocabulary_and_the_entropy_to_beat(task):
    source = task.source("train")
    assets = task.assets(source)
    assert assets["vocab.txt"].splitlines() == list(source.corpus.vocabulary)
    known = json.loads(assets["text.json"])
    splits = source.corpus.splits
    own, cross = text.unigram_entropy(splits["train"], splits["validation"], V)
    # Written with four digits.
    assert known["unigram_entropy"] == pytest.approx(own, abs=1e-4)
    assert known["unigram_cross_entropy"] == pytest.approx(cross, abs=1e-4)
    assert own < cross
    assert known["python"] is None  # the text is a file's
