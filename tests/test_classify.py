"""Image classification: classes by name and by number, top-5 accuracy."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import LABELS, PIXELS, png, write_folder, write_npz, write_zip

from attn_jax.tasks.bags import Bags
from attn_jax.tasks.classify import Classify


def classify(**fields):
    fields = {"num_classes": 10, "image_size": 8, "channels": 1, **fields}
    return Classify(**{"data": "digits", **fields})


def terms_of(task, logits, batch):
    """{metric: mean} of the task's loss on logits [B, C]; labels 0 unless given."""
    rows = len(logits)
    batch = {
        "labels": np.zeros(rows, np.int32),
        "valid": np.ones(rows, bool),
        "images": np.zeros((rows, 8, 8, 1), np.uint8),
        **batch,
    }
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    batch = task.prepare(batch, jax.random.key(0), False)
    terms = jax.jit(task.loss)({"logits": jnp.asarray(logits)}, batch)
    return {
        name: (float(total), float(count)) for name, (total, count) in terms.items()
    }


def test_top5_is_what_a_sort_says_with_the_lower_class_first_of_equals():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (300, 10)).astype(np.float32)  # ties in every row
    labels = rng.integers(0, 10, 300).astype(np.int32)
    valid = rng.random(300) < 0.8
    _, best = jax.lax.top_k(logits, 5)
    correct = (np.asarray(best) == labels[:, None]).any(axis=1)
    terms = terms_of(classify(), logits, {"labels": labels, "valid": valid})
    assert terms["top5_accuracy"] == (correct[valid].sum(), valid.sum())
    strict = (np.sort(logits)[:, -5] <= logits[np.arange(300), labels])[valid].sum()
    assert terms["top5_accuracy"][0] < strict  # ties decide some rows here


def test_top5_of_a_diverged_model_is_nothing():
    terms = terms_of(classify(), np.full((4, 10), np.nan, np.float32), {})
    assert terms["top5_accuracy"] == (0, 4)


@pytest.mark.parametrize(("classes", "reported"), [(5, False), (6, True)])
def test_top5_is_reported_where_it_says_something(classes, reported):
    terms = terms_of(
        classify(num_classes=classes), np.ones((2, classes), np.float32), {}
    )
    assert ("top5_accuracy" in terms) == reported


# --- classes by number ------------------------------------------------------------------


def test_a_label_beyond_the_classes_is_refused_before_and_in_training(tmp_path):
    """It would be an example of no class: nothing to learn, never right."""
    fields = dict(num_classes=10, image_size=8, channels=1)
    path = write_npz(tmp_path, y_train=LABELS + 10)
    with pytest.raises(ValueError, match="labels from 0 to 12, .* to 13"):
        Classify(data=path, **fields).source("train")
    record = {"image": PIXELS[0], "label": 10}
    with pytest.raises(ValueError, match="has the label 10, but .*labels count from 0"):
        Classify(data=path, **fields).example(record, None)


def test_data_whose_labels_end_below_the_classes_is_warned_of(tmp_path, caplog):
    path = write_npz(tmp_path)  # labels 0 to 2
    with caplog.at_level(logging.WARNING):
        classify(data=path, num_classes=3).source("train")
        classify(data=path, num_classes=5).source("test")  # may lack the last ones
        assert "labels from" not in caplog.text
        classify(data=path, num_classes=5).source("train")
    assert "only has labels from 0 to 2, but config.task.num_classes=5" in caplog.text


def test_a_part_of_named_data_keeps_all_its_classes():
    task = classify(holdout=180, examples=20)
    assert task.source("train").labels == tuple("0123456789")


# --- classes by name --------------------------------------------------------------------

