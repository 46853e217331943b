"""Sentence pairs, truncation and masks."""

import dataclasses

import numpy as np
import pytest
from invented import MASK, S, V, check_equal, write

from attn_jax.data import pairs, text_cache
from attn_jax.tasks.masked_lm import MaskedLM

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def task(corpus_file):
    return MaskedLM(data=corpus_file, vocab_size=V, sequence_length=S)


def test_runs_cover_every_sentence_once_in_order_and_stay_in_their_document(task):
    source = task.source("train")
    expected = 0
    for record in source:
        document, first, last = (record[k] for k in ("document", "first", "last"))
        start, end = source.text.bounds(document)
        assert start <= first < last <= end
        assert first == expected
        # No sentence more than needed; fewer tokens only at the document's end.
        assert len(source.text.tokens(first, last - 1)) < task.text_length
        assert last == end or len(source.text.tokens(first, last)) >= task.text_length
        expected = last
    assert expected == len(source.text.sentences) - 1


def test_duplicates_repeat_the_runs_of_an_evaluation_but_not_its_rows(corpus_file):
    once, thrice = (
        MaskedLM(
            data=corpus_file, vocab_size=V, sequence_length=S, duplicates=n
        ).source("validation")
        for n in (1, 3)
    )
    task = MaskedLM(data=corpus_file, vocab_size=V, sequence_length=S, duplicates=3)
    assert len(task.source("train")) == len(
        MaskedLM(data=corpus_file, vocab_size=V, sequence_length=S).source("train")
    )
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


def test_hidden_tokens_are_80_10_10():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 1000, size=20_000).astype(np.int32)
    seen, positions, labels = pairs.mask_tokens(
        ids,
        np.ones(len(ids), bool),
        probability=1.0,
        limit=len(ids),
        mask_id=MASK,
        vocab_size=1000,
        rng=rng,
    )
    np.testing.assert_array_equal(labels, ids[positions])
    is_mask, is_same = seen[positions] == MASK, seen[positions] == labels
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
            mask_id=MASK,
            vocab_size=20,
            rng=np.random.default_rng(seed),
        )
        counts[masked.positions] += 1
    assert not counts[~maskable].any()
    # 4 of 16 places, 2,000 times: mean 500, standard deviation below 20.
    assert (abs(counts[maskable] - 500) < 80).all()


def source_of(path, lines, target):
    corpus = text_cache.load_corpus(write(path, lines), 30)
    return pairs.PairSource(corpus, "train", target=target)


WORDS = "abcdefgh bcd cde abc bcde cdef. "


@pytest.mark.parametrize(
    ("lines", "target", "message"),
    [
        (1, 29, "every document is one sentence; set config.task.next_sentence to Fa"),
        (3, 4, "none has two sentences in 4 tokens; .* raise config.task.sequence_len"),
    ],
)
def test_pairs_that_are_all_random_are_refused(tmp_path, lines, target, message):
    source = source_of(tmp_path / "c.txt", invent(30, lines), target)
    with pytest.raises(ValueError, match=f"trivial on the split 'train'.*{message}"):
        pairs.check_next_sentences(source)


def test_few_true_pairs_are_warned_of(tmp_path, caplog):
    source = source_of(tmp_path / "c.txt", invent(30, 1) + invent(4, 3), 99)
    pairs.check_next_sentences(source)
    assert "a constant guess reaches this" in caplog.text
    caplog.clear()
    pairs.check_next_sentences(source_of(tmp_path / "d.txt", invent(30, 3), 99))
    assert not caplog.text


def invent(number, lines):
    """So many different documents of so many lines each."""
    letters = "abcdefgh"
    return [
        [
            f"{WORDS}{letters[i % 8]}{letters[i // 8]} {letters[j]}."
            for j in range(lines)
        ]
        for i in range(number)
    ]


def test_whole_words_are_hidden_with_all_their_pieces():
    continues = np.array([0, 0, 1, 1, 0, 1, 0, 0, 1, 0], bool)
    words = [{1, 2, 3}, {4, 5}, {7, 8}]  # 0, 6 and 9 are special tokens
    candidates = np.array([1, 2, 3, 4, 5, 7, 8])
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        chosen = pairs.choose_words(candidates, continues, 4, rng)
        assert (np.diff(chosen) > 0).all()
        hidden = [word for word in words if word & set(chosen.tolist())]
        assert set().union(*hidden) == set(chosen.tolist())
        seen.add(tuple(chosen.tolist()))
    # Two short words fit together; beside the long one none does.
    assert seen == {(1, 2, 3), (4, 5, 7, 8)}


def test_no_word_is_hidden_if_none_fits():
    continues = np.array([0, 1, 1], bool)
    rng = np.random.default_rng(0)
    assert not len(pairs.choose_words(np.arange(3), continues, 2, rng))


def test_a_task_with_whole_words_hides_no_part_of_a_word(task):
    whole = dataclasses.replace(task, whole_words=True)
    source = whole.source("train")
    continues = source.continues
    parts = 0
    for i in range(100):
        row = whole.example(source[i % len(source)], np.random.default_rng(i))
        places = row["mlm_positions"][row["mlm_valid"]]
        original = row["token_ids"].copy()
        original[places] = row["mlm_labels"][row["mlm_valid"]]
        hidden = set(places.tolist())
        for place in np.flatnonzero(continues[original]):
            # The piece before it belongs to the same word, unless it is a [SEP].
            if original[place - 1] > 4:
                assert (int(place) in hidden) == (int(place) - 1 in hidden)
                parts += int(place) in hidden
    assert parts
