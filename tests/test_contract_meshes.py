"""Any mesh leads to the numbers of a single device, and so do micro-batches.

Asked of a model of every kind. A step is compiled once per kind, mesh and number of
micro-batches; these are most of the time, so several tests read the same steps.
"""

import collections
import functools
import math

import jax
import numpy as np
import pytest
from budgets import check_budget
from kinds import KINDS, MODELS, arrays, debug, shrink

from attn_jax import config as config_lib
from attn_jax import sharding
from attn_jax.plan.hlo import Program
from attn_jax.run import prepare

SINGLE, MIXED = (1, 1, 1), (2, 2, 2)
# The mesh of three axes splits in each of the ways in which these do; they are asked of the
# three large models.
PLAIN = [(8, 1, 1), (1, 8, 1)]
LARGE = [
    kind
    for kind in MODELS
    if debug(kind).model.cls.endswith((":Bert", ":ViT", "ionAutoEncoder"))
]
NO_NOISE = ("dropout", "attention_dropout", "stochastic_depth")

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


# Parameters and losses after each step, and the text of the compiled program.
Steps = collections.namedtuple("Steps", "params losses program")


def without_noise(section):
    """The section with every random operation of the model switched off."""
    if not isinstance(section, dict):
        return section
    return {
        key: 0.0 if key in NO_NOISE else without_noise(value)
        for key, value in section.items()
    }


def train_a_little(params):
    """Parameters as after some training: a head of zeros would hide what differs below it."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.normal(0, 0.05, leaf.shape).astype("f"),
        params,
    )


@pytest.fixture(scope="module")
def three_steps(kind):
    """(optimizer, mesh, micro-batches) -> `Steps`, without the model's noise or with it."""

    size = shrink(kind)

    @functools.cache
    def take_steps(optimizer="sgd", mesh=SINGLE, micro_batches=1, noise=False):
        config = debug(
            kind,
            duration="3 steps",
            log_every="1 steps",
            # A large eps: Adam blows up the rounding of gradients that should be zero (a
            # key's bias) to the full rate.
            optimizer={"name": optimizer, "learning_rate": 0.01}
            | ({} if optimizer == "sgd" else {"eps": 1e-3}),
            schedule={"name": "constant"},
            micro_batches=micro_batches,
            mesh=dict(zip(sharding.AXES, mesh, strict=True)),
            fsdp_min_elements=1,
            ema_decay=None,
            evals={},
            keep_best=None,
            **size,
        ).unlock()
        if not noise:
            config.model = without_noise(config_lib.to_plain(config.model))
            config.clip_norm = None
        run = prepare(config, jax.devices()[: math.prod(mesh)])
        state = run.init_state(train_a_little(initialize(run)))
        update, batches = run.make_update(), run.read_batches()
        params, losses, compiled = [], [], None
        for _ in range(run.total_steps):
            batch = next(batches)
            # Devices and strided micro-batches have unequal counts.
            batch["valid"] = ~np.isin(np.arange(len(batch["valid"])), [0, 2, 4])
            batch = run.place(batch)
            compiled = compiled or update.lower(state, batch).compile()
            state, sums = compiled(state, batch)
            total, count = sums["loss"]
            losses.append(float(total / count))
            params.append(arrays(state.params))
        return Steps(params, losses, compiled.as_text())

    @functools.cache
    def initialize_once():
        return prepare(debug(kind, **size), jax.devices()[:1]).init_params()

    def initialize(run):
        # That a mesh draws the same parameters depends on the model, not on the task.
        return run.init_params() if kind in MODELS else initialize_once()

    return take_steps


@pytest.mark.parametrize("mesh", PLAIN)
@pytest.mark.parametrize("kind", LARGE, indirect=True)
def test_a_mesh_of_one_axis_leads_to_the_parameters_of_a_single_device(
    three_steps, mesh
):
    check_mesh(three_steps, mesh, noise=True)


@pytest.mark.parametrize("kind", MODELS, indirect=True)
def test_a_model_on_a_mesh_of_three_axes_has_the_parameters_of_a_single_device(
    three_steps,
):
    check_mesh(three_steps, MIXED, noise=True)


@pytest.mark.parametrize("kind", MODELS, indirect=True)
def test_a_model_on_a_mesh_of_three_axes_exchanges_what_its_budget_allows(
    three_steps, kind
):
    program = Program(three_steps(mesh=MIXED, noise=True).program)
    sent = collections.Counter()
    for each in program.collectives:
        sent[each.kind] += each.bytes * each.times
    # Compilers of different versions may choose other ways.
    check_budget("bytes of collectives", kind, dict(sent), slack=0.25)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in MODELS], indirect=True)
def test_a_mesh_of_three_axes_leads_to_the_parameters_of_a_single_device(three_steps):
    check_mesh(three_steps, MIXED, noise=False)


def check_mesh(three_steps, mesh, noise):
    sharded, single = (three_steps(mesh=m, noise=noise) for m in (mesh, SINGLE))
    assert sharded.params[-1].keys() == single.params[-1].keys()
    for name, array in single.params[-1].items():
        # A mesh reorders float32 sums over the batch: some roundings of gradients that
        # are at most 1, times the rate 0.01. A row missed or seen twice moves 1e-4.
        np.testing.assert_allclose(
            sharded.params[-1][name], array, rtol=0, atol=1e-6, err_msg=name
        )


def test_micro_batches_with_unequal_counts_are_one_batch(three_steps):
    whole, parts = three_steps(), three_steps(micro_batches=2)
    # Partial sums instead of one: some roundings (2.4e-7 each) of a loss near 2.8, and less
    # of the parameters. A mean of the two means would be wrong by about 1e-3.
    assert abs(whole.losses[0] - parts.losses[0]) < 2e-6
    for name, array in whole.params[0].items():
        np.testing.assert_allclose(
            parts.params[0][name], array, rtol=0, atol=1e-7, err_msg=name
        )


# What an optimiser does on a mesh depends on the layout, not on the architecture; and a mesh
# of three axes splits its state in each of the ways in which the others do.
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
@pytest.mark.parametrize("kind", MODELS[1:2], indirect=True)
def test_a_mesh_leads_to_the_losses_of_a_single_device(three_steps, optimizer):
    single, sharded = (
        three_steps(optimizer, mesh, noise=True) for mesh in (SINGLE, MIXED)
    )
    # A rounding of a loss near 2.3 is 2.4e-7.
    np.testing.assert_allclose(sharded.losses, single.losses, rtol=0, atol=2e-6)
