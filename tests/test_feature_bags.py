"""The user's own bags: files, folds, and predictions for new bags."""

import json

import numpy as np
import pytest

import train
from attn_jax import config as config_lib
from attn_jax import predict
from attn_jax.__main__ import main
from attn_jax.analysis import attention_maps
from attn_jax.data import bag_tables, invented
from attn_jax.restore import restore
from attn_jax.tasks.bags import FeatureBags

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def arrays():
    """x, bag, y of 40 bags, y for each bag."""
    bags = invented.make_bags(40)
    x = np.concatenate([instances for _, instances, _ in bags])
    bag = np.repeat(np.arange(40), [len(instances) for _, instances, _ in bags])
    return x, bag, np.arange(40) % 2


def write_table(path, x, bag, y, separator=","):
    names = ["bag", *(f"f{i}" for i in range(x.shape[1])), "label"]
    lines = [separator.join(names)]
    for row, name in zip(x.tolist(), bag, strict=True):
        lines.append(separator.join(map(str, [name, *row, y[name]])))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_npz_with_labels_of_bags_or_instances_csv_and_tsv_hold_the_same(
    arrays, tmp_path
):
    x, bag, y = arrays
    np.savez(tmp_path / "bags.npz", x=x, bag=bag, y=y)
    np.savez(tmp_path / "instances.npz", a_x=x, a_bag=bag, a_y=y[bag][:, None])
    files = [
        (str(tmp_path / "bags.npz"), bag_tables.Columns()),
        (str(tmp_path / "instances.npz"), bag_tables.Columns(group="a")),
        (write_table(tmp_path / "bags.csv", x, bag, y), bag_tables.Columns()),
        (write_table(tmp_path / "bags.tsv", x, bag, y, "\t"), bag_tables.Columns()),
    ]
    expected = None
    for file, columns in files:
        found = bag_tables.read_bags(file, columns)
        assert [int(b.name) for b in found] == list(range(40))
        assert [int(b.label) for b in found] == y.tolist()
        instances = np.concatenate([b.instances for b in found])
        expected = instances if expected is None else expected
        np.testing.assert_array_equal(instances, expected)


def test_every_bag_is_tested_in_one_fold_and_never_trained_on_there(arrays, tmp_path):
    x, bag, y = arrays
    np.savez(tmp_path / "bags.npz", x=x, bag=bag, y=y)
    tested = []
    for fold in range(4):
        task = FeatureBags(data=str(tmp_path / "bags.npz"), folds=4, fold=fold)
        names = {
            split: [b.name for b in task.source(split).bags]
            for split in ("train", "validation", "test")
        }
        assert sorted(sum(names.values(), []), key=int) == [str(i) for i in range(40)]
        tested += names["test"]
        # Equal shares of both classes.
        assert task.source("test").targets.mean() == 0.5
        # The features of the training bags, and of them alone, are standardized.
        train_bags = task.source("train")
        rows = np.concatenate(
            [train_bags[i]["instances"] for i in range(len(train_bags))]
        )
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(rows.std(axis=0), 1, atol=1e-5)
    assert sorted(tested, key=int) == [str(i) for i in range(40)]


