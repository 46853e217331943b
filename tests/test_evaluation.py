"""One evaluation: its metrics are known before it is run, its rows come once."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import config as config_lib
from attn_jax import sharding, step
from attn_jax.data import pipeline
from attn_jax.evaluation import Evaluation, gather_rows, read_local_rows

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("quick_compilation")


def make_evaluation(recipe):
    """(evaluation, shapes of the parameters) of a recipe's debug run."""
    config = config_lib.load(f"{ROOT / recipe}:debug")
    model, task = config_lib.build(config.model), config_lib.build(config.task)
    name, section = next(iter(config.evals.items()))
    one = Evaluation(
        name,
        model,
        task,
        section.split,
        mesh=sharding.make_mesh({"data": -1}),
        batch_size=20,
        key=jax.random.key(0),
    )
    shapes = pipeline.batch_shapes(one.source, task, 1)
    batch = {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}

    def init(key):
        return step.init_params(model, task, batch, key)

    return one, init


@pytest.mark.parametrize(
    ("recipe", "some"),
    [("vit/digits", {"loss", "accuracy"}), ("slot_attention/clevr6", {"stripes"})],
)
def test_the_names_of_metrics_are_known_before_an_evaluation_is_run(recipe, some):
    one, init = make_evaluation(f"configs/{recipe}.py")
    names = one.metric_names(jax.eval_shape(init, jax.random.key(0)))
    ticks = []
    results = one.run(jax.jit(init)(jax.random.key(0)), lambda: ticks.append(1))
    assert names == results.keys()
    assert len(ticks) == one.num_batches
    assert {f"{one.name}/{metric}" for metric in some} <= names


def test_a_score_has_names_that_only_show_when_it_is_run():
    one, init = make_evaluation("configs/hopfield/digit_bags.py")
    assert one.metric_names(jax.eval_shape(init, jax.random.key(0))) is None


def test_the_batch_size_is_rounded_up_to_what_the_devices_share():
    one, _ = make_evaluation("configs/vit/digits.py")
    assert one.batch_size == 24


def test_the_rows_of_devices_that_hold_the_same_are_read_once_and_in_order():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    values = np.arange(12.0).reshape(4, 3)
    array = jax.device_put(values, sharding.batch_sharding(mesh))
    np.testing.assert_array_equal(read_local_rows({"a": array})["a"], values)


def test_rows_that_came_twice_or_are_padding_count_once_or_not_at_all():
    first = {
        "index": np.array([2, 3, 0]),
        "valid": np.array([True, True, True]),
        "score": np.array([[0.2], [0.3], [0.0]]),
    }
    again = {
        "index": np.array([1, 3, 3]),
        "valid": np.array([True, True, False]),
        "score": np.array([[0.1], [0.3], [9.0]]),
    }
    rows = gather_rows([first, again])
    np.testing.assert_array_equal(rows["index"], [0, 1, 2, 3])
    np.testing.assert_array_equal(rows["score"][:, 0], [0.0, 0.1, 0.2, 0.3])
    assert rows.keys() == {"index", "score"}
