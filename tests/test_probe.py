"""Probes of frozen features, top-5 and ReaL accuracy.

The golden numbers are those of big_vision (tests/golden/vit/fewshot).
"""

import functools
import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import attn_jax
import train
from attn_jax import config as config_lib
from attn_jax import evaluation, probes, sharding
from attn_jax.data import real_labels
from attn_jax.models import vit
from attn_jax.tasks import classify, probe

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = dict(np.load(ROOT / "tests/golden/vit/fewshot/ridge.npz"))
CASES = ("n_ge_d", "n_lt_d")  # more examples than dimensions, and fewer
L2 = {"l2e-10": 2.0**-10, "l2e0": 1.0, "l2e10": 2.0**10}
SEED = 5

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Pixels(nn.Module):
    """Features that are the image itself."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return {"pooled": images.reshape(len(images), -1)}


TINY = vit.ViT(num_classes=10, patch_size=4, width=8, depth=1, mlp_width=8, num_heads=2)


def digits(**fields):
    fields = {"shots": (1, 5), "draws": 2, "neighbours": 20, "seed": SEED, **fields}
    fields = {"data": "digits", "image_size": 8, "channels": 1, **fields}
    return probe.Probe(**fields)


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """A file of 100 training and 51 test images."""
    arrays = {}
    for split, number in (("train", 100), ("test", 51)):
        source = classify_digits().source(split)
        arrays[f"x_{split}"] = source.images[:number]
        arrays[f"y_{split}"] = source.targets[:number]
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, **arrays)
    return str(path)


def classify_digits(**fields):
    fields = {"num_classes": 10, "image_size": 8, "channels": 1, **fields}
    return classify.Classify(**{"data": "digits", **fields})


def parameters(model, task):
    batch = {
        "images": jnp.zeros((1, 8, 8, 1), jnp.uint8),
        "labels": jnp.zeros(1, jnp.int32),
    }
    inputs = task.inputs(task.prepare(batch, jax.random.key(0), False))
    variables = model.init(jax.random.key(0), **inputs, train=False)
    return variables.get("params", {})


def evaluate(model, task, batch_size=64, split="test", devices=1):
    one = evaluation.Evaluation(
        "probe",
        model,
        task,
        split,
        mesh=sharding.make_mesh({"data": devices}, jax.devices()[:devices]),
        batch_size=batch_size,
        key=jax.random.key(0),
    )
    params = parameters(model, task)
    first, second = one.run(params), one.run(params)
    assert first == second
    return first


def clusters(per_class, seed=0, spread=0.1):
    """(features, labels) of three directions in five dimensions, at random lengths."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    features = np.eye(5)[labels] + spread * rng.normal(size=(len(labels), 5))
    return features * rng.uniform(0.1, 10, (len(labels), 1)), labels


def golden(case, name):
    return GOLDEN[f"{case}_{name}"]


# --- ridge regression -----------------------------------------------------------------


def fitted(case, l2):
    labels = golden(case, "y_train")
    return probes.ridge(golden(case, "x_train"), labels, l2, int(labels.max()) + 1)


