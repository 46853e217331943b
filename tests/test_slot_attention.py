"""Slot Attention: the official code's numbers, invariances, scenes, scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slot_models import (
    GOLDEN,
    KEY,
    KEYS,
    TETROMINOES,
    converted,
    count,
    image,
    initial_slots,
    load,
    run,
)

from attn_jax import paths
from attn_jax.convert.slot_attention import from_keras
from attn_jax.models.slot_attention import (
    SlotAttentionAutoEncoder,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

# The golden set's own: the reference in float32 is off float64 by up to 3.4e-6, and we
# by as much again; Flax' own epsilon in LayerNorm (1e-6) fails by far.
FORWARD = dict(rtol=1e-5, atol=2e-5)
# Likewise; gradients are up to 44 and the reference's off by 1.3e-5.
GRADIENT = dict(rtol=1e-4, atol=5e-5)


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


# --- the official numbers -------------------------------------------------------------


@pytest.mark.parametrize("name", ["k4", "k7", "dead_slots"])
def test_every_iteration_has_the_slots_and_attention_of_the_original(name):
    golden = load(GOLDEN / f"slot_module_{name}.npz")
    T = len(golden["attn"])
    module, variables = converted("SlotAttention", golden, num_iterations=T)
    outputs = run(
        module,
        variables,
        golden["inputs"],
        initial_slots=golden["slots_init"],
        every_iteration=True,
    )
    np.testing.assert_allclose(
        outputs["attention_per_iteration"].swapaxes(2, 3), golden["attn"], **FORWARD
    )
    slots = outputs["slots_per_iteration"]
    np.testing.assert_array_equal(slots[0], golden["slots_init"])
    for t in range(1, T + 1):
        np.testing.assert_allclose(slots[t], golden[f"slots_T{t}"], **FORWARD)
    np.testing.assert_array_equal(outputs["slots"], slots[-1])
    np.testing.assert_array_equal(
        outputs["attention"], outputs["attention_per_iteration"][-1]
    )


def test_some_slots_of_the_dead_slots_file_are_dead():
    attention = load(GOLDEN / "slot_module_dead_slots.npz")["attn"]
    assert (attention.max(axis=2) < 1e-8).any()  # epsilon decides what these read


@pytest.mark.parametrize("name", ["k4", "k7"])
def test_gradients_are_those_of_the_original(name):
    golden = load(GOLDEN / f"slot_module_{name}.npz")
    module, variables = converted("SlotAttention", golden)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(variables, inputs):
        params = variables["params"]
        noise = jnp.asarray(golden["noise"])
        slots = params["slots_mu"] + jnp.exp(params["slots_log_sigma"]) * noise
        found = module.apply(variables, inputs, initial_slots=slots, iterations=3)
        return (found["slots"] * golden["cotangent"]).sum()

    ours, inputs = gradients(variables, golden["inputs"])
    np.testing.assert_allclose(inputs, golden["grad_T3/inputs"], **GRADIENT)
    theirs = {
        name.removeprefix("grad_T3/w/"): value
        for name, value in golden.items()
        if name.startswith("grad_T3/w/")
    }
    config = {"num_slots": int(golden["num_slots"])}
    _, expected = from_keras("SlotAttention", config, theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for name, value in paths.named_leaves(expected).items():
        np.testing.assert_allclose(
            paths.named_leaves(ours)[name], value, **GRADIENT, err_msg=name
        )


def check_autoencoder(golden, **options):
    module, variables = converted("SlotAttentionAutoEncoder", golden)
    outputs = run(
        module.clone(**options),
        variables,
        image(golden),
        initial_slots=initial_slots(golden),
        every_iteration=True,
    )
    np.testing.assert_allclose(outputs["slots"], golden["slots"], **FORWARD)
    np.testing.assert_allclose(outputs["masks"], golden["masks"][..., 0], **FORWARD)
    np.testing.assert_allclose(
        outputs["reconstruction"], golden["recon_combined"], **FORWARD
    )
    if "attn" in golden:
        attention = outputs["attention_per_iteration"].swapaxes(2, 3)
        np.testing.assert_allclose(attention, golden["attn"], **FORWARD)
    each = outputs["slot_reconstructions"]
    if "recons" in golden:
        np.testing.assert_allclose(each, golden["recons"], **FORWARD)
    else:
        each = each[:, :, ::2, ::2]
        np.testing.assert_allclose(each, golden["recons_stride2"], **FORWARD)
    loss = np.square(outputs["reconstruction"] - image(golden)).mean()
    # The golden set's own for losses: one or two roundings of float32.
    np.testing.assert_allclose(loss, golden["l2_loss"], rtol=2e-6, atol=1e-6)
    return count(variables)


@pytest.mark.parametrize("remat", [False, True])
def test_the_autoencoder_gives_the_numbers_of_the_original(remat):
    check_autoencoder(load(GOLDEN / "object_discovery_small.npz"), remat=remat)


def test_a_decoder_of_full_resolution_gives_the_numbers_of_the_original(shared):
    folder = shared / "golden" / "slot_attention"
    check_autoencoder(load(folder / "object_discovery_fullres35.npz"))


def test_the_official_autoencoder_gives_its_numbers(shared):
    folder = shared / "golden" / "slot_attention"
    golden = load(folder / "object_discovery_default128.npz")
    assert check_autoencoder(golden) == 890_308


def test_the_official_classifier_gives_its_numbers(shared):
    folder = shared / "golden" / "slot_attention"
    golden = load(folder / "set_prediction_default128.npz")
    module, variables = converted("SlotAttentionClassifier", golden)
    slots = initial_slots(golden)
    outputs = run(module, variables, image(golden), initial_slots=slots)
    np.testing.assert_allclose(outputs["slots"], golden["slots"], **FORWARD)
    np.testing.assert_allclose(outputs["predictions"], golden["predictions"], **FORWARD)
    assert outputs["attention"].shape == (2, 10, 32 * 32)
    assert count(variables) == 380_755


def test_three_steps_of_training_are_those_of_the_original(shared):
    golden = load(shared / "golden" / "slot_attention" / "train_trace.npz")
    module, variables = converted("SlotAttentionAutoEncoder", golden)
    pictures = jnp.asarray(golden["image"])

    def loss(params):
        attention = params["slot_attention"]
        sigma = jnp.exp(attention["slots_log_sigma"])
        slots = attention["slots_mu"] + sigma * golden["noise"]
        outputs = module.apply({"params": params}, pictures, initial_slots=slots)
        return jnp.square(outputs["reconstruction"] - pictures).mean()

    @jax.jit
    def update(params, moments, t, rate):
        value, gradient = jax.value_and_grad(loss)(params)
        # Keras adds epsilon before the bias correction, optax after it.
        adam = optax.scale_by_adam(eps=1e-8 / jnp.sqrt(1 - 0.999**t))
        change, moments = adam.update(gradient, moments)
        params = jax.tree.map(lambda p, c: p - rate * c, params, change)
        return params, moments, (value, optax.tree.norm(gradient))

    for variant in ("constant", "schedule"):
        params = variables["params"]
        moments = optax.scale_by_adam().init(params)
        for t in range(1, 4):
            rate = golden[f"{variant}/lr"][t - 1]
            params, moments, (value, norm) = update(params, moments, t, rate)
            # All the golden set's own, for what float32 leaves of sums this long.
            expected = golden[f"{variant}/losses"][t - 1]
            np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
            expected = golden[f"{variant}/grad_global_norm"][t - 1]
            np.testing.assert_allclose(norm, expected, rtol=1e-4)
            norm = optax.tree.norm(params)
            expected = golden[f"{variant}/param_global_norm"][t]
            np.testing.assert_allclose(norm, expected, rtol=1e-6)


def test_the_paper_s_tetrominoes_model_has_235_812_parameters():
    module = SlotAttentionAutoEncoder(**TETROMINOES)
    images = jnp.zeros((1, 35, 35, 3))
    shapes = jax.eval_shape(lambda: module.init(KEY, images, sample_keys=KEYS[:1]))
    assert count(shapes) == 235_812


# --- errors ---------------------------------------------------------------------------
