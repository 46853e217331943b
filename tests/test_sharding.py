"""Meshes, rules and placement: which device holds what, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from attn_jax import sharding, step
from attn_jax.paths import named_leaves

P = PartitionSpec


def mesh(**sizes):
    return sharding.make_mesh(sizes)


def shapes(**named):
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in named.items()
    }


def specs(mesh, params, rules=(), min_elements=1):
    layout = sharding.param_shardings(mesh, params, rules, min_elements)
    return {name: where.spec for name, where in named_leaves(layout).items()}


# --- the mesh -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ({"data": 8}, (8, 1, 1)),
        ({"data": -1}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": 4, "fsdp": 2, "tensor": -1}, (4, 2, 1)),
        (ConfigDict({"data": -1, "fsdp": 4, "tensor": 1}), (2, 4, 1)),
    ],
)
def test_an_axis_of_minus_one_takes_the_devices_that_are_left(sizes, shape):
    made = sharding.make_mesh(sizes)
    assert made.devices.shape == shape
    assert made.axis_names == sharding.AXES
    assert set(made.devices.flat) == set(jax.devices())
    assert made.axis_types == (AxisType.Auto,) * 3


def test_a_mesh_can_be_made_of_some_devices():
    some = jax.devices()[2:4]
    made = sharding.make_mesh({"tensor": -1}, some)
    assert list(made.devices.flat) == some
    assert sharding.make_mesh({}, some[:1]).size == 1


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"data": 16}, r"data=16, .*\) asks for 16 devices, but 8 are here; .* -1"),
        ({"data": 4}, "asks for 4 devices, but 8 are here"),
        ({"data": -1, "tensor": 3}, "data=-1, fsdp=1, tensor=3.* asks for 3 devices"),
        ({"data": -1, "fsdp": -1}, "at most one may be -1"),
        (
            {"data": 0},
            r"config.mesh \(data=0, fsdp=1, tensor=1\): sizes must be positive",
        ),
        ({"data": -2}, "sizes must be positive"),
        ({"model": 2}, "config.mesh.model: the axes are data, fsdp, tensor"),
    ],
)
def test_a_mesh_that_the_devices_cannot_make_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(sizes)


# --- the batch ------------------------------------------------------------------------


def test_data_and_fsdp_split_the_batch_and_tensor_does_not():
    made = mesh(data=2, fsdp=2, tensor=2)
    assert sharding.batch_shards(made) == 4
    batch = jax.device_put(np.arange(8), sharding.batch_sharding(made))
    parts = [tuple(np.asarray(shard.data)) for shard in batch.addressable_shards]
    assert sorted(parts) == sorted(2 * [(0, 1), (2, 3), (4, 5), (6, 7)])


def test_a_batch_that_devices_and_micro_batches_divide_is_taken():
    sharding.check_batch_size(24, mesh(data=2, fsdp=2, tensor=2), micro_batches=3)
    sharding.check_batch_size(8, mesh(data=8))


@pytest.mark.parametrize(
    "batch_size, micro_batches, message",
    [
        (30, 1, r"batch_size=30 must .* = 2 x 2 x 1 = 4; use 28 or 32, or change"),
        (30, 3, r"batch_size=30 must .* = 2 x 2 x 3 = 12; use 24 or 36, or change"),
        (8, 3, "use 12, or change config.mesh"),  # 0 is no batch size
    ],
)
def test_a_batch_that_is_not_divisible_names_the_next_sizes(
    batch_size, micro_batches, message
):
    made = mesh(data=2, fsdp=2, tensor=2)
    with pytest.raises(ValueError, match=message):
        sharding.check_batch_size(batch_size, made, micro_batches)


def test_a_batch_or_a_part_of_nothing_is_refused():
    with pytest.raises(ValueError, match="config.batch_size=0 must be at least 1"):
        sharding.check_batch_size(0, mesh(data=8))
    with pytest.raises(ValueError, match="config.micro_batches=0 must be at least 1"):
        sharding.check_batch_size(8, mesh(data=8), micro_batches=0)


# --- parameters -----------------------------------------------------------------------


def test_the_first_rule_that_matches_the_whole_path_wins():
    params = {"head": shapes(kernel=(4, 8), bias=(8,)), "ahead": shapes(kernel=(4, 8))}
    rules = [["head/kernel", [None, "tensor"]], [".*/kernel", ["fsdp", "tensor"]]]
    assert specs(mesh(fsdp=2, tensor=2, data=2), params, rules) == {
        "ahead/kernel": P("fsdp", "tensor"),
        "head/kernel": P(None, "tensor"),
        "head/bias": P("fsdp"),  # no rule: the fallback
    }


def test_without_a_rule_the_largest_divisible_dimension_is_split_over_fsdp():
    params = shapes(
        wide=(4, 16), tall=(16, 4), odd=(5, 4, 7), none=(3, 5), scalar=(), twins=(4, 4)
    )
    assert specs(mesh(data=2, fsdp=4), params) == {
        "wide": P(None, "fsdp"),
        "tall": P("fsdp", None),
        "odd": P(None, "fsdp", None),  # 7 is larger, but 4 does not divide it
        "none": P(),
        "scalar": P(),
        "twins": P("fsdp", None),
    }


def test_small_parameters_are_replicated():
    params = shapes(small=(4, 4), large=(4, 8))
    found = specs(mesh(data=2, fsdp=4), params, min_elements=17)
    assert found == {"small": P(), "large": P(None, "fsdp")}


def test_without_an_fsdp_axis_nothing_is_split():
    assert specs(mesh(data=8), shapes(large=(64, 64))) == {"large": P()}


@pytest.mark.parametrize(
    "rule, message",
    [
        (
            ["kernel", ["tensor"]],
            r"\['tensor'\] has 1 entries, but kernel has the shape",
        ),
        (
            ["kernel", [None, "model"]],
            "sharding_rules: 'model' is not a mesh axis; .* tensor",
        ),
        (["kernel", [None, "tensor"]], r"config.mesh.tensor=2 must divide .*\(4, 7\)"),
        (["kernl", [None, None]], "sharding_rules: the regex 'kernl' matches no param"),
    ],
)
def test_a_rule_that_cannot_be_honoured_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        specs(mesh(data=4, tensor=2), shapes(kernel=(4, 7)), [rule])


# --- the state ------------------------------------------------------------------------


def test_what_mirrors_a_parameter_lies_like_it_and_all_else_is_replicated():
    made = mesh(data=2, fsdp=4)
    params = {"a": {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(3)}}
    layout = sharding.param_shardings(made, params, [], fsdp_min_elements=1)
    state = step.init_state(
        params,
        optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda step: 1.0)),
        jax.random.key(0),
        averaged={"a/kernel"},
    )
    found = named_leaves(sharding.state_shardings(made, state, params, layout))
    split = NamedSharding(made, P("fsdp", None))
    assert {name for name, where in found.items() if where == split} == {
        "params/a/kernel",
        "opt_state/0/mu/a/kernel",
        "opt_state/0/nu/a/kernel",
        "average/a/kernel",
    }
    assert all(w.is_fully_replicated for w in found.values() if w != split)
    jax.device_put(state, sharding.state_shardings(made, state, params, layout))


def test_a_slot_of_another_shape_than_its_parameter_is_replicated():
    made = mesh(data=2, fsdp=4)
    params = {"kernel": jnp.zeros((8, 4))}
    layout = sharding.param_shardings(made, params, [], fsdp_min_elements=1)
    factored = {"row": {"kernel": jnp.zeros(8)}}
    found = sharding.state_shardings(made, factored, params, layout)
    assert found["row"]["kernel"] == sharding.replicated(made)


def test_placed_joins_shapes_and_shardings():
    made = mesh(data=2, fsdp=4)
    params = shapes(kernel=(8, 4))
    layout = sharding.param_shardings(made, params, [], fsdp_min_elements=1)
    placed = sharding.add_shardings(params, layout)["kernel"]
    assert (placed.shape, placed.dtype) == ((8, 4), jnp.float32)
    assert placed.sharding == layout["kernel"]


def test_the_table_has_a_line_for_each_way_of_splitting():
    made = mesh(data=2, fsdp=4)
    params = shapes(a=(1000, 4), b=(8, 2), c=(3,), d=(5, 5))
    layout = sharding.param_shardings(made, params, [], fsdp_min_elements=1)
    assert sharding.describe_shardings(params, layout) == [
        "fsdp, None: 2 arrays, 4,016 parameters, such as a",
        "replicated: 2 arrays, 28 parameters, such as d",
    ]