@pytest.mark.parametrize("case", CASES)
def test_weights_and_scores_are_the_originals(case):
    x = golden(case, "x_test")
    for name, linear in zip(L2, fitted(case, list(L2.values())), strict=True):
        ours = {"weights": linear.weights, "scores": linear.scores(x)}
        for array, value in ours.items():
            # X^T X has eigenvalues up to 100^2 N = 4e5, which are added to l2 >= 1e-3: its
            # rounding, 4e5 * 2e-16 = 1e-10, is 1e-7 of the smallest. In weights of at
            # most 1 that was seen as 3e-12; a std without its 1e-5 moves them by 1e-5.
            np.testing.assert_allclose(
                value, golden(case, f"{array}_{name}"), rtol=0, atol=1e-9
            )
        np.testing.assert_array_equal(linear.predict(x), golden(case, f"pred_{name}"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", L2)
def test_the_accuracy_is_the_one_that_the_original_reports(case, name):
    [linear] = fitted(case, [L2[name]])
    correct = linear.predict(golden(case, "x_test")) == golden(case, "y_test")
    # As a count: the original's share of 60 is rounded to float32 on the way.
    assert correct.sum() == round(60 * float(golden(case, f"bv_acc_{name}")), 3)


@pytest.mark.parametrize("case", CASES)
def test_the_solution_solves_the_normal_equations(case):
    x, labels = golden(case, "x_train").astype(np.float64), golden(case, "y_train")
    x = (x - x.mean(0)) / (x.std(0) + 1e-5)
    x = np.concatenate([x, np.full((len(x), 1), 100.0)], axis=1)
    y = np.where(labels[:, None] == np.arange(labels.max() + 1), 1.0, -1.0)
    for l2, linear in zip((0.5, 1024.0), fitted(case, (0.5, 1024.0)), strict=True):
        left = x.T @ (x @ linear.weights) + l2 * linear.weights
        # Of sums up to 100 * 40 = 4e3, whose rounding is 1e-12; the penalty is 0.5 * 0.1.
        np.testing.assert_allclose(left, x.T @ y, rtol=0, atol=1e-8)


def test_a_feature_that_never_changes_is_no_division_by_zero():
    features = np.ones((4, 2))
    features[:, 0] = [0, 0, 1, 1]
    [linear] = probes.ridge(features, np.array([0, 0, 1, 1]), [1.0], 2)
    np.testing.assert_array_equal(linear.predict(features), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("labels", "l2", "message"),
    [
        ([0, 2], [1.0], r"labels \[0, 2\]; .* num_classes - 1 = 1"),
        ([0, -1], [1.0], r"labels \[-1, 0\]"),
        ([0, 1], [0.0], r"l2=\[0.0\] must be numbers above 0"),
        ([0, 1], [], r"l2=\[\] must be"),
    ],
)
def test_ridge_refuses_what_it_cannot_solve(labels, l2, message):
    with pytest.raises(ValueError, match=message):
        probes.ridge(np.eye(2), np.array(labels), l2, 2)


# --- nearest neighbours ---------------------------------------------------------------


def test_directions_are_told_apart_whatever_the_lengths():
    features, labels = clusters(30)
    queries, true = clusters(40, seed=1)
    found = probes.nearest_neighbours(features, labels, queries, k=20)
    np.testing.assert_array_equal(found, true)


def test_neighbours_vote_by_their_similarity():
    # Two examples of class 1 at 60 degrees, one of class 0 at 0: weights 2 e^(0.5/t), e^(1/t).
    features = np.array([[1, 0], [0.5, math.sqrt(0.75)], [0.5, -math.sqrt(0.75)]])
    labels, query = np.array([0, 1, 1]), np.array([[2.0, 0.0]])
    near = dict(k=3, temperature=0.07)  # e^(0.5/0.07) = 1264 outweighs the two
    assert probes.nearest_neighbours(features, labels, query, **near) == [0]
    far = dict(k=3, temperature=1.0)  # e^0.5 = 1.65 does not
    assert probes.nearest_neighbours(features, labels, query, **far) == [1]
    assert probes.nearest_neighbours(features, labels, query, k=1, temperature=1.0) == [
        0
    ]


def test_neighbours_equal_a_sort_of_all_of_them_in_chunks_of_any_size(monkeypatch):
    features, labels = clusters(30, spread=1.0)
    queries, _ = clusters(20, seed=1, spread=1.0)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, queries)]
    similarity = unit[1] @ unit[0].T
    expected = []
    for row in similarity:
        votes = np.zeros(3)
        for i in np.argsort(-row)[:20]:
            votes[labels[i]] += math.exp(row[i] / 0.07)
        expected.append(votes.argmax())
    assert len({*expected}) == 3 and expected != [*np.repeat(np.arange(3), 20)]
    for chunk in (1, 7 * 90, 2**23):
        monkeypatch.setattr(probes, "CHUNK", chunk)
        found = probes.nearest_neighbours(features, labels, queries, k=20)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("k", [0, 91])
def test_more_neighbours_than_examples_are_refused(k):
    features, labels = clusters(30)
    with pytest.raises(ValueError, match=rf"k={k} neighbours of 90 examples"):
        probes.nearest_neighbours(features, labels, features, k=k)


