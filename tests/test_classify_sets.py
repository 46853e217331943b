"""Images with any number of labels each: reading, loss and scores, a run and its predictions."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import encode, records, tell_colours
from sklearn.metrics import accuracy_score, f1_score, log_loss

import attn_jax
import train
from attn_jax import scores
from attn_jax.commands.predict import format_result
from attn_jax.data import sources
from attn_jax.tasks.classify_sets import ClassifySets

LIGHTS = ("red", "green", "blue")


def write_table(path, rows, header="file,label"):
    """A table of pictures, each of them the colors of its labels, which are written, too."""
    lines = [header]
    for i, labels in enumerate(rows):
        named = [part.strip() for part in labels.split("|")]
        color = [230 if light in named else 40 for light in LIGHTS]
        (path.parent / f"{path.stem}{i}.png").write_bytes(encode(color, seed=i))
        lines.append(f"{path.stem}{i}.png,{labels}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


SETS = [
    "|".join(names) for n in range(4) for names in itertools.combinations(LIGHTS, n)
]


@pytest.fixture(scope="module")
def lights(tmp_path_factory):
    """A folder of tables with every set of labels, several times."""
    folder = tmp_path_factory.mktemp("lights")
    write_table(folder / "train.csv", SETS * 6)
    write_table(folder / "test.csv", SETS)
    return folder


def task_of(data, **fields):
    return ClassifySets(
        **{"data": str(data), "num_classes": 3, "image_size": 6, **fields}
    )


def test_a_cell_of_the_table_holds_the_labels(tmp_path):
    data = write_table(tmp_path / "all.csv", ["red | blue", "", "green", "blue|blue"])
    source = sources.open_split(data, "train", separator="|")
    assert source.labels == ("blue", "green", "red")
    found = [[source.labels[i] for i in np.flatnonzero(r["label"])] for r in source]
    assert found == [["blue", "red"], [], ["green"], ["blue"]]
    before = source.fingerprint()
    write_table(tmp_path / "all.csv", ["red | blue", "", "green", "green|blue"])
    assert sources.open_split(data, "train", separator="|").fingerprint() != before


def test_held_out_images_are_no_training_images(lights):
    task = task_of(lights / "train.csv", holdout=5)
    parts = [{r["name"] for r in task.source(s)} for s in ("train", "validation")]
    assert [len(part) for part in parts] == [43, 5] and not set.intersection(*parts)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["red", "green||red"], "an empty name among its labels, in line 3"),
        (["", ""], "has no row with a label"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(tmp_path, rows, message):
    data = write_table(tmp_path / "all.csv", rows)
    with pytest.raises(ValueError, match=message):
        sources.open_split(data, "train", separator="|")


def test_other_data_is_matched_by_name(lights, tmp_path):
    task = task_of(lights, class_names=("red", "green", "blue"))
    first = task.source("train")[6 * 8 - 2]  # green|blue
    assert first["label"].tolist() == [False, True, True]
    write_table(tmp_path / "train.csv", ["red|pink", "blue"])
    with pytest.raises(ValueError, match="1 classes that the run does not know: pink"):
        task_of(tmp_path, class_names=LIGHTS).source("train")
    with pytest.raises(ValueError, match="labels from 0 to 2, but .*num_classes=2"):
        task_of(lights, num_classes=2).source("train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": "digits"}, "'digits' has one label an image"),
        ({"loss_kind": "softmax"}, "'softmax' .*; set 'sigmoid'"),
        ({"separator": ""}, "separator is empty"),
    ],
)
def test_what_has_one_label_an_image_is_refused(lights, fields, message):
    with pytest.raises(ValueError, match=message):
        task_of(**{"data": lights, **fields}).source("train")


def test_loss_and_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 3)).astype(np.float32)
    labels, valid = rng.random((40, 3)) < 0.4, rng.random(40) < 0.8
    labels[:20] = logits[:20] > 0
    task = task_of("none")
    images = np.zeros((40, 6, 6, 3), np.uint8)
    batch = {"images": images, "labels": labels, "valid": valid}
    batch = task.prepare(jax.tree.map(jnp.asarray, batch), jax.random.key(0), False)
    terms = task.loss({"logits": jnp.asarray(logits)}, batch)
    found = {name: float(total / count) for name, (total, count) in terms.items()}
    true, guess, chances = (
        labels[valid],
        logits[valid] > 0,
        jax.nn.sigmoid(logits[valid]),
    )
    each = [log_loss(true[:, i], chances[:, i], labels=[0, 1]) for i in range(3)]
    expected = {
        "accuracy": accuracy_score(true, guess),
        "cross_entropy": sum(each),
        "f1": f1_score(true, guess, average="micro"),
    }
    assert found == pytest.approx(expected, rel=1e-6)  # float32


def test_mean_average_precision_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(30, 4)).astype(np.float32)
    labels = rng.random((30, 4)) < 0.3
    labels[:, 2] = False  # a class that no image has
    each = []
    for truth, values in zip(labels.T, logits.T, strict=True):
        ranked = truth[np.argsort(-values)]
        if ranked.any():
            precision = np.cumsum(ranked) / np.arange(1, 31)
            each.append(precision[ranked].mean())
    found = scores.score_rankings(labels, logits)
    assert len(each) == 3
    assert found == {"map": pytest.approx(np.mean(each), rel=1e-12)}
    assert np.isnan(scores.score_rankings(np.zeros((30, 4), bool), logits)["map"])


def test_a_run_learns_and_predicts_sets_of_labels(lights, tmp_path):
    changes = {
        "task.cls": "attn_jax.tasks.classify_sets:ClassifySets",
        "task.label_smoothing": 0.0,
        "task.loss_kind": "sigmoid",
        "duration": "60 steps",
        "checkpoint_every": "60 steps",
        "evals": {"test": {"split": "test", "batch_size": 8, "every": "60 steps"}},
    }
    train.train(tell_colours(str(lights), changes=changes), str(tmp_path / "run"))
    last = records(tmp_path / "run")[-1]
    assert last["test/accuracy"] == last["test/f1"] == last["test/map"] == 1.0
    images = [str(lights / f"test{i}.png") for i in range(8)]
    results = attn_jax.predict(tmp_path / "run", images, top=2, trust=("runs",))
    assert [set(r["labels"]) for r in results] == [
        set(s.split("|")) - {""} for s in SETS
    ]
    assert [len(r["predictions"]) for r in results] == [2] * 8
    assert format_result(results[0])[0].startswith(f"{images[0]}: no label   (")
    saved = json.loads((tmp_path / "run/assets/images.json").read_text())
    assert saved["labels"] == ["blue", "green", "red"]
