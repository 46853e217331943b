"""Tables with a row an example: files, folds, the lookup, and predictions for new rows."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from attn_jax import config as config_lib
from attn_jax import predict
from attn_jax.__main__ import main
from attn_jax.data import feature_rows
from attn_jax.models.bags import FeatureEncoder
from attn_jax.models.hopfield import Hopfield
from attn_jax.models.tables import RowLookup
from attn_jax.tasks.tables import ClassifyRows

pytestmark = pytest.mark.usefixtures("quick_compilation")

FIXED = dict(
    static_stored=True,
    static_state=True,
    static_projection=True,
    norm_stored="off",
    norm_state="off",
    norm_projection="off",
    out_projection=False,
)


def write_fingerprints(path, seed, rows, *, labels=True):
    """Molecules of 16 bits, "active" if one of the first two bits is set."""
    bits = (np.random.default_rng(seed).random((rows, 16)) < 0.3).astype(int)
    active = bits[:, :2].any(axis=1)
    header = [f"bit{i}" for i in range(16)]
    lines = [",".join([*header, "label"] if labels else header)]
    for row, label in zip(bits.tolist(), active, strict=True):
        cells = [*map(str, row), "active" if label else "inactive"]
        lines.append(",".join(cells if labels else cells[:-1]))
    path.write_text("\n".join(lines) + "\n")
    return str(path), active


def test_the_lookup_is_its_equation_and_a_stored_row_does_not_see_itself():
    rng = np.random.default_rng(0)
    x, stored = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    x[1] = stored[2]
    targets = np.eye(3)[[0, 1, 2, 1]]
    model = RowLookup(FeatureEncoder(()), Hopfield(beta=0.7, **FIXED))
    own = np.array([-1, 2, -1], np.int32)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, stored, targets)]
    out = model.apply({}, *arrays, jnp.asarray(own))["logits"]
    weights = np.exp(0.7 * x @ stored.T)
    weights[1, 2] = 0
    expected = weights @ targets / weights.sum(axis=1, keepdims=True)
    # Class 2 has no row that the second row may see: the smallest probability.
    np.testing.assert_allclose(np.exp(out), np.maximum(expected, 1e-6), rtol=1e-5)
    learned = RowLookup(FeatureEncoder(()), Hopfield(num_heads=1))
    message = "outputs of 5 numbers for 3 classes; set static_projection=True"
    with pytest.raises(ValueError, match=message):
        learned.init(jax.random.key(0), *arrays, jnp.asarray(own))


def test_every_row_is_tested_in_one_fold_and_never_stored_there():
    tested = 0
    for fold in range(3):
        task = ClassifyRows(data="iris", folds=3, fold=fold)
        splits = {s: task.source(s) for s in ("train", "validation", "test")}
        assert sorted(sum((s.names for s in splits.values()), [])) == sorted(
            task.rows.names
        )
        tested += len(splits["test"])
        # 50 rows of each class in three parts.
        assert set(np.bincount(splits["test"].targets)) <= {16, 17}
        stored = splits["train"]
        np.testing.assert_array_equal(task.memory.x, stored.x)
        # The stored rows, and they alone, are standardized.
        np.testing.assert_allclose(stored.x.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(stored.x.std(axis=0), 1, atol=1e-5)
        assert stored[5]["own"] == 5
        assert all(splits["test"].own == feature_rows.NO_ROW)
    assert tested == len(task.rows.x) == 150


def test_rows_of_another_table_are_none_of_those_stored(tmp_path):
    first, _ = write_fingerprints(tmp_path / "a.csv", 0, 40)
    other, _ = write_fingerprints(tmp_path / "b.csv", 1, 40)
    task = ClassifyRows(data=first, folds=4)
    saved = task.assets(task.source("train"))
    again = ClassifyRows(data=first, folds=4).bind(saved)
    np.testing.assert_array_equal(again.memory.x, task.memory.x)
    assert (again.source("train").own >= 0).all()
    assert (ClassifyRows(data=other, folds=4).bind(saved).source("train").own < 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f,label\n2,a\nx,a\n", "line 3: f='x' is no number"),
        ("f,class\n2,a\n", "no column 'label'; .* Set config.task.label_column"),
        ("f,label\nnan,a\n", "feature 0 of instance 0 is nan"),
        ("f,label\n1,a\n2,b\n", "folds=5 must be 3 or more .* 1 of 'a'"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(text, message, tmp_path):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        ClassifyRows(data=str(tmp_path / "rows.csv")).source("train")


def test_labels_and_columns_that_training_had_not_are_named(tmp_path):
    first, _ = write_fingerprints(tmp_path / "a.csv", 0, 40)
    known = ClassifyRows(data=first, folds=4)
    saved = known.assets(known.source("train"))
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "b.csv").write_text(text.replace("inactive", "weak"))
    (tmp_path / "c.csv").write_text(text.replace("bit3", "weight"))
    for name, message in [
        ("b.csv", "has the label 'weak', which is none of active, inactive"),
        ("c.csv", "lacks the column 'bit3'; the features of the training are"),
    ]:
        task = ClassifyRows(data=str(tmp_path / name), folds=4).bind(saved)
        with pytest.raises(ValueError, match=message):
            task.source("test")
    with pytest.raises(ValueError, match="must be an existing .csv or .tsv, or one of"):
        ClassifyRows(data=str(tmp_path / "none.csv")).source("train")
    with pytest.raises(ValueError, match="fold=5 must be below .*folds=5"):
        ClassifyRows(data="iris", fold=5)


def test_fingerprints_of_molecules_are_learned_and_predicted(tmp_path, capsys):
    table, _ = write_fingerprints(tmp_path / "molecules.csv", 0, 240)
    settings = [
        f"task.data={table}",
        'duration="60 steps"',
        'checkpoint_every="60 steps"',
    ]
    settings += ["optimizer.learning_rate=0.02", "model.encoder.widths=[16]"]
    config = config_lib.load("configs/hopfield/tables.py:debug", settings)
    run = tmp_path / "run"
    train.train(config, str(run))
    capsys.readouterr()
    main(["evaluate", f"--workdir={run}", "--step=latest"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    # Always "inactive" has 0.51 of 48 rows and an AUC of 0.5.
    assert found["test/accuracy"] > 0.8
    assert found["test/auc"] > 0.9

    new, active = write_fingerprints(tmp_path / "new.csv", 1, 20, labels=False)
    main(["predict", f"--workdir={run}", new, "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["input"] for line in lines] == [f"line {i}" for i in range(2, 22)]
    best = [line["predictions"][0]["label"] == "active" for line in lines]
    assert np.mean(best == active) > 0.7
    row = np.loadtxt(new, delimiter=",", skiprows=1)[0]
    named = {f"bit{i}": value for i, value in enumerate(row)}
    for given in (row, named):
        [alone] = predict(run, [given])
        np.testing.assert_allclose(
            alone["predictions"][0]["probability"],
            lines[0]["predictions"][0]["probability"],
            rtol=1e-5,
        )
    [refused] = predict(run, [row[:3]])
    assert "3 features, but 16 in training" in refused["error"]
    [refused] = predict(run, [{"bit0": 1.0}])
    assert "lacks the column 'bit1'" in refused["error"]