# --- the task -------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [0, 20])
def test_support_and_queries_are_apart(neighbours):
    source = digits(holdout=180, neighbours=neighbours).source("validation")
    training = classify_digits(holdout=180).source("train")
    held_out = classify_digits(holdout=180).source("validation")
    assert source.support.source.fingerprint() == training.fingerprint()
    assert len(source) == len(source.support) + 180
    assert (len(source.support) == len(training)) == bool(neighbours)
    assert len({*source.support.indices}) == len(source.support)
    for i in range(180):
        record = source[len(source.support) + i]
        np.testing.assert_array_equal(record["image"], held_out[i]["image"])
        assert record["label"] == held_out[i]["label"]


@pytest.mark.parametrize("neighbours", [0, 20])
def test_a_draw_holds_so_many_of_each_class_and_the_fewer_shots_among_the_more(
    neighbours,
):
    source = digits(shots=(1, 5, 10), draws=3, neighbours=neighbours).source("test")
    for (shots, draw), rows in source.drawn.items():
        assert len({*rows}) == 10 * shots
        labels = [source[int(row)]["label"] for row in rows]
        np.testing.assert_array_equal(np.bincount(labels), np.full(10, shots))
        assert {*rows} <= {*source.drawn[10, draw]}
    assert {*source.drawn[1, 0]} != {*source.drawn[1, 1]}


def test_draws_depend_on_the_seed_alone():
    def support(**fields):
        return digits(neighbours=0, **fields).source("test").support.indices

    np.testing.assert_array_equal(support(), support())
    assert not np.array_equal(support(), support(seed=SEED + 1))
    fingerprints = {digits(seed=s).source("test").drawn[1, 0].tobytes() for s in (0, 1)}
    assert len(fingerprints) == 2


@pytest.mark.parametrize("model", [Pixels(), TINY], ids=["pixels", "vit"])
def test_results_depend_neither_on_the_batch_size_nor_on_the_devices(model, few_digits):
    task = digits(data=few_digits)
    results = evaluate(model, task, 64)
    assert {*results} == {
        "probe/accuracy_1_shot",
        "probe/accuracy_5_shot",
        "probe/accuracy_knn",
    }
    assert results == evaluate(model, task, 7) == evaluate(model, task, 1)
    assert results == evaluate(model, task, 64, devices=8)


def test_the_probe_equals_one_by_hand_on_the_pixels():
    task = digits(neighbours=3)
    results = evaluate(Pixels(), task, 50)
    training, test = (classify_digits().source(split) for split in ("train", "test"))
    x, queries = (
        (np.stack([r["image"] for r in part]).reshape(len(part), -1) / 127.5 - 1)
        for part in ([*training], [*test])
    )
    for shots in task.shots:
        shares = []
        for draw in range(task.draws):
            rng = np.random.default_rng((SEED, draw))
            members = np.concatenate(
                [
                    rng.permutation(np.flatnonzero(training.targets == label))[:shots]
                    for label in range(10)
                ]
            )
            labels = training.targets[members]
            [linear] = probes.ridge(x[members], labels, [1024.0], 10)
            shares.append((linear.predict(queries) == test.targets).mean())
        # A share of 360 images, mean over draws: the next is 1/720 away.
        expected = pytest.approx(np.mean(shares), abs=1e-9)
        assert results[f"probe/accuracy_{shots}_shot"] == expected
    found = probes.nearest_neighbours(x, training.targets, queries, k=3)
    expected = pytest.approx((found == test.targets).mean(), abs=1e-9)
    assert results["probe/accuracy_knn"] == expected


def test_pixels_of_digits_are_worth_more_with_more_shots():
    results = evaluate(Pixels(), digits(shots=(1, 25), draws=3))
    # Measured 0.49, 0.88 and 0.975; chance is 0.1.
    assert 0.3 < results["probe/accuracy_1_shot"] < 0.6
    assert results["probe/accuracy_25_shot"] > 0.8
    assert results["probe/accuracy_knn"] > 0.95


def test_features_that_are_not_finite_have_no_accuracy():
    task = digits(neighbours=20, shots=(1,))
    source = task.source("test")
    pooled = np.ones((len(source), 3), np.float32)
    pooled[-1, 0] = np.nan
    arrays = {
        "pooled": pooled,
        "labels": np.zeros(len(source), np.int32),
        "index": np.arange(len(source)),
    }
    results = task.score(arrays, source)
    assert {*results} == {"accuracy_1_shot", "accuracy_knn"}
    assert all(map(math.isnan, results.values()))


