"""The masked language model: its rows, losses and assets."""

import dataclasses
import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from invented import CLS, MASK, SEP, S, V, check_equal, documents, write

from attn_jax.data import pipeline, text
from attn_jax.tasks.masked_lm import MaskedLM

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def task(corpus_file):
    return MaskedLM(data=corpus_file, vocab_size=V, sequence_length=S)


def examples(task, number, split="train"):
    source = task.source(split)
    for i in range(number):
        yield task.example(source[i % len(source)], np.random.default_rng([7, i]))


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
        assert whole[0] == CLS
        [first, second] = np.flatnonzero(whole == SEP)
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
        assert (row["mlm_labels"][:count] != CLS).all()
        assert (row["mlm_labels"][:count] != SEP).all()
        assert count == min(5, max(1, round(0.15 * length)))
        assert not row["mlm_positions"][count:].any()
        most = max(most, count)
    assert most == 5


def test_fewer_predictions_are_kept_where_fewer_are_asked_for(corpus_file):
    task = MaskedLM(
        data=corpus_file, vocab_size=V, sequence_length=S, max_predictions=2
    )
    counts = {int(row["mlm_valid"].sum()) for row in examples(task, 100)}
    assert counts <= {1, 2}


def test_masking_leaves_the_corpus_as_it_was(task):
    source = task.source("train")
    before = source.fingerprint()
    list(examples(task, 50))
    assert task.source("train").fingerprint() == source.fingerprint() == before


def test_a_tenth_of_the_rows_is_short(corpus_file):
    def lengths(probability):
        task = MaskedLM(
            data=corpus_file,
            vocab_size=V,
            sequence_length=S,
            short_sequence_probability=probability,
        )
        return np.array([row["mask"].sum() for row in examples(task, 1000)])

    assert lengths(1.0).mean() < lengths(0.1).mean() - 2 < lengths(0.0).mean() - 2


def test_without_next_sentence_a_row_is_one_segment(corpus_file):
    task = MaskedLM(
        data=corpus_file, vocab_size=V, sequence_length=S, next_sentence=False
    )
    assert set(task.coefficients) == {"mlm_loss"}
    longest = 0
    for row in examples(task, 200):
        length = int(row["mask"].sum())
        assert not row["segment_ids"].any()
        assert not row["is_random_next"]
        assert row["token_ids"][length - 1] == SEP
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
        ({"mlm_logits": (5, V + 1)}, "has 121 classes, but the task 120"),
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
        ({"mask_probability": 1.5}, "is a probability"),
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
    counts = [np.bincount(part.token_ids, minlength=V) for part in splits.values()]
    own, cross = text.unigram_entropy(*counts)
    # Written with four digits.
    assert known["unigram_entropy"] == pytest.approx(own, abs=1e-4)
    assert known["unigram_cross_entropy"] == pytest.approx(cross, abs=1e-4)
    assert own < cross
    assert known["python"] is None  # the text is a file's


def test_assets_do_not_depend_on_where_the_data_lies(task, tmp_path):
    moved = dataclasses.replace(task, data=write(tmp_path / "moved.txt", documents()))
    ours, theirs = task.source("train"), moved.source("train")
    assert task.assets(ours) == moved.assets(theirs)
    assert ours.fingerprint() == theirs.fingerprint()


def change_words(lines):
    """Another text in the same letters."""
    return [[line.replace("ab", "ha").replace("c", "dg") for line in d] for d in lines]


def test_a_bound_task_reads_other_text_with_the_vocabulary_of_the_run(task, tmp_path):
    source = task.source("train")
    assets = task.assets(source)
    other = dataclasses.replace(
        task, data=write(tmp_path / "b.txt", change_words(documents()))
    )
    assert other.source("train").corpus.vocabulary != source.corpus.vocabulary
    bound = other.bind(assets)
    assert bound.source("train").corpus.vocabulary == source.corpus.vocabulary
    assert bound.source("validation").corpus.vocabulary == source.corpus.vocabulary
    # Bound to its own text, nothing changes.
    again = task.bind(assets)
    assert again.source("train").fingerprint() == source.fingerprint()
    assert again.bind(assets) == again


def test_a_bound_task_lower_cases_as_the_run_did(corpus_file, caplog):
    cased = MaskedLM(
        data=corpus_file, vocab_size=V, sequence_length=S, lower_case=False
    )
    assets = cased.assets(cased.source("train"))
    bound = MaskedLM(data=corpus_file, vocab_size=V, sequence_length=S).bind(assets)
    assert "lower_case=False" in caplog.text
    assert bound.lower_case is False
    ours, theirs = bound.source("train"), cased.source("train")
    assert ours.fingerprint() == theirs.fingerprint()


