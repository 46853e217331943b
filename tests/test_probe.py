"""Probes of frozen features as an evaluation task."""

import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn_jax
import train
from attn_jax import config as config_lib
from attn_jax import evaluation, probes, sharding
from attn_jax.models import vit
from attn_jax.tasks import classify, probe

ROOT = pathlib.Path(__file__).parent.parent
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
            [linear] = probes.fit_ridge(x[members], labels, [1024.0], 10)
            shares.append((linear.predict(queries) == test.targets).mean())
        # A share of 360 images, mean over draws: the next is 1/720 away.
        expected = pytest.approx(np.mean(shares), abs=1e-9)
        assert results[f"probe/accuracy_{shots}_shot"] == expected
    found = probes.predict_knn(x, training.targets, queries, k=3)
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
    make_mesh = sharding.make_mesh
    one_device = jax.devices()[:1]  # less to compile
    monkeypatch.setattr(
        sharding, "make_mesh", lambda sizes, *_: make_mesh(sizes, one_device)
    )
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
