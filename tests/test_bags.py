"""Bags: their models, the generated digit bags, and the task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_hopfield import inputs, run, started

from attn_jax.data import bags as bag_data
from attn_jax.data import sources
from attn_jax.models.bags import (
    BagClassifier,
    FeatureEncoder,
    GatedAttentionPooling,
    ImageEncoder,
    MeanPooling,
)
from attn_jax.models.hopfield import Hopfield, HopfieldPooling
from attn_jax.models.vit import ViT
from attn_jax.tasks.bags import Bags

pytestmark = pytest.mark.usefixtures("quick_compilation")


DIGITS = dict(data="digits", target=9, image_size=8, holdout=237)


def classifier(pooling):
    return BagClassifier(FeatureEncoder((8, 6)), pooling)


@pytest.mark.parametrize(
    "pooling",
    [
        MeanPooling(),
        GatedAttentionPooling(width=3),
        HopfieldPooling(Hopfield(num_heads=2, max_updates=1), quantity=2),
    ],
)
def test_padding_and_the_order_of_instances_change_no_bag(pooling):
    instances, _ = inputs()
    mask = jnp.asarray(np.arange(5) < np.array([[3], [5]]))
    model = classifier(pooling)
    variables = started(model, instances, mask)
    apply = jax.jit(model.apply)
    expected = apply(variables, instances, mask)["logits"]
    assert expected.shape == (2,)
    order = jnp.array([4, 2, 0, 3, 1])
    shuffled = apply(variables, instances[:, order], mask[:, order])["logits"]
    np.testing.assert_allclose(shuffled, expected, atol=1e-5)  # sums in another order
    # Another value at padding: multiplied by an exact zero.
    other = jnp.where(mask[:, :, None], instances, 9)
    np.testing.assert_array_equal(apply(variables, other, mask)["logits"], expected)


def test_gated_attention_is_its_equation():
    rng = np.random.default_rng(0)
    stored = jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32)
    mask = jnp.asarray(np.arange(4) < np.array([[3], [0]]))
    model = GatedAttentionPooling(width=3)
    params = model.init(jax.random.key(0), stored, stored_mask=mask)
    pooled, sown = model.apply(
        params, stored, stored_mask=mask, mutable=["intermediates"]
    )
    V, U, w = (params["params"][name]["kernel"] for name in ("value", "gate", "out"))
    present = stored[0, :3]
    logits = np.tanh(present @ V) / (1 + np.exp(-present @ U)) @ w
    weights = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(pooled[0], (weights * present).sum(0), atol=1e-6)
    [attention] = sown["intermediates"]["attention"]
    assert attention.shape == (2, 1, 1, 4)
    np.testing.assert_allclose(attention[0, 0, 0, :3], weights[:, 0], atol=1e-6)
    np.testing.assert_array_equal(pooled[1], 0)  # no instance at all


def test_the_head_multiplies_what_is_called_pooled():
    instances, mask = jnp.ones((2, 3, 8, 8, 1)), jnp.ones((2, 3), bool)
    pooling = HopfieldPooling(Hopfield(num_heads=2))
    model = BagClassifier(ImageEncoder((4, 4), 6), pooling, remat=True)
    variables = started(model, instances, mask)
    outputs = jax.jit(model.apply)(variables, instances, mask)
    head = variables["params"]["head"]
    expected = outputs["pooled"] @ head["kernel"] + head["bias"].reshape(1, -1)
    np.testing.assert_allclose(outputs["logits"], expected[:, 0], atol=1e-5)
    same = jax.jit(model.clone(remat=False).apply)(variables, instances, mask)
    np.testing.assert_allclose(same["logits"], outputs["logits"], atol=1e-5)


@pytest.mark.parametrize(
    "pooling",
    [
        MeanPooling(),
        GatedAttentionPooling(width=3),
        HopfieldPooling(Hopfield(num_heads=2, zero_association=True), quantity=3),
    ],
)
def test_outputs_have_the_weights_that_the_pooling_sows(pooling):
    instances, _ = inputs()
    mask = jnp.asarray(np.arange(5) < np.array([[3], [5]]))
    model = classifier(pooling)
    variables = started(model, instances, mask)
    call = functools.partial(model.apply, mutable=["intermediates"])
    outputs, sown = jax.jit(call)(variables, instances, mask)
    assert "weights" not in model.apply(variables, instances, mask)
    if isinstance(pooling, MeanPooling):
        assert "weights" not in outputs
        return
    [attention] = jax.tree.leaves(sown)
    expected = np.asarray(attention).mean(axis=(1, 2))[:, :5]
    np.testing.assert_allclose(outputs["weights"], expected, rtol=1e-6)
    assert (outputs["weights"][0, 3:] == 0).all()
    zeros = isinstance(pooling, HopfieldPooling)  # the appended pattern has the rest
    total = outputs["weights"].sum(axis=1)
    assert (total < 1 - 1e-3).all() if zeros else np.allclose(total, 1, atol=1e-6)


def test_a_vit_pools_with_any_module():
    fields = dict(
        num_classes=3, patch_size=2, width=8, depth=1, mlp_width=8, num_heads=2
    )
    images = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    plain = ViT(pool="gap", **fields)
    variables = started(plain, images)
    expected = jax.jit(plain.apply)(variables, images)["logits"]
    mean = ViT(pool="gap", pooling=MeanPooling(), **fields)
    ours = jax.jit(mean.apply)(variables, images)["logits"]
    np.testing.assert_allclose(ours, expected, atol=1e-6)  # a sum divided, for a mean

    pooling = HopfieldPooling(Hopfield(num_heads=2, output_width=5), quantity=2)
    model = ViT(pool="gap", pooling=pooling, **fields)
    variables = started(model, images)
    outputs = jax.jit(model.apply)(variables, images)
    assert outputs["tokens"].shape == (2, 4, 8)
    assert outputs["pooled"].shape == (2, 10)
    alone, _ = run(
        pooling, {"params": variables["params"]["pooling"]}, outputs["tokens"]
    )
    np.testing.assert_allclose(outputs["pooled"], alone, atol=1e-6)


@pytest.fixture(scope="module")
def splits():
    task = Bags(**DIGITS)
    return {split: task.source(split) for split in sources.SPLITS}


def test_bags_are_as_many_as_asked_for_and_half_of_them_positive(splits):
    for split, number in {"train": 500, "validation": 200, "test": 1000}.items():
        source = splits[split]
        assert len(source) == number
        labels = [source[i]["label"] for i in range(number)]
        assert sum(labels) == number // 2


def test_a_bag_is_positive_exactly_if_the_target_is_among_its_instances(splits):
    for source in splits.values():
        for i in range(len(source)):
            bag = source[i]
            found = any(instance["label"] == 9 for instance in bag["instances"])
            assert found == (bag["label"] == 1), bag["name"]


def test_bag_sizes_are_normal_and_say_nothing_about_the_label(splits):
    sizes = np.array([len(splits["test"].draw_members(i)) for i in range(1000)])
    assert sizes.min() >= 1 and sizes.max() <= 16
    # Means of 1,000 and standard deviations: four standard errors of N(10, 2).
    assert abs(sizes.mean() - 10) < 4 * 2 / 1000**0.5
    assert abs(sizes.std() - 2) < 4 * 2 / 2000**0.5
    difference = sizes[::2].mean() - sizes[1::2].mean()
    assert abs(difference) < 4 * 2 * (2 / 500) ** 0.5
    clipped = bag_data.LabeledBags(
        sources.open_split("digits", "train"),
        target=9,
        bags=50,
        mean_size=2.0,
        std_size=5.0,
        max_size=4,
        seed=0,
    )
    assert {len(clipped.draw_members(i)) for i in range(50)} == {1, 2, 3, 4}


def test_no_image_is_in_bags_of_two_splits_and_none_twice_in_a_bag(splits):
    held, seen = {}, {}
    for split, source in splits.items():
        base = source.source
        held[split] = set(getattr(base, "indices", []))
        seen[split] = {base[i]["image"].tobytes() for i in range(len(base))}
        for i in range(50):
            members = source.draw_members(i)
            assert len(set(members.tolist())) == len(members)
    # Validation images are cut out of the training split; the test images are others.
    assert not held["train"] & held["validation"]
    assert len(held["train"]) == 1200 and len(held["validation"]) == 237
    assert not seen["test"] & (seen["train"] | seen["validation"])


def test_a_positive_bag_has_as_many_witnesses_as_asked_for():
    fields = dict(mean_size=6.0, std_size=3.0, max_size=9, test_bags=100)
    source = Bags(**DIGITS, witnesses=2, **fields).source("test")
    for i in range(100):
        members = source.draw_members(i)
        found = source.is_target[members].sum()
        assert found == (min(2, len(members)) if i % 2 else 0)
        assert len(set(members.tolist())) == len(members)
    chance = Bags(**DIGITS, **fields).source("test")
    assert source.fingerprint() != chance.fingerprint()
    sizes = [[len(s.draw_members(i)) for i in range(100)] for s in (source, chance)]
    assert sizes[0] == sizes[1]


def test_a_bag_depends_on_its_seed_and_number_alone(splits):
    again = Bags(**DIGITS).source("train")
    for i in (7, 0, 499, 7):
        np.testing.assert_array_equal(
            again.draw_members(i), splits["train"].draw_members(i), str(i)
        )
    assert again.fingerprint() == splits["train"].fingerprint()
    other = Bags(**DIGITS, bag_seed=1).source("train")
    assert other.fingerprint() != again.fingerprint()
    assert any(
        not np.array_equal(other.draw_members(i), again.draw_members(i))
        for i in range(5)
    )
    prints = {source.fingerprint() for source in splits.values()}
    assert len(prints) == 3


def test_an_example_is_padded_and_its_mask_says_where(splits):
    task, record = Bags(**DIGITS, shift_pixels=1), splits["train"][3]
    example = task.example(record, None)
    size = len(record["instances"])
    assert example["instances"].shape == (16, 8, 8, 1)
    assert example["mask"].tolist() == [True] * size + [False] * (16 - size)
    assert not example["instances"][size:].any()
    first = record["instances"][0]["image"]
    np.testing.assert_array_equal(example["instances"][0], first)
    moved = task.example(record, np.random.default_rng(0))
    assert (moved["instances"] != example["instances"]).any()
    np.testing.assert_array_equal(moved["mask"], example["mask"])


@pytest.mark.parametrize("size", [0, 17])
def test_an_empty_or_too_large_bag_is_refused_by_name(splits, size):
    instance = splits["train"][0]["instances"][0]
    record = {"instances": [instance] * size, "label": 0, "name": "bag 13"}
    with pytest.raises(ValueError, match=f"bag 13 holds {size} instances"):
        Bags(**DIGITS).example(record, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(target=10), "0 records have the label 10"),
        (dict(max_size=400, holdout=1000), "need at least 1 and 400"),
        (dict(train_bags=0), "at least 1"),
        (dict(witnesses=17), "witnesses=17 must be from 1 to .* and to max_size=16"),
    ],
)
def test_bags_that_cannot_be_drawn_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Bags(**{**DIGITS, **fields}).source("train")


def test_padded_rows_count_neither_in_the_loss_nor_in_the_accuracy():
    task = Bags(**DIGITS)
    outputs = {"logits": jnp.array([2.0, -1.0, 5.0])}
    batch = {"labels": jnp.array([1, 1, 0]), "valid": jnp.array([True, True, False])}
    terms = task.loss(outputs, batch)
    expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(1.0))
    assert float(terms["cross_entropy"][0]) == pytest.approx(expected, rel=1e-6)
    assert float(terms["accuracy"][0]) == 1
    assert {float(count) for _, count in terms.values()} == {2}


def test_the_score_is_the_chance_to_rank_a_positive_first(splits):
    task, labels = Bags(**DIGITS), np.array([0, 0, 1, 1])

    def auc(*logits):
        predictions = {"logits": np.array(logits), "labels": labels}
        return task.score(predictions, splits["test"])["auc"]

    assert auc(-2.0, -1.0, 0.5, 3.0) == 1
    assert auc(0.0, 2.0, 1.0, 3.0) == 0.75
    assert auc(1.0, 1.0, 1.0, 1.0) == 0.5
    assert np.isnan(bag_data.area_under_roc(np.ones(3, int), np.ones(3)))
