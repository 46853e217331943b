"""Bit patterns and latch sequences: the original's numbers, splits, and networks."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_hopfield import GOLDEN, inputs, started

from attn_jax import config as config_lib
from attn_jax.analysis import bags as figures
from attn_jax.data import generated_bags
from attn_jax.models.bags import BagClassifier, FeatureEncoder, FlatPooling
from attn_jax.models.hopfield import Hopfield, HopfieldLayer
from attn_jax.tasks.bags import BitPatterns, LatchSequences

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = ("bit_patterns", "latch")
VARIANTS = ("base", "pooling", "lookup")
VARIANTS += tuple(f"{name}_default" for name in VARIANTS) + ("debug",)


@pytest.fixture(scope="module")
def original():
    with np.load(GOLDEN / "datasets_stats.npz") as file:
        return dict(file)


def draw_bits(**changes):
    """Bit patterns by the names of the original's arguments."""
    found = dict(num_signals_per_bag=1, fraction_targets=0.5, num_bits=8)
    found |= dict(seed_signals=43, seed_data=44) | changes
    names = {
        "num_bags": "bags",
        "num_instances": "instances",
        "num_bits": "bits",
        "num_signals": "signals",
        "num_signals_per_bag": "signals_per_bag",
        "fraction_targets": "positive",
        "seed_signals": "signal_seed",
        "seed_data": "bag_seed",
    }
    return generated_bags.draw_bit_patterns(**{names[k]: v for k, v in found.items()})


def open_whole(task):
    """(instances, labels) of both splits, in the order in which they were drawn."""
    sources = [task.source(split) for split in ("train", "test")]
    records = [source[i] for source in sources for i in range(len(source))]
    records.sort(key=lambda record: int(record["name"].split()[1]))
    instances = np.stack([record["instances"] for record in records])
    return instances, np.array([record["label"] for record in records])


def test_the_default_bags_are_those_of_the_original_bit_for_bit(original):
    drawn, signals = draw_bits(num_bags=2048, num_instances=16, num_signals=8)
    np.testing.assert_array_equal(signals, original["bit/0/signals"])
    packed = np.packbits(drawn.instances)
    np.testing.assert_array_equal(packed, original["bit/0/bags_packed"])
    np.testing.assert_array_equal(drawn.labels, original["bit/0/targets"])
    fields = BitPatterns()  # the defaults of the task are those of the example
    inside = generated_bags.GeneratedBags(drawn, "train", 256)
    assert fields.source("train").fingerprint() == inside.fingerprint()


def test_the_default_sequences_are_those_of_the_original(original):
    drawn = generated_bags.draw_latch_sequences(
        sequences=4096, length=32, characters=20, seed=43
    )
    assert (drawn.instances.sum(axis=-1) == 1).all()
    symbols = drawn.instances.argmax(axis=-1)
    np.testing.assert_array_equal(symbols, original["latch/0/symbols"])
    np.testing.assert_array_equal(drawn.labels, original["latch/0/targets"])
    inside = generated_bags.GeneratedBags(drawn, "train", 512)
    assert LatchSequences().source("train").fingerprint() == inside.fingerprint()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_bags_of_other_seeds_and_sizes_have_the_counts_of_the_original(
    original, number
):
    stats = json.loads(str(original[f"bit/{number}/stats"]))
    drawn, signals = draw_bits(**stats["config"])
    np.testing.assert_array_equal(signals, original[f"bit/{number}/signals"])
    assert list(drawn.instances.shape) == stats["bags_shape"]
    assert drawn.labels.sum() == stats["n_positive"]
    place = 2 ** np.arange(signals.shape[1])
    codes, numbers = drawn.instances @ place, signals @ place
    held = np.isin(codes, numbers)
    assert held[drawn.labels == 0].sum() == 0
    each = held[drawn.labels == 1].sum(axis=1)
    assert [each.min(), each.max()] == stats["signal_instances_per_positive_bag"]
    assert held.sum(axis=0).tolist() == stats["signal_slot_counts"]
    # The golden counts are in the order of the patterns as numbers, first bit lowest.
    used = [int((codes == code).sum()) for code in sorted(numbers)]
    assert used == stats["signal_usage_counts"]
    assert len(np.unique(codes)) == stats["distinct_instances"]
    background = drawn.instances[~held].mean()
    assert background == pytest.approx(stats["mean_bit_background"], abs=1e-12)


def test_other_sequences_have_the_counts_of_the_original(original):
    stats = json.loads(str(original["latch/1/stats"]))
    given = stats["config"]
    drawn = generated_bags.draw_latch_sequences(
        sequences=given["num_samples"],
        length=given["num_instances"],
        characters=given["num_characters"],
        seed=given["seed"],
    )
    symbols = drawn.instances.argmax(axis=-1)
    np.testing.assert_array_equal(symbols[:, 0], drawn.labels)
    counts = np.bincount(symbols[:, 1:].ravel()).tolist()
    assert counts == stats["filler_counts"]
    assert drawn.labels.mean() == stats["positive_fraction"]