def test_a_constant_feature_stays_finite():
    bags = [bag_tables.Bag("a", np.full((3, 2), 5, np.float32), None)]
    statistics = bag_tables.measure_features([bags[0].instances])
    assert (bag_tables.standardize(bags[0].instances, statistics) == 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bag,f,label\n1,2,a\n1,x,a\n", "line 3: f='x' is no number"),
        ("bag,f,label\n1,2\n", "line 2: 2 columns instead of 3"),
        ("id,f,label\n1,2,a\n", "no column 'bag'; its first line has: id, f, label"),
        ("bag,f,label\n1,2,a\n1,3,b\n", "bag 1 have the labels a, b; a bag has one"),
        ("bag,f,label\n1,nan,a\n", "feature 0 of instance 0 is nan"),
        ("bag,f,label\n", "has no row"),
        ("bag,f,label\n1,2,a\n2,2,b\n3,3,c\n", "labels a, b, c; there must be two"),
        ("bag,f,label\n1,2,a\n2,2,b\n", "folds=5 must be 3 or more .* 1 of 'a'"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(text, message, tmp_path):
    (tmp_path / "bags.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        FeatureBags(data=str(tmp_path / "bags.csv")).source("train")


def test_an_npz_that_cannot_be_read_is_named(arrays, tmp_path):
    x, bag, y = arrays
    path = tmp_path / "bags.npz"
    for held, message in [
        (dict(x=x, bag=bag), "lacks the array y; it holds: bag, x"),
        (dict(x=x, bag=bag[1:], y=y), r"bag is \[\d+\], but x \[\d+, 8\]"),
        (dict(x=x, bag=bag + 1, y=y), "number the bags from 0"),
        (dict(x=x[:, 0], bag=bag, y=y), r"must be numbers \[N, F\]"),
    ]:
        np.savez(path, **held)
        with pytest.raises(ValueError, match=message):
            bag_tables.read_bags(str(path), bag_tables.Columns())
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is no readable .npz"):
        bag_tables.read_bags(str(path), bag_tables.Columns())
    with pytest.raises(ValueError, match="must be an existing file of bags"):
        bag_tables.read_bags(str(tmp_path / "other.npz"), bag_tables.Columns())
    with pytest.raises(ValueError, match="fold=5 must be below .*folds=5"):
        FeatureBags(data="generated", fold=5)


def test_a_run_predicts_for_the_bags_of_a_new_file(arrays, tmp_path, capsys):
    config = config_lib.load("configs/hopfield/my_bags.py:debug", [])
    train.train(config, str(tmp_path / "run"))
    capsys.readouterr()
    x, bag, y = arrays
    file = write_table(tmp_path / "new.csv", x, bag, y)
    main(["predict", f"--workdir={tmp_path / 'run'}", file, "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [int(result["input"]) for result in found] == list(range(40))
    assert [r["instances"] for r in found] == np.bincount(bag).tolist()
    # What an evaluation computes for the same bags: they are those that training drew.
    [alone] = predict(tmp_path / "run", [x[bag == 3]])
    best, other = alone["predictions"]
    assert {best["label"], other["label"]} == {"absent", "present"}
    again = found[3]["predictions"][0]
    assert best["label"] == again["label"]
    np.testing.assert_allclose(best["probability"], again["probability"], rtol=1e-5)
    np.testing.assert_allclose(best["probability"] + other["probability"], 1)
    # The weights are those of the pooling in the same pass, the largest first.
    module, variables, task = restore(tmp_path / "run")
    [row] = task.read_input(x[bag == 3])[1]
    maps = attention_maps(
        module, variables, **{name: array[None] for name, array in row.items()}
    )
    weights = maps["pooling/hopfield"].mean(axis=(0, 1, 2))
    order = np.argsort(-weights)[: min(5, found[3]["instances"])]
    assert [w["instance"] for w in alone["weights"]] == order.tolist()
    shown = [w["weight"] for w in alone["weights"]]
    np.testing.assert_allclose(shown, weights[order], rtol=1e-5)
    main(["predict", f"--workdir={tmp_path / 'run'}", file, "--top=1"])
    line = capsys.readouterr().out.splitlines()[1]
    first = found[0]["weights"][0]
    assert line.endswith(
        f"instances: {first['instance']} {100 * first['weight']:.1f} %"
    )
    [refused] = predict(tmp_path / "run", [x[:3, :4]])
    assert "4 features, but 8 in training" in refused["error"]
    [refused] = predict(tmp_path / "run", [np.zeros((0, 8))])
    assert "holds 0 instances; a bag has 1 to 8" in refused["error"]
    [refused] = predict(tmp_path / "run", [np.full((3, 8), np.nan)])
    assert "feature 0 of instance 0 is nan; every feature must" in refused["error"]
    [refused] = predict(tmp_path / "run", [np.zeros((99, 8))])
    assert "holds 99 instances; a bag has 1 to 8" in refused["error"]
    main(["analyze", f"--workdir={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "analysis" / "association.png").stat().st_size > 1000
