"""The task of reconstructing scenes: more slots and iterations, metrics after each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slot_models import tiny
from test_scenes import SMALL_TASK, batch_of

from attn_jax import step

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
MODEL = tiny(decoder_initial_size=(6, 6), iterations=3)


@pytest.fixture(scope="module")
def params():
    batch = batch_of(SMALL_TASK, 1)
    return jax.jit(lambda: step.init_params(MODEL, SMALL_TASK, batch, KEY))()


def evaluate(params, rows=3, **fields):
    """{metric: mean} of some images, by a task with other fields."""
    task = dataclasses.replace(SMALL_TASK, **fields)
    terms, _ = jax.jit(
        lambda params, batch: step.eval_step(params, batch, KEY, model=MODEL, task=task)
    )(params, batch_of(SMALL_TASK, rows))
    return {name: float(total / count) for name, (total, count) in terms.items()}


def test_metrics_after_an_iteration_are_those_of_a_model_with_so_many(params):
    found = evaluate(params, every_iteration=True)
    assert len(found) == 5 * (1 + 3)
    for t in (1, 2, 3):
        alone = evaluate(params, iterations=t)
        for name, value in alone.items():
            # Another program: some roundings of means near 1.
            assert found[f"{name}_after_{t}"] == pytest.approx(value, abs=1e-5), name
    assert found["squared_error_after_1"] != pytest.approx(found["squared_error"])
    assert found["fg_ari"] == found["fg_ari_after_3"]


def test_an_evaluation_may_have_other_slots_and_iterations_than_the_model(params):
    shapes = {}
    for fields in ({}, {"num_slots": 5}, {"iterations": 1, "every_iteration": True}):
        task = dataclasses.replace(SMALL_TASK, **fields)
        batch = task.prepare(batch_of(task, 2), KEY, False)
        outputs = jax.eval_shape(
            lambda batch, task=task: MODEL.apply(
                {"params": params}, **task.inputs(batch)
            ),
            batch,
        )
        shapes[len(shapes)] = outputs["masks"].shape, len(outputs)
    assert shapes[0][0] == (2, 3, 12, 12)
    assert shapes[1][0] == (2, 5, 12, 12)
    assert shapes[2][1] == shapes[0][1] + 5  # slots, attention and the three decoded


def test_a_slot_without_a_pixel_changes_no_metric():
    batch = SMALL_TASK.prepare(batch_of(SMALL_TASK, 3), KEY, False)
    masks = jax.random.uniform(KEY, (3, 4, 12, 12))
    images = batch["images"]
    one = SMALL_TASK.measure(images, images, masks, batch)
    other = SMALL_TASK.measure(
        images, images, jnp.pad(masks, ((0, 0), (0, 2), *[(0, 0)] * 2)), batch
    )
    for name, (total, _) in one.items():
        np.testing.assert_array_equal(total, other[name][0], err_msg=name)


def test_objects_of_a_class_are_one_in_its_overlap():
    ids = jnp.array([[[1, 2, 3, 0]]])
    batch = {"valid": jnp.ones(1, bool), "object_ids": ids}
    batch["class_ids"] = jnp.array([[[1, 1, 2, 0]]])
    slots = jax.nn.one_hot(jnp.array([[[0, 0, 1, 2]]]), 4, axis=1)
    image = jnp.zeros((1, 1, 4, 3))
    terms = SMALL_TASK.measure(image, image, slots, batch)
    assert terms["mbo_class"] == (1, 1)
    np.testing.assert_allclose(terms["mbo"][0], (0.5 + 0.5 + 1) / 3, rtol=1e-6)


def test_stripes_are_told_in_the_log_and_counted(caplog):
    bands = np.broadcast_to(np.arange(12) // 4, (5, 12, 12))
    found = SMALL_TASK.score({"segments": bands.astype(np.int32)}, None)
    assert found == {"position_agreement": 1.0, "stripes": 1.0}
    assert "the slots are stripes" in caplog.text
    caplog.clear()
    noise = np.random.default_rng(0).integers(0, 3, (5, 12, 12), np.int32)
    found = SMALL_TASK.score({"segments": noise}, None)
    assert found["stripes"] == 0 and not caplog.text


def test_segments_of_large_images_are_of_every_nth_pixel():
    masks = jax.random.uniform(KEY, (2, 3, 70, 40))
    found = SMALL_TASK.predictions({"masks": masks}, {})["segments"]
    np.testing.assert_array_equal(found, masks.argmax(axis=1)[:, ::3, ::3])
