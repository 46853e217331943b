"""Rows of several sequences: how they are planned, and that they are the sequences alone."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invented import CLS, SEP, S, V, check_equal, documents, write
from test_bert import GOLDEN

from attn_jax import convert
from attn_jax.convert.bert import read_hf
from attn_jax.data import packing, pipeline
from attn_jax.models.bert import Bert
from attn_jax.tasks.masked_lm import MaskedLM

pytestmark = pytest.mark.usefixtures("cache", "quick_compilation")

ROW = 4 * S


@pytest.fixture
def task(corpus_file):
    """Sequences of many lengths, up to 8 in a row."""
    return MaskedLM(
        data=corpus_file,
        vocab_size=V,
        sequence_length=ROW,
        packed=8,
        short_sequence_probability=0.5,
    )


# --- the plan ---------------------------------------------------------------------------


def check_plan(lengths, size, most):
    """The rows of an epoch, each record in one of them and none too long."""
    plan = packing.pack(lengths, size, most)
    rows = list(packing.draw_rows(plan, np.random.default_rng(0)))
    assert sorted(record for row in rows for record in row) == list(range(len(lengths)))
    for row in rows:
        assert 0 < len(row) <= most
        assert lengths[list(row)].sum() <= size
    return rows


def test_every_record_has_a_place_and_no_row_is_too_long():
    rng = np.random.default_rng(0)
    for size, most in [(40, 5), (40, 2), (512, 8), (7, 7)]:
        lengths = rng.integers(1, size, size=300, endpoint=True)
        check_plan(lengths, size, most)
    assert check_plan(np.array([5]), 5, 1) == [(0,)]


def test_rows_are_as_full_as_the_best_fit_makes_them():
    # 30 + 10 and 25 + 15 fill rows of 40; 20 + 20 too.
    lengths = np.array([10, 30, 20, 15, 25, 20] * 7)
    assert len(check_plan(lengths, 40, 8)) == 7 * 3
    assert len(check_plan(lengths, 40, 1)) == 7 * 6
    rng = np.random.default_rng(1)
    many = rng.integers(5, 512, size=20_000, endpoint=True)
    rows = check_plan(many, 512, 8)
    assert many.sum() / (512 * len(rows)) > 0.99


def test_the_number_of_rows_depends_on_the_lengths_alone():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 100, size=500)
    plan = packing.pack(lengths, 128, 4)
    assert len(plan.starts) == len(
        packing.pack(rng.permutation(lengths), 128, 4).starts
    )
    one, again, other = (
        list(packing.draw_rows(plan, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert one == again != other
    assert len(one) == len(other)
    assert set(one) != set(other)  # other sequences meet, not only in another order


# --- rows of text -----------------------------------------------------------------------


def test_a_packed_row_holds_whole_sequences_with_positions_of_their_own(task):
    source = task.source("train")
    several = 0
    for number, row in enumerate(source.rows(0, 0)):
        records = [source[record] for record in row]
        arrays = task.example(records, np.random.default_rng(number))
        ids, sequences = arrays["token_ids"].copy(), arrays["sequence_ids"]
        places = arrays["mlm_positions"][arrays["mlm_valid"]]
        assert (np.diff(places) > 0).all()
        ids[places] = arrays["mlm_labels"][arrays["mlm_valid"]]
        np.testing.assert_array_equal(arrays["mask"], sequences > 0)
        assert arrays["cls_mask"].sum() == sequences.max() == len(row)
        for i, record in enumerate(records):
            [where] = np.nonzero(sequences == i + 1)
            assert where[0] == arrays["cls_positions"][i]
            np.testing.assert_array_equal(
                arrays["position_ids"][where], range(len(where))
            )
            assert ids[where[0]] == CLS and ids[where[-1]] == SEP
            assert (ids[where] == SEP).sum() == 2
            second = arrays["segment_ids"][where]
            assert (np.diff(second) >= 0).all() and second[-1] == 1
            assert len(where) <= record["target"] + 3
            masked = np.isin(where, places).sum()
            assert masked == max(1, round(0.15 * len(where)))
        several += len(row) > 2
    assert several > 2


def test_an_epoch_reads_every_run_once_in_fewer_rows(task):
    source = task.source("train")
    rows = list(source.rows(3, 5))
    assert len(rows) == source.rows_per_epoch < len(source)
    assert sorted(sum(rows, ())) == list(range(len(source)))
    alone = dataclasses.replace(task, packed=None).source("train")
    ends = source.text.measure_runs(source.runs)
    assert ends.sum() == alone.text.num_tokens


def test_masks_are_never_too_many_for_a_row(corpus_file):
    task = MaskedLM(
        data=corpus_file,
        vocab_size=V,
        sequence_length=ROW,
        packed=20,
        mask_probability=0.5,
        short_sequence_probability=1.0,
    )
    source = task.source("train")
    for number, row in enumerate(source.rows(0, 0)):
        records = [source[record] for record in row]
        arrays = task.example(records, np.random.default_rng(number))
        lengths = np.bincount(arrays["sequence_ids"])[1:]
        wanted = sum(max(1, round(0.5 * int(length))) for length in lengths)
        # As many as may be masked at most: [CLS] and two [SEP] are not.
        assert arrays["mlm_valid"].sum() == min(
            wanted, sum(min(round(0.5 * int(n)), int(n) - 3) for n in lengths)
        )


def test_each_segment_has_a_token_even_where_a_document_is_one(tmp_path):
    lines = [*documents(), *([letter] for letter in "abcdefgh")]
    data = write(tmp_path / "text.txt", lines)
    task = MaskedLM(data=data, vocab_size=V, sequence_length=ROW, packed=8)
    source = task.source("train")
    assert min(source.text.measure_runs(source.runs)) == 1
    for number, row in enumerate(source.rows(0, 0)):
        records = [source[record] for record in row]
        arrays = task.example(records, np.random.default_rng(number))
        for i in range(1, len(row) + 1):
            segments = arrays["segment_ids"][arrays["sequence_ids"] == i]
            assert (segments == 0).sum() > 2 and (segments == 1).sum() > 1


def test_batches_are_the_same_for_any_worker_and_after_a_resume(task):
    source = task.source("train")
    read = functools.partial(
        pipeline.training_batches, source, task, seed=1, batch_size=4
    )
    whole = read(rows=np.arange(4))
    batches = [next(whole) for _ in range(2 * source.rows_per_epoch // 4 + 1)]
    resumed = read(rows=np.arange(4), start_step=len(batches) - 1)
    check_equal(next(resumed), batches[-1])
    for part in ([0, 1], [2, 3]):
        one = next(read(rows=np.array(part), start_step=2, workers=1))
        check_equal(one, {k: v[part] for k, v in batches[2].items()})
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint()


def test_a_fingerprint_tells_how_rows_are_packed(task):
    prints = {
        dataclasses.replace(task, **change).source("train").fingerprint()
        for change in (
            {},
            {"packed": 7},
            {"packed": None},
            {"short_sequence_probability": 0.1},
            {"sequence_length": ROW - 1},
        )
    }
    assert len(prints) == 5


def test_an_evaluation_of_packed_rows_reads_each_sequence_as_alone(task):
    source = task.source("validation")
    batches = pipeline.evaluation_batches(source, task, batch_size=4, rows=np.arange(4))
    found = set()
    for batch in batches:
        for row in range(4):
            if batch["valid"][row]:
                for i in range(1, batch["sequence_ids"][row].max() + 1):
                    where = batch["sequence_ids"][row] == i
                    found.add(batch["token_ids"][row][where].tobytes())
    alone = (task.example([source[i]], None) for i in range(len(source)))
    assert found == {row["token_ids"][row["mask"]].tobytes() for row in alone}


def test_packed_static_rows_are_refused(task):
    with pytest.raises(ValueError, match="packed to None"):
        dataclasses.replace(task, static_seed=1)


# --- the model --------------------------------------------------------------------------


def gradients(task, module, params, batch):
    def loss(params):
        outputs = module.apply({"params": params}, **task.inputs(batch))
        terms = task.loss(outputs, batch)
        parts = {name: terms[name][0] / terms[name][1] for name in task.coefficients}
        return sum(parts.values()), parts

    (_, parts), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return parts, gradient


def test_packed_rows_have_the_losses_and_gradients_of_the_original():
    packed = np.load(GOLDEN.parent / "packing" / "packing.npz")
    module, variables = convert.load_pretrained(GOLDEN / "pretraining")
    width = int((packed["labels"] >= 0).sum(1).max())
    task = MaskedLM(
        data="unread",
        vocab_size=120,
        sequence_length=40,
        packed=5,
        max_predictions=width,
    )
    batch = {
        "token_ids": packed["input_ids"],
        "segment_ids": packed["token_type_ids"],
        "mask": packed["segment_ids"] > 0,
        "sequence_ids": packed["segment_ids"],
        "position_ids": packed["position_ids"],
        "cls_positions": packed["cls_positions"],
        "cls_mask": packed["cls_mask"] == 1,
        "is_random_next": np.maximum(packed["next_sentence_label"], 0),
        "valid": np.ones(3, bool),
        "mlm_positions": np.zeros((3, width), np.int32),
        "mlm_labels": np.zeros((3, width), np.int32),
        "mlm_valid": np.zeros((3, width), bool),
    }
    for row, labels in enumerate(packed["labels"]):
        [places] = np.nonzero(labels >= 0)
        batch["mlm_positions"][row, : len(places)] = places
        batch["mlm_labels"][row, : len(places)] = labels[places]
        batch["mlm_valid"][row, : len(places)] = True
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    parts, gradient = gradients(task, module, variables["params"], batch)
    for name, theirs in [("mlm_loss", "mlm_loss"), ("nsp_loss", "nsp_loss")]:
        # Float32 against float64: the logits differ by at most 1e-5.
        assert float(parts[name]) == pytest.approx(float(packed[theirs]), abs=1e-5)
    stored = np.load(GOLDEN.parent / "packing" / "grads.npz")
    theirs = {
        read_hf.modernize_name(name.removeprefix("grad/")): array
        for name, array in stored.items()
    }
    wanted = read_hf.read_params(module, theirs, "grads.npz", heads_chosen=False)
    flat, tree = jax.tree.flatten_with_path(gradient)
    assert tree == jax.tree.structure(wanted)
    for (path, ours), array in zip(flat, jax.tree.leaves(wanted), strict=True):
        # Gradients of up to 1 or so, float32 sums over the tokens of three rows.
        np.testing.assert_allclose(
            ours, array, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )


def test_packed_rows_have_the_losses_and_gradients_of_each_sequence_alone(task):
    module = Bert(
        vocab_size=V,
        width=16,
        depth=2,
        mlp_width=32,
        num_heads=2,
        max_positions=ROW,
        dropout=0.0,
        attention_dropout=0.0,
    )
    source = task.source("validation")
    rows = [[source[i] for i in row] for row in source.rows(0, 0)][:4]
    flat = [[record] for row in rows for record in row]
    assert len(flat) > len(rows)

    def stack(groups):
        examples = [task.example(group, None) for group in groups]
        batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
        batch["valid"] = np.ones(len(groups), bool)
        return {name: jnp.asarray(array) for name, array in batch.items()}

    packed, alone = stack(rows), stack(flat)
    params = module.init(jax.random.key(0), **task.inputs(packed))["params"]
    # Attention that is not nearly uniform, so that a leak between sequences shows.
    params = jax.tree.map(lambda x: 4 * x, params)
    ours, theirs = (gradients(task, module, params, batch) for batch in (packed, alone))
    for name in task.coefficients:
        assert float(ours[0][name]) == pytest.approx(float(theirs[0][name]), abs=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (ours[1], theirs[1])), strict=True):
        # Sums of float32 in another order.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