def test_a_run_can_be_probed_while_it_trains_and_afterwards(
    few_digits, tmp_path, monkeypatch
):
    one_device = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one_device)  # less to compile
    task = {
        "cls": "attn_jax.tasks.probe:Probe",
        "data": few_digits,
        "image_size": 16,
        "channels": 1,
        "shots": [1, 5],
    }
    entry = {"split": "test", "every": "4 steps", "batch_size": 100, "task": task}
    settings = [
        "model.depth=1",
        "duration=4 steps",
        f"evals={json.dumps({'probe': entry})}",
        "keep_best=max:probe/accuracy_5_shot",
    ]
    config = config_lib.load(f"{ROOT}/configs/vit/digits.py:debug", settings)
    train.train(config, str(tmp_path))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    [written] = [line for line in map(json.loads, lines) if "probe/" in str(line)]
    assert "probe/loss" not in written

    more = {"evals.more": {**entry, "task": {**task, "neighbours": 20}}}
    results = attn_jax.evaluate(tmp_path, "best", overrides=more)
    for metric in ("accuracy_1_shot", "accuracy_5_shot"):
        assert results[f"probe/{metric}"] == written[f"probe/{metric}"]
        assert results[f"more/{metric}"] == results[f"probe/{metric}"]
    assert 0 < results["more/accuracy_knn"] <= 1
    assert "more/loss" not in results


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shots": (0,)}, r"shots=\(0,\) and draws=2 must be 1 or more"),
        ({"draws": 0}, "draws=0 must be 1 or more"),
        ({"l2": 0.0}, "l2=0.0 above 0"),
        ({"neighbours": -1}, "neighbours=-1"),
        ({"shots": (), "neighbours": 0}, r"shots=\(\) and neighbours=0 leave nothing"),
    ],
)
def test_a_probe_of_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        digits(**fields)


@pytest.mark.parametrize(
    ("fields", "split", "message"),
    [
        ({}, "train", "split='train' holds the examples .* 'validation' or 'test'"),
        (
            {"neighbours": 1438},
            "test",
            "neighbours=1438, but 'digits' has 1437 training",
        ),
        (
            {"shots": (1, 200)},
            "test",
            "200 shots, but the class '0' of 'digits' has 142 .* lower shots",
        ),
    ],
)
def test_too_few_examples_are_named(fields, split, message):
    with pytest.raises(ValueError, match=message):
        digits(**fields).source(split)


def test_a_model_without_pooled_features_is_named():
    class Tokens(nn.Module):
        @nn.compact
        def __call__(self, images, *, train=False):
            return {"tokens": images[:, 0], "pooled": images[:, 0]}

    with pytest.raises(
        ValueError, match=r"`pooled` \[B, D\], .*\(outputs: tokens, pooled\)"
    ):
        evaluate(Tokens(), digits())


# --- top-5 and ReaL accuracy ------------------------------------------------------------


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
    terms = terms_of(classify_digits(), logits, {"labels": labels, "valid": valid})
    assert terms["top5_accuracy"] == (correct[valid].sum(), valid.sum())
    strict = (np.sort(logits)[:, -5] <= logits[np.arange(300), labels])[valid].sum()
    assert terms["top5_accuracy"][0] < strict  # ties decide some rows here


def test_top5_of_a_diverged_model_is_nothing():
    terms = terms_of(classify_digits(), np.full((4, 10), np.nan, np.float32), {})
    assert terms["top5_accuracy"] == (0, 4)


@pytest.mark.parametrize(("classes", "reported"), [(5, False), (6, True)])
def test_top5_is_reported_where_it_says_something(classes, reported):
    terms = terms_of(
        classify_digits(num_classes=classes), np.ones((2, classes), np.float32), {}
    )
    assert ("top5_accuracy" in terms) == reported


def real_file(folder, rows):
    path = folder / "real.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return str(path)


@pytest.fixture
def validation_images(tmp_path):
    """A folder of four images named as ImageNet's, in an order other than the names'."""
    for name, number in [("a", 3), ("a", 2), ("b", 1), ("b", 4)]:
        for split in ("train", "val"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8, 1), 60 * number, np.uint8)
            file = folder / f"ILSVRC2012_{split}_{number:08d}.png"
            Image.fromarray(pixels[..., 0]).save(file)
    return str(tmp_path / "images")


