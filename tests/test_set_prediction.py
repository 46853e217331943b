"""Set prediction: the loss and the scores of the task, and the iterations of its model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slot_models import IMAGES, KEY, KEYS, load

from attn_jax.data import properties
from attn_jax.models.slot_attention import SlotAttentionClassifier
from attn_jax.tasks.set_prediction import SetPrediction

pytestmark = pytest.mark.usefixtures("quick_compilation")


def task_of(**changes):
    return SetPrediction(data="clevr_lite/whole", image_size=16, **changes)


def record(objects, rows=None):
    """A generated image of so many objects, in an array of so many rows."""
    rng = np.random.default_rng(objects)
    codes = {
        name: rng.integers(len(values), size=objects)
        for name, values in properties.NAMES.items()
    }
    positions = rng.uniform(-3, 3, (objects, 3))
    encoded = properties.encode(positions, **codes, rows=rows or objects)
    return {"image": np.zeros((16, 16, 3), np.uint8), "properties": encoded}


def batch_of(task, *sizes):
    targets = np.stack([task.example(record(n), None)["targets"] for n in sizes])
    return {"targets": jnp.asarray(targets), "valid": jnp.ones(len(sizes), bool)}


def test_the_loss_is_that_of_the_original(shared):
    golden = load(
        shared / "golden" / "slot_attention" / "set_prediction_default128.npz"
    )
    batch = {"targets": jnp.asarray(golden["target"]), "valid": jnp.ones(2, bool)}
    terms = task_of().loss({"predictions": jnp.asarray(golden["predictions"])}, batch)
    total, count = terms["set_loss"]
    # The golden set's own for losses: one or two roundings of float32.
    np.testing.assert_allclose(total / count, golden["loss"], rtol=2e-6, atol=1e-6)
    padded = batch | {"valid": jnp.array([True, False])}
    alone = {"targets": batch["targets"][:1], "valid": jnp.ones(1, bool)}
    one = task_of().loss({"predictions": jnp.asarray(golden["predictions"])}, padded)
    other = task_of().loss(
        {"predictions": jnp.asarray(golden["predictions"][:1])}, alone
    )
    np.testing.assert_allclose(one["set_loss"], other["set_loss"], rtol=1e-6)


def test_targets_are_those_of_the_original(shared):
    golden = load(shared / "golden" / "slot_attention" / "preprocess_clevr.npz")
    codes = {name: golden[f"objects/{name}"] for name in properties.NAMES}
    encoded = properties.encode(golden["objects/3d_coords"], **codes, rows=6)
    image = {"image": np.zeros((16, 16, 3), np.uint8), "properties": encoded}
    found = task_of().example(image, None)["targets"]
    # (c + 3) / 6 in another order of roundings.
    np.testing.assert_allclose(found, golden["target"], atol=1e-6)
    clevr = SetPrediction(data="tfds:clevr", image_size=32)
    framed = clevr.example(image | {"image": golden["image_u8"]}, None)["images"]
    # The original's own size of rounding, in units of [-1, 1].
    np.testing.assert_allclose(framed / 127.5 - 1, golden["image"], atol=1e-6)


def test_the_order_of_objects_and_slots_changes_no_loss():
    task = task_of(target_rows=5)
    batch = batch_of(task, 4, 2)
    guess = jax.random.uniform(KEY, (2, 6, 19))
    slots, rows = np.array([3, 0, 5, 1, 4, 2]), np.array([4, 2, 0, 1, 3])
    turned = batch | {"targets": batch["targets"][:, rows]}
    one = task.loss({"predictions": guess}, batch)["set_loss"]
    other = task.loss({"predictions": guess[:, slots]}, turned)["set_loss"]
    np.testing.assert_allclose(one, other, rtol=1e-5)  # sums in another order


def test_coordinates_weigh_as_the_square_of_their_scale():
    batch = batch_of(task_of(target_rows=3), 2)
    guess = batch["targets"].at[:, 0, 0].add(0.1)  # in the quadratic part of Huber
    plain, scaled = (
        task_of(target_rows=3, coordinate_scale=scale).loss(
            {"predictions": guess}, batch
        )
        for scale in (1.0, 3.0)
    )
    np.testing.assert_allclose(plain["set_loss"][0], 0.1**2 / 2 / 19, rtol=1e-4)
    np.testing.assert_allclose(
        scaled["set_loss"][0], 9 * plain["set_loss"][0], rtol=1e-4
    )
    right = batch["targets"].at[:, 0, 4].add(0.1)  # another property
    terms = task_of(target_rows=3, coordinate_scale=3.0).loss(
        {"predictions": right}, batch
    )
    np.testing.assert_allclose(terms["set_loss"][0], plain["set_loss"][0], rtol=1e-4)


def test_the_loss_at_every_iteration_is_the_mean_of_those_of_each():
    task = task_of(target_rows=3, every_iteration=True)
    batch = batch_of(task, 2, 3)
    each = jax.random.uniform(KEY, (2, 2, 4, 19))
    outputs = {"predictions": each[-1], "predictions_per_iteration": each}
    terms = task.loss(outputs, batch)
    alone = [task.loss(outputs | {"predictions": p}, batch)["set_loss"] for p in each]
    for t, expected in enumerate(alone, 1):
        np.testing.assert_allclose(terms[f"set_loss_after_{t}"], expected, rtol=1e-6)
    mean = (alone[0][0] + alone[1][0]) / 2
    np.testing.assert_allclose(terms["every_set_loss"][0], mean, rtol=1e-6)
    assert task.coefficients == {"every_set_loss": 1.0}
    assert task_of().coefficients == {"set_loss": 1.0}
    rows = {k: np.asarray(v) for k, v in task.predictions(outputs, batch).items()}
    scores = task.score(rows, task.source("test"))
    assert {"ap_inf", "ap_1", "ap_0.5", "ap_0.125", "ap_inf_after_1"} <= set(scores)
    assert scores["ap_inf"] == scores["ap_inf_after_2"]


def test_the_scores_are_those_of_the_original(shared):
    golden = load(shared / "golden" / "slot_attention" / "average_precision.npz")
    rows = {"found": golden["base/pred"], "targets": golden["base/target"]}
    scores = task_of().score(rows, task_of().source("test"))
    assert [*scores] == ["ap_inf", "ap_1", "ap_0.5", "ap_0.25", "ap_0.125"]
    np.testing.assert_allclose([*scores.values()], golden["base/ap"], atol=1e-6)


def test_the_classifier_predicts_after_every_iteration():
    module = SlotAttentionClassifier(
        3,
        num_outputs=5,
        iterations=2,
        width=8,
        mlp_width=6,
        head_width=7,
        resolution=(8, 6),
        encoder_channels=(4,),
        encoder_kernels=(3,),
        encoder_strides=(2,),
    )

    @jax.jit
    def start():
        found, variables = module.init_with_output(
            KEY, IMAGES, sample_keys=KEYS, every_iteration=True
        )
        again = module.apply(variables, IMAGES, sample_keys=KEYS, iterations=1)
        return found, again

    found, first = start()
    each = found["predictions_per_iteration"]
    assert each.shape == (2, 5, 3, 5)
    np.testing.assert_array_equal(each[-1], found["predictions"])
    # The same numbers in two places of a program: a few roundings.
    np.testing.assert_allclose(each[0], first["predictions"], atol=1e-6)
    assert np.abs(each[0] - each[1]).max() > 1e-4


def test_more_objects_than_rows_fewer_slots_than_rows_and_other_data_are_refused():
    with pytest.raises(
        ValueError, match=r"has 5 objects, but config.task.target_rows=4"
    ):
        task_of(target_rows=4).example(record(5), None)
    task = task_of(target_rows=4)
    assert task.example(record(2, rows=7), None)["targets"].shape == (4, 19)
    with pytest.raises(
        ValueError, match=r"3 slots, fewer than config.task.target_rows=4"
    ):
        task.loss({"predictions": jnp.zeros((1, 3, 19))}, batch_of(task, 2))
    with pytest.raises(ValueError, match=r"data='tetrominoes' has no properties"):
        SetPrediction(data="tetrominoes").source("train")