def test_the_test_split_is_both_ends_and_the_recipes_lookups_store_what_is_trained_on():
    for task, name, held_out in (
        (BitPatterns(), "bit_patterns", 256),
        (LatchSequences(), "latch", 512),
    ):
        instances, labels = open_whole(task)
        train, test = task.source("train"), task.source("test")
        number = len(train) + len(test)
        assert len(labels) == number and len(test) == 2 * held_out
        np.testing.assert_array_equal(
            train.chosen, np.arange(number)[held_out:-held_out]
        )
        assert [train[0]["name"], test[0]["name"]] == [f"bag {held_out}", "bag 0"]
        recipe = config_lib.load(f"{ROOT}/configs/hopfield/{name}.py:lookup", [])
        stored = np.array(recipe.model.encoder.initial_stored)
        distinct = instances[train.chosen].reshape(-1, instances.shape[-1])
        distinct = np.unique(distinct, axis=0)
        np.testing.assert_array_equal(np.unique(stored, axis=0), distinct)
        assert len(stored) == len(distinct) == recipe.model.encoder.quantity


def test_the_bags_depend_on_their_seeds_and_sizes_alone():
    prints = [
        BitPatterns(**{key: 3 for key in keys}, bags=600).source(split).fingerprint()
        for keys in ((), ("signal_seed",), ("bag_seed",))
        for split in ("train", "test")
    ]
    again = BitPatterns(bags=600).source("train").fingerprint()
    assert again == prints[0] and len(set(prints)) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(bits=3), "signals=8 must be fewer than the 7 patterns of bits=3"),
        (dict(signals_per_bag=17), "signals_per_bag=17 must be from 1 to instances=16"),
        (dict(positive=1.0), "positive=1.0 must be more than 0"),
        (dict(bags=512), "held_out=256 bags at each end must leave some of 512"),
    ],
)
def test_bags_that_cannot_be_drawn_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BitPatterns(**fields).source("train")


def test_other_splits_and_too_few_characters_are_refused():
    with pytest.raises(ValueError, match="'validation' must be 'train' or 'test'"):
        BitPatterns().source("validation")
    with pytest.raises(ValueError, match="characters=2 must be 3 or more"):
        LatchSequences(characters=2).source("train")


def test_a_flat_pooling_keeps_the_place_of_an_instance_and_ignores_padding():
    instances, _ = inputs()
    mask = jnp.asarray(np.arange(5) < np.array([[3], [5]]))
    layer = Hopfield(num_heads=2, max_updates=1, beta=2.0)
    model = BagClassifier(FeatureEncoder(()), FlatPooling(layer))
    variables = started(model, instances, mask)
    apply = jax.jit(model.apply)
    outputs = apply(variables, instances, mask)
    params = {"params": variables["params"]["pooling"]["hopfield"]}
    alone = jax.jit(layer.apply)(params, instances[:1, :3])
    pooled = outputs["pooled"].reshape(2, 5, 6)
    np.testing.assert_allclose(pooled[0, :3], alone[0], atol=1e-5)  # another order
    assert (pooled[0, 3:] == 0).all()
    other = jnp.where(mask[:, :, None], instances, 9)  # multiplied by an exact zero
    np.testing.assert_array_equal(
        apply(variables, other, mask)["logits"], outputs["logits"]
    )
    moved = apply(variables, instances[:, ::-1], mask)["logits"]
    assert abs(moved[1] - outputs["logits"][1]) > 1e-3


def test_a_lookup_starts_with_the_patterns_that_it_is_given():
    state = jnp.ones((1, 2, 3))
    layer = HopfieldLayer(Hopfield(), 2, initial_stored=((1.0, 0.0, 2.0), (0.0,) * 3))
    stored = layer.init(jax.random.key(0), state)["params"]["stored"]
    assert stored.tolist() == [[[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]]
    for rows in (((1.0, 0.0, 2.0),), ((1.0, 0.0), (1.0, 1.0))):
        with pytest.raises(ValueError, match="must have quantity=2 rows of 3"):
            layer.clone(initial_stored=rows).init(jax.random.key(0), state)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_network_of_the_examples_has_one_logit_and_gradients(recipe):
    for variant in VARIANTS:
        config = config_lib.load(f"{ROOT}/configs/hopfield/{recipe}.py:{variant}", [])
        task, model = config_lib.build(config.task), config_lib.build(config.model)
        source = task.source("train")
        example = task.example(source[0], None)
        batch = {key: jnp.asarray(value)[None] for key, value in example.items()}
        batch["valid"] = jnp.ones(1, bool)
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

        def loss(params, task=task, model=model, batch=batch, keys=keys):
            outputs = model.apply(params, **task.inputs(batch), train=True, rngs=keys)
            assert outputs["logits"].shape == (1,)
            return task.loss(outputs, batch)["cross_entropy"][0]

        params = jax.eval_shape(model.init, keys, **task.inputs(batch))
        assert jax.eval_shape(jax.grad(loss), params) == params, variant
        adapted = not variant.endswith("_default")
        lookup = "hopfield" in params["params"].get("encoder", {})
        frozen = ["encoder/projection"] if lookup and adapted else []
        assert list(config.freeze) == frozen, variant


def test_the_association_of_a_flat_pooling_is_drawn(tmp_path):
    instances, _ = inputs()
    mask, labels = jnp.ones((2, 5), bool), np.array([0, 1])
    given = dict(instances=instances, mask=mask)
    lookup = HopfieldLayer(Hopfield(), 3)
    model = BagClassifier(lookup, FlatPooling(Hopfield()))
    drawing = dict(batch={"labels": labels}, assets={}, folder=tmp_path)
    [file] = figures.draw(model, started(model, instances, mask), given, **drawing)
    assert file.stat().st_size > 1000
    alone = model.clone(pooling=FlatPooling())
    with pytest.raises(ValueError, match="FlatPooling weighs no instance by itself"):
        figures.draw(alone, started(alone, instances, mask), given, **drawing)