ABC = {
    f"{s}/{c}/{i}.png": png(i) for s in ("train", "test") for c in "abc" for i in (0, 1)
}
BC = {f"test/{c}/{i}.png": png(i) for c in "bc" for i in (0, 1)}


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_other_data_is_matched_to_the_classes_of_the_run_by_name(
    tmp_path, write, caplog
):
    for name in ("abc", "bc"):
        (tmp_path / name).mkdir()
    trained = classify(data=write(tmp_path / "abc", ABC), num_classes=3)
    assets = trained.assets(trained.source("train"))
    other = classify(data=write(tmp_path / "bc", BC), num_classes=3)
    with caplog.at_level(logging.WARNING):
        source = other.bind(assets).source("test")
    assert [source[i]["label"] for i in range(4)] == [1, 1, 2, 2]
    assert source.targets.tolist() == [1, 1, 2, 2] and source.labels == tuple("abc")
    assert "no example of 1 of the 3 classes: a" in caplog.text
    same = trained.bind(assets).source("test")
    assert same.fingerprint() == trained.source("test").fingerprint()


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_a_class_that_the_run_does_not_know_is_refused_by_name(tmp_path, write):
    tree = BC | {"test/zebra/0.png": png(0), "test/yak/0.png": png(0)}
    task = classify(data=write(tmp_path, tree), num_classes=3)
    bound = task.bind({"images.json": json.dumps({"labels": ["a", "b", "c"]})})
    with pytest.raises(
        ValueError, match="2 classes that the run does not know: yak, z"
    ):
        bound.source("test")


def test_a_class_without_an_example_in_the_split_need_not_be_known(tmp_path):
    tree = {"train/yak/0.png": png(0), "train/b/0.png": png(0), "test/b/0.png": png(0)}
    task = classify(data=write_folder(tmp_path, tree), class_names=("a", "b", "c"))
    assert task.source("test").targets.tolist() == [1]


def test_the_target_of_bags_is_found_by_name(tmp_path):
    tree = {
        f"{s}/{c}/{i}.png": png(i)
        for s in ("train", "test")
        for c in "abc"
        for i in range(4)
    }
    (tmp_path / "bc").mkdir()
    fields = dict(target=2, image_size=8, channels=3, max_size=2, mean_size=2.0)
    trained = Bags(data=write_folder(tmp_path / "abc", tree), **fields)
    assets = trained.assets(trained.source("train"))
    without_a = {name: data for name, data in tree.items() if "/a/" not in name}
    other = Bags(data=write_folder(tmp_path / "bc", without_a), **fields)
    assert other.bind(assets).source("test").target == 1
    assert trained.bind(assets).source("test").target == 2
    unknown = Bags(
        data=write_folder(tmp_path / "x", {"test/x/0.png": png(0)}), **fields
    )
    with pytest.raises(
        ValueError, match="has no class 'c', which is the target .* has: x"
    ):
        unknown.bind(assets).source("test")


def test_data_without_names_keeps_its_numbers(tmp_path):
    task = classify(data=write_npz(tmp_path), num_classes=3)
    bound = task.bind({"images.json": json.dumps({"labels": ["a", "b", "c"]})})
    assert bound.source("test").targets.tolist() == LABELS[:4].tolist()
    for assets in ({}, {"images.json": json.dumps({"labels": []})}):
        assert task.bind(assets) is task


def test_a_folder_with_fewer_classes_than_the_head_is_refused_with_a_remedy(tmp_path):
    path = write_folder(tmp_path, ABC)
    words = (
        r"has 3 classes \(a, b, c\), but config.task.num_classes=10; set it and .* to 3"
    )
    with pytest.raises(ValueError, match=words):
        classify(data=path).source("train")
    named = classify(data=path, class_names=("a", "b", "b2", "c"))
    assert named.source("train").targets.tolist() == [0, 0, 1, 1, 3, 3]


@pytest.mark.parametrize("names", [("a", "a"), tuple("abcdefghijk")])
def test_class_names_that_cannot_be_are_refused(names):
    with pytest.raises(ValueError, match="at most num_classes=10, all distinct"):
        classify(class_names=names)