def test_the_documentation_of_another_python_is_warned_of(task, caplog):
    assets = task.assets(task.source("train"))
    foreign = {**assets, "text.json": '{"python": "3.9.1"}'}
    dataclasses.replace(task, data="stdlib").bind(assets)
    task.bind(foreign)
    assert not caplog.text
    dataclasses.replace(task, data="stdlib").bind(foreign)
    assert "but the run read that of 3.9.1" in caplog.text


def test_assets_without_a_vocabulary_leave_the_task_as_it_is(task):
    assert task.bind({"images.json": "{}"}) is task


def test_a_vocabulary_of_another_size_is_refused(task, corpus_file):
    assets = task.assets(task.source("train"))
    other = MaskedLM(data=corpus_file, vocab_size=V + 1, sequence_length=S)
    with pytest.raises(
        ValueError,
        match="has 120 word pieces, .*vocab_size=121; .*model.vocab_size to 120",
    ):
        other.bind(assets)


def test_a_second_vocabulary_is_refused(task, tmp_path):
    assets = task.assets(task.source("train"))
    pieces = assets["vocab.txt"].splitlines()
    swapped = {**assets, "vocab.txt": "\n".join([*pieces[:-2], pieces[-1], pieces[-2]])}
    with pytest.raises(ValueError, match="two different vocabularies"):
        task.bind(assets).bind(swapped)
    (tmp_path / "vocab.txt").write_text(swapped["vocab.txt"])
    named = dataclasses.replace(task, vocabulary=str(tmp_path))
    with pytest.raises(ValueError, match="two different vocabularies"):
        named.bind(assets)


@pytest.mark.parametrize("settings", ["[1]", "[" * 100_000, '{"lower_case": "yes"}'])
def test_damaged_settings_are_refused(task, settings):
    assets = {**task.assets(task.source("train")), "text.json": settings}
    with pytest.raises(ValueError):
        task.bind(assets)


def test_a_vocabulary_may_be_named_by_its_path(task, tmp_path):
    source = task.source("train")
    (tmp_path / "assets").mkdir()
    for name, content in task.assets(source).items():
        (tmp_path / "assets" / name).write_text(content)
    other = write(tmp_path / "b.txt", change_words(documents()))
    named = dataclasses.replace(task, data=other, vocabulary=str(tmp_path))
    assert named.source("train").corpus.vocabulary == source.corpus.vocabulary
    absent = dataclasses.replace(task, vocabulary=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="no vocab.txt at vocabulary="):
        absent.source("train")


def test_rows_use_the_special_tokens_of_the_vocabulary(task):
    """Google's vocabularies do not start with them."""
    assets = task.assets(task.source("train"))
    pieces = assets["vocab.txt"].splitlines()
    moved = {**assets, "vocab.txt": "\n".join([*pieces[5:], *pieces[4::-1]])}
    ours, theirs = examples(task, 50), examples(task.bind(moved), 50)
    # The same words, so the same draws; a random piece is the same number in both.
    order = [*range(V - 1, V - 6, -1), *range(V - 5)]
    for row, other in zip(ours, theirs, strict=True):
        for name in ("mask", "segment_ids", "mlm_positions", "is_random_next"):
            np.testing.assert_array_equal(row[name], other[name])
        shown = row["mlm_valid"]
        numbers = np.array(order)[row["mlm_labels"]]
        np.testing.assert_array_equal(numbers[shown], other["mlm_labels"][shown])
        visible = np.ones(S, bool)
        visible[row["mlm_positions"][shown]] = False
        numbers = np.array(order)[row["token_ids"]]
        np.testing.assert_array_equal(numbers[visible], other["token_ids"][visible])
        hidden = (row["token_ids"] == MASK) & ~visible
        assert (other["token_ids"][hidden] == V - 5).all()


def test_a_corpus_of_single_sentences_is_refused_for_pairs_only(tmp_path):
    lines = [[line] for document in documents() for line in document]
    path = write(tmp_path / "corpus.txt", lines)
    with pytest.raises(ValueError, match="corpus.txt.*every document is one sentence"):
        MaskedLM(data=path, vocab_size=V, sequence_length=S).source("train")
    assert len(
        MaskedLM(
            data=path, vocab_size=V, sequence_length=S, next_sentence=False
        ).source("train")
    )


def test_files_left_out_are_listed_by_the_source(tmp_path):
    for i, document in enumerate(documents()):
        (tmp_path / f"{i}.txt").write_text("\n\n".join(f"{s} x y z" for s in document))
    (tmp_path / "readme.md").write_text("Not read.")
    source = MaskedLM(data=str(tmp_path), vocab_size=V, sequence_length=S).source(
        "train"
    )
    assert source.left_out == ("readme.md",)
    assert pickle.loads(pickle.dumps(source)).left_out == ("readme.md",)
