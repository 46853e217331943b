"""Immune repertoires: the original's numbers, streaming, generated and real sets, training."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_hopfield import golden

import train
from attn_jax import config as config_lib
from attn_jax.__main__ import main
from attn_jax.convert.hopfield import deeprc_from_torch
from attn_jax.data import repertoires as data
from attn_jax.models.hopfield import repertoires as models
from attn_jax.tasks.bags import Repertoires

pytestmark = pytest.mark.usefixtures("quick_compilation")

DEEPRC = ("deeprc_default", "deeprc_counts")


def converted(case, **changes):
    config = json.loads(str(case["config"]))
    names = json.loads(str(case["state_dict_keys"]))
    module, variables = deeprc_from_torch(config, {name: case[name] for name in names})
    return module.clone(**changes), variables


def padded_inputs(case):
    """Sequences [B, K, L], mask and factors of a golden file's repertoires."""
    sizes = case["n_sequences_per_bag"]
    ends = np.cumsum(sizes)
    counted = json.loads(str(case["config"]))["consider_seq_counts"]
    factors = case["log_counts"] if counted else np.ones(ends[-1], np.float32)
    arrays = [
        np.full((len(sizes), max(sizes), case["indices"].shape[1]), -1, np.int8),
        np.zeros((len(sizes), max(sizes)), np.float32),
    ]
    for row, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        arrays[0][row, :size] = case["indices"][end - size : end]
        arrays[1][row, :size] = factors[end - size : end]
    mask = np.arange(max(sizes)) < sizes[:, None]
    sequences, factors = map(jnp.asarray, arrays)
    return sequences, jnp.asarray(mask), factors


# --- the original code ----------------------------------------------------------------


def test_positions_are_those_of_the_original():
    case = golden("deeprc_position_features")
    size = int(case["max_len"])
    found = models.position_features(jnp.asarray(case["lengths"]), size)
    for row, length in enumerate(case["lengths"]):
        # Float32 here, float64 there.
        expected = case[f"len{length}_float64"]
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", DEEPRC)
def test_features_are_those_of_the_original(name):
    case = golden(name)
    sequences, mask, factors = padded_inputs(case)
    deviation = models.feature_deviation(sequences, factors, mask)
    features = models.letter_features(sequences, factors)
    found = (features / deviation[:, None, None, None])[mask]
    # The original rounds positions to float16: the golden set's own tolerance.
    np.testing.assert_allclose(found, case["features"], rtol=0, atol=3e-3)


@pytest.mark.parametrize("name", DEEPRC)
def test_the_network_gives_the_numbers_of_the_original_from_its_features(name):
    case = golden(name)
    module, variables = converted(case)
    bound = module.bind(variables)
    features = jnp.asarray(case["features"])
    for lengths, suffix in (
        (np.full(len(features), features.shape[1]), ""),  # windows over padding, too
        (case["lengths"], "_unpadded"),
    ):
        embedded = bound.encoder(features, jnp.asarray(lengths))
        logits = bound.key(embedded) @ bound.state
        expected = case[f"attention_logits{suffix}"]
        # The golden set's own for float32. Its logits have a constant more.
        close = dict(rtol=0, atol=1e-5)
        np.testing.assert_allclose(embedded, case[f"embedding{suffix}"], **close)
        constant = expected[0] - logits[0]
        np.testing.assert_allclose(logits + constant, expected, **close)


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("name", DEEPRC)
def test_repertoires_have_the_logits_of_the_original_in_any_chunks(name, chunk):
    case = golden(name)
    module, variables = converted(case, chunk=chunk)
    sequences, mask, factors = padded_inputs(case)
    outputs = jax.jit(module.apply)(variables, sequences, mask, factors)
    expected = case["logits_unpadded"]
    found = outputs["logits"].reshape(expected.shape)
    # From sequences, so with positions that the original rounds: the golden set's own.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
    assert np.abs(expected - case["logits"]).max() > 0.01  # those over padding differ


def test_the_weights_are_the_softmax_of_the_original():
    case = golden("deeprc_default")
    module, variables = converted(case)
    sequences, mask, factors = padded_inputs(case)
    _, sown = module.apply(
        variables, sequences, mask, factors, mutable=["intermediates"]
    )
    [weights] = jax.tree.leaves(sown)
    logits = np.full(mask.shape, -np.inf)
    logits[mask] = case["attention_logits_unpadded"]
    expected = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(weights[:, 0, 0], expected, rtol=0, atol=2e-3)


def test_arrays_of_another_network_are_one_table():
    case = golden("deeprc_default")
    names = json.loads(str(case["state_dict_keys"]))
    arrays = {name: case[name] for name in names}
    with pytest.raises(
        ValueError, match=r"the model differ in 1 arrays; pass the sizes"
    ):
        deeprc_from_torch({"kernel_size": 7}, arrays)