def test_real_labels_find_their_images_by_name(validation_images, tmp_path):
    path = real_file(tmp_path, [[1], [], [0, 2], [2, 1]])
    task = classify_digits(data=validation_images, num_classes=3, real_labels=path)
    found = {}
    for record in task.source("validation"):
        real = task.example(record, None)["real_labels"]
        found[record["image"] and record["name"][-12:-4]] = np.flatnonzero(
            real
        ).tolist()
    assert found == {
        "00000001": [1],
        "00000002": [],
        "00000003": [0, 2],
        "00000004": [1, 2],
    }
    # tfds:imagenet2012 has the file's name as a feature, and `name` for messages.
    pixels = np.zeros((8, 8, 1), np.uint8)
    for name in ("ILSVRC2012_val_00000004.JPEG", b"ILSVRC2012_val_00000004.JPEG"):
        record = {"image": pixels, "label": 0, "file_name": name, "name": "tfds:x[0]"}
        np.testing.assert_array_equal(
            task.example(record, None)["real_labels"], [False, True, True]
        )


def test_any_fitting_label_is_right_and_images_without_one_do_not_count(
    validation_images, tmp_path
):
    class Brightness(nn.Module):
        """Class 0 for the darkest image, 1 for the next two, 2 for the brightest."""

        @nn.compact
        def __call__(self, images, *, train=False):
            bright = (images.mean(axis=(1, 2, 3)) * 127.5 + 127.5) / 60
            classes = jnp.digitize(bright, jnp.array([1.5, 3.5]))
            return {"logits": jax.nn.one_hot(classes, 3)}

    def real_accuracy(rows, batch_size):
        path = real_file(tmp_path, rows)
        real_labels.read.cache_clear()
        task = classify_digits(data=validation_images, num_classes=3, real_labels=path)
        results = evaluate(Brightness(), task, batch_size, "validation")
        return results["probe/real_accuracy"]

    # Predicted: 0, 1, 1, 2.
    for batch_size in (1, 3, 4):
        assert real_accuracy([[0], [0, 1], [2, 1, 0], [2]], batch_size) == 1
        assert real_accuracy([[1], [], [2, 1], [0]], batch_size) == 1 / 3
        assert math.isnan(real_accuracy([[], [], [], []], batch_size))


def test_training_images_have_no_real_labels(validation_images, tmp_path):
    path = real_file(tmp_path, [[1], [], [0], [1]])
    task = classify_digits(data=validation_images, num_classes=3, real_labels=path)
    record = task.source("train")[0]
    with pytest.raises(
        ValueError, match=r"train_0000000.* Set .* config.evals.NAME.task"
    ):
        task.example(record, None)


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        ({}, "''"),
        ({"name": "ILSVRC2012_val_00000000.JPEG"}, "val_00000000"),
        ({"name": "ILSVRC2012_val_00000003.JPEG"}, "val_00000003"),
    ],
)
def test_an_image_that_the_file_does_not_list_is_named(tmp_path, record, shown):
    task = classify_digits(real_labels=real_file(tmp_path, [[1], [0]]))
    record = {"image": np.zeros((8, 8, 1), np.uint8), "label": 0, **record}
    with pytest.raises(ValueError, match=f"{shown}.*to ILSVRC2012_val_00000002"):
        task.example(record, None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[[1], [", "is no JSON"),
        ('{"1": [1]}', "entry 1 is"),
        ("[[1], 2]", "entry 2 is 2, no list"),
        ('[["1"]]', "entry 1 is"),
        ("[[true]]", "entry 1 is"),
        ("[[1], [10]]", r"entry 2 is \[10\], .* num_classes - 1 = 9"),
    ],
)
def test_a_malformed_file_of_real_labels_is_refused(tmp_path, rows, message):
    task = classify_digits(real_labels=real_file(tmp_path, rows))
    with pytest.raises(ValueError, match=f"real.json'.*{message}.*google-research"):
        task.source("test")


def test_a_missing_file_of_real_labels_is_named(tmp_path):
    task = classify_digits(real_labels=str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r"none.json' is no file; .*google-research"):
        task.source("test")
