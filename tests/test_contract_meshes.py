"""Any mesh leads to the numbers of a single device, for a model of every kind."""

import collections
import functools
import math

import jax
import numpy as np
import pytest
from kinds import KINDS, MODELS, arrays, debug

from attn_jax import sharding
from attn_jax.run import prepare

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


Steps = collections.namedtuple("Steps", "params losses")


@pytest.fixture(scope="module")
def three_steps(kind):
    """(optimizer, mesh) -> parameters and losses; mesh (1, 1, 1) is a single device."""

    @functools.cache
    def take_steps(optimizer, mesh):
        config = debug(
            kind,
            duration="3 steps",
            log_every="1 steps",
            # A large eps: Adam blows up the rounding of gradients that should be zero (a
            # key's bias) to the full rate.
            optimizer={"name": optimizer, "learning_rate": 0.01}
            | ({} if optimizer == "sgd" else {"eps": 1e-3}),
            schedule={"name": "constant"},
            mesh=dict(zip(sharding.AXES, mesh, strict=True)),
            fsdp_min_elements=1,
            ema_decay=None,
            evals={},
            keep_best=None,
        )
        run = prepare(config, jax.devices()[: math.prod(mesh)])
        state, losses = run.init_state(run.init_params()), []
        update, batches = run.make_update(), run.read_batches()
        for _ in range(run.total_steps):
            state, sums = update(state, run.place(next(batches)))
            total, count = sums["loss"]
            losses.append(float(total / count))
        return Steps(arrays(state.params), losses)

    return take_steps


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", MODELS, indirect=True)
def test_every_mesh_leads_to_the_parameters_of_a_single_device(three_steps, mesh):
    check_mesh(three_steps, mesh)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in MODELS], indirect=True)
def test_a_mesh_of_three_axes_leads_to_the_parameters_of_a_single_device(three_steps):
    check_mesh(three_steps, (2, 2, 2))


def check_mesh(three_steps, mesh):
    sharded, single = three_steps("sgd", mesh), three_steps("sgd", (1, 1, 1))
    assert sharded.params.keys() == single.params.keys()
    for name, array in single.params.items():
        # A mesh reorders float32 sums over the batch: some roundings of gradients that
        # are at most 1, times the rate 0.01. A row missed or seen twice moves 1e-4.
        np.testing.assert_allclose(
            sharded.params[name], array, rtol=0, atol=1e-6, err_msg=name
        )


# What an optimiser does on a mesh depends on the layout, not on the architecture.
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
@pytest.mark.parametrize("kind", MODELS[1:2], indirect=True)
def test_a_mesh_leads_to_the_losses_of_a_single_device(three_steps, optimizer):
    single = three_steps(optimizer, (1, 1, 1))
    for mesh in MESHES:
        sharded = three_steps(optimizer, mesh)
        # A rounding of a loss near 2.3 is 2.4e-7.
        np.testing.assert_allclose(sharded.losses, single.losses, rtol=0, atol=2e-6)