# --- exactness ------------------------------------------------------------------------


def test_chunks_have_the_gradients_of_the_whole_softmax():
    case = golden("deeprc_default")
    sequences, mask, factors = padded_inputs(case)

    def gradient(chunk):
        module, variables = converted(case, chunk=chunk)

        def loss(variables):
            outputs = module.apply(variables, sequences, mask, factors)
            return jnp.square(outputs["logits"]).sum()

        return jax.jit(jax.grad(loss))(variables)

    whole, chunks = gradient(None), gradient(16)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunks), strict=True):
        assert np.abs(a).max() > 0
        # Another order of float32 sums.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_sequences_that_do_not_take_part_change_nothing():
    case = golden("deeprc_default")
    module, variables = converted(case, chunk=16)
    sequences, mask, factors = padded_inputs(case)
    expected = module.apply(variables, sequences, mask, factors)["logits"]
    more = jnp.pad(sequences, ((0, 0), (0, 5), (0, 0)), constant_values=-1)
    more = more.at[:, -1].set(3)  # letters of a sequence that does not take part
    found = module.apply(
        variables,
        more,
        jnp.pad(mask, ((0, 0), (0, 5))),
        jnp.pad(factors, ((0, 0), (0, 5)), constant_values=2.0),
    )["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_memory_in_chunks_does_not_grow_with_the_letters():
    def count_bytes(chunk):
        module = models.RepertoireClassifier(chunk=chunk)
        sequences = jax.ShapeDtypeStruct((1, 20_000, 20), jnp.int8)
        mask = jax.ShapeDtypeStruct((1, 20_000), bool)
        variables = jax.eval_shape(module.init, jax.random.key(0), sequences, mask)

        def loss(variables, sequences, mask):
            return module.apply(variables, sequences, mask)["logits"].sum()

        gradient = jax.jit(jax.grad(loss)).lower(variables, sequences, mask)
        return gradient.compile().memory_analysis().temp_size_in_bytes

    windows = 20_000 * 12 * 32 * 4  # bytes of the channels of every window
    assert count_bytes(None) > 2 * windows
    assert count_bytes(500) < windows


# --- repertoires ----------------------------------------------------------------------

DRAWN = dict(sequences=40, motifs=("SFEN", "WZWW"), rate=0.1, length=20, seed=3)


def spell(repertoire):
    letters = np.array([*data.AMINO_ACIDS, ""])
    return ["".join(letters[row]) for row in repertoire.sequences]


def test_a_drawn_repertoire_depends_on_its_seed_and_number_alone():
    first, again = (data.draw_repertoire(5, **DRAWN) for _ in range(2))
    np.testing.assert_array_equal(first.sequences, again.sequences)
    np.testing.assert_array_equal(first.counts, again.counts)
    for other in (
        data.draw_repertoire(7, **DRAWN),
        data.draw_repertoire(5, **DRAWN | dict(seed=4)),
    ):
        assert (first.sequences != other.sequences).any()


def test_positive_repertoires_have_so_many_witnesses_and_negative_ones_by_chance_only():
    def count(index, **changes):
        texts = spell(data.draw_repertoire(index, **DRAWN | changes))
        return sum(bool(re.search("SFEN|W.WW", text)) for text in texts)

    # 40 sequences have a motif by chance with a probability of 6 %.
    assert sum(count(index) for index in range(0, 20, 2)) <= 3
    assert all(4 <= count(index) <= 5 for index in range(1, 20, 2))
    assert all(20 <= count(index, rate=0.5) <= 22 for index in range(1, 20, 2))


def test_other_letters_are_those_of_the_negative_repertoire():
    """So a set of another rate has the same background."""
    found = [data.draw_repertoire(1, **DRAWN | dict(rate=r)) for r in (0.1, 0.5)]
    differ = (found[0].sequences != found[1].sequences).any(axis=1)
    assert 10 <= differ.sum() <= 24
    assert 10 < np.mean([len(text) for text in spell(found[0])]) < 17


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rate=0.01), "rate=0.01 of sequences=40 are 0 witnesses; at least 1"),
        (dict(motifs=("SFBN",)), "motif='SFBN' must be 1 to 20 letters of ACDEF"),
        (dict(motifs=("",)), "motif='' must be 1 to 20 letters"),
        (dict(motifs=()), "motif='' must be 1 to 20 letters"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        data.draw_repertoire(1, **DRAWN | changes)


def write_cohort(folder, count=12):
    """A table of labels, and the repertoires it names."""
    lines = ["label\tfile"]
    for index in range(count):
        found = data.draw_repertoire(index, **DRAWN)
        rows = zip(spell(found), found.counts, strict=True)
        text = "".join(f"{n}\tx\t{sequence}\n" for sequence, n in rows)
        (folder / f"{index}.tsv").write_text(f"templates\tother\tamino_acid\n{text}")
        lines.append(f"{found.label}\t{index}.tsv")
    (folder / "labels.tsv").write_text("\n".join(lines) + "\n")
    return str(folder / "labels.tsv")


def test_files_hold_what_was_written(tmp_path):
    found = data.read_labeled(write_cohort(tmp_path), data.Columns())
    assert len(found) == 12
    for index, repertoire in enumerate(found):
        expected = data.draw_repertoire(index, **DRAWN)
        assert repertoire.name == f"{index}.tsv"
        assert repertoire.label == expected.label
        assert spell(repertoire) == spell(expected)
        np.testing.assert_array_equal(repertoire.counts, expected.counts)
    once = data.read_repertoire(tmp_path / "0.tsv", data.Columns(count=None))
    assert once.counts.tolist() == [1] * 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "amino_acid\ttemplates\nACD\t1\nABD\t1\n",
            r"0.tsv, line 3: .*'ABD' has the letter 'B'",
        ),
        (
            "amino_acid\ttemplates\nACD\t1\n\nA*D\t1\n",
            r"0.tsv, line 4: .* the letter '\*'",
        ),
        ("amino_acid\ttemplates\nAcD\t1\n", "line 2: .* the letter 'c'"),
        (
            "amino_acid\ttemplates\nA\u00e9\u4e2dD\t1\n",
            "line 2: .* the letter '\u00e9'",
        ),
        ("amino_acid\ttemplates\n\t1\n", "line 2: the sequence is empty"),
        ("amino_acid\ttemplates\nACD\t0\n", "line 2: templates='0' must be an integer"),
        ("amino_acid\ttemplates\nACD\tnull\n", "line 2: templates='null' must be"),
        ("amino_acid\ttemplates\nACD\n", "line 2: 1 columns instead of 2"),
        ("sequence\ttemplates\nACD\t1\n", "no column 'amino_acid'; its first line has"),
        ("amino_acid\ttemplates\n", "0.tsv has no sequence; leave out empty"),
    ],
)
def test_a_repertoire_that_cannot_be_read_is_named_with_its_line(
    text, message, tmp_path
):
    table = write_cohort(tmp_path)
    (tmp_path / "0.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Repertoires(data=table).source("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "label\tfile\na\tnone.tsv\n",
            "labels.tsv, line 2: there is no file .*none.tsv",
        ),
        ("label\tfile\na\t0.tsv\nb\t0.tsv\n", "line 3: 0.tsv is named in line 2, too"),
        (
            "label\tname\na\t0.tsv\n",
            "no column 'file'; its first line has: label, name",
        ),
        ("label\tfile\n", "labels.tsv has no row"),
        (
            "label\tfile\na\t0.tsv\nb\t1.tsv\nc\t2.tsv\n",
            "labels a, b, c; there must be",
        ),
    ],
)
def test_a_table_of_labels_that_cannot_be_read_is_named(text, message, tmp_path):
    table = write_cohort(tmp_path)
    (tmp_path / "labels.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Repertoires(data=table).source("train")
    with pytest.raises(ValueError, match="must be an existing table, .tsv or .csv"):
        Repertoires(data=str(tmp_path)).source("train")


def test_an_example_holds_all_sequences_or_so_many_random_ones():
    task = Repertoires(repertoires=12, sequences=40, rate=0.1, folds=3, draw=8)
    record = task.source("train")[0]
    whole = task.example(record, None)
    assert whole["instances"].shape == (40, 30) and whole["mask"].all()
    assert (whole["factors"] == 1).all()
    part = task.example(record, np.random.default_rng(0))
    assert part["instances"].shape == (8, 30) and part["mask"].all()
    rows = {row.tobytes() for row in whole["instances"]}
    assert len({row.tobytes() for row in part["instances"]} & rows) == 8
    counted = dataclasses.replace(task, use_counts=True).example(record, None)
    expected = np.log(record["repertoire"].counts)
    np.testing.assert_allclose(counted["factors"], expected, rtol=1e-6)
    small = dataclasses.replace(task, max_sequences=39)
    with pytest.raises(
        ValueError, match="has 40 sequences of up to 30 letters; at most"
    ):
        small.example(small.source("train")[0], None)


def test_a_run_on_files_learns_and_predicts_for_a_new_repertoire(tmp_path, capsys):
    table = write_cohort(tmp_path)
    changes = [f"task.data={table}", "task.folds=3", "task.max_length=20"]
    config = config_lib.load("configs/hopfield/repertoires.py:debug", changes)
    train.train(config, str(tmp_path / "run"))
    capsys.readouterr()
    file = str(tmp_path / "1.tsv")
    main(["predict", f"--workdir={tmp_path / 'run'}", file, "--json"])
    [found] = map(json.loads, capsys.readouterr().out.splitlines())
    assert (found["input"], found["instances"]) == (file, 40)
    assert {p["label"] for p in found["predictions"]} == {"absent", "present"}
