"""Slot Attention: symmetries, independence of the batch, dtypes, wrong calls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slot_models import (
    GOLDEN,
    IMAGES,
    KEY,
    KEYS,
    converted,
    load,
    run,
    tiny,
    tiny_variables,
)

from attn_jax.data import images, scenes
from attn_jax.models.slot_attention import (
    SlotAttention,
    SlotAttentionClassifier,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def module_k7():
    golden = load(GOLDEN / "slot_module_k7.npz")
    module, variables = converted("SlotAttention", golden)
    return module, variables, golden["inputs"], golden["slots_init"]


# Permuted sums of 50 float32 numbers: some roundings of values near 1.
PERMUTED = dict(rtol=0, atol=5e-6)


def test_permuting_the_inputs_leaves_the_slots(module_k7):
    module, variables, inputs, start = module_k7
    order = np.random.default_rng(0).permutation(inputs.shape[1])
    one = run(module, variables, inputs, initial_slots=start)
    other = run(module, variables, inputs[:, order], initial_slots=start)
    np.testing.assert_allclose(other["slots"], one["slots"], **PERMUTED)
    np.testing.assert_allclose(
        other["attention"], one["attention"][:, :, order], **PERMUTED
    )


def test_permuting_the_initial_slots_permutes_the_slots(module_k7):
    module, variables, inputs, start = module_k7
    order = np.random.default_rng(0).permutation(start.shape[1])
    one = run(module, variables, inputs, initial_slots=start)
    other = run(module, variables, inputs, initial_slots=start[:, order])
    np.testing.assert_allclose(other["slots"], one["slots"][:, order], **PERMUTED)
    assert np.abs(other["slots"] - one["slots"]).max() > 0.1


def test_slots_that_start_alike_stay_alike(module_k7):
    module, variables, inputs, start = module_k7
    start = start[:, :1].repeat(3, axis=1)
    found = run(module, variables, inputs, initial_slots=start)
    np.testing.assert_allclose(found["slots"][:, 1:], found["slots"][:, :-1], atol=1e-6)
    np.testing.assert_allclose(found["attention"], 1 / 3, atol=1e-6)  # a rounding


def test_an_example_does_not_depend_on_its_batch():
    variables = tiny_variables()
    whole = run(tiny(), variables, IMAGES, sample_keys=KEYS)
    for rows in (slice(0, 1), slice(2, 5)):
        part = run(tiny(), variables, IMAGES[rows], sample_keys=KEYS[rows])
        for name, value in part.items():
            # Convolutions of another batch may add in another order: a few roundings.
            np.testing.assert_allclose(value, whole[name][rows], rtol=0, atol=5e-6)


def test_sampled_slots_have_the_learned_mean_and_deviation():
    module = SlotAttention(num_slots=4, width=8)
    inputs = jnp.zeros((500, 2, 5))
    keys = jax.random.split(KEY, 500)
    variables = run_init(module, inputs[:1], keys[:1])
    params = variables["params"]
    found = run(module, variables, inputs, sample_keys=keys, every_iteration=True)
    start = np.asarray(found["slots_per_iteration"][0]).reshape(-1, 8)
    # 2,000 draws: the mean is off by sigma / 45 or less two times in three; 5 of those.
    np.testing.assert_allclose(start.mean(0), params["slots_mu"][0, 0], atol=0.15)
    sigma = np.exp(params["slots_log_sigma"][0, 0])
    np.testing.assert_allclose(start.std(0), sigma, rtol=0.1)
    assert len(np.unique(start[:, 0])) == len(start)  # no two slots start alike


def run_init(module, *inputs_and_keys):
    *inputs, keys = inputs_and_keys
    return jax.jit(lambda *x: module.init(KEY, *x[:-1], sample_keys=x[-1]))(
        *inputs, keys
    )


def test_parameters_start_as_keras_starts_them():
    module = SlotAttention(num_slots=4, width=64)
    params = run_init(module, jnp.zeros((1, 2, 64)), KEYS[:1])["params"]
    recurrent = params["gru"]["recurrent_kernel"]
    # Rows of the whole [64, 192], not of each gate: float32 QR is good to 1e-6 or so.
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(64), atol=1e-5)
    assert not np.any(params["gru"]["bias"])
    for name in ("slots_mu", "slots_log_sigma"):
        assert 0.2 < np.abs(params[name]).max() <= (6 / 65) ** 0.5
    for kernel, fans in [
        (params["gru"]["kernel"], 64 + 192),
        (params["query"]["kernel"], 128),
        (params["mlp_1"]["kernel"], 64 + 128),
    ]:
        limit = (6 / fans) ** 0.5
        assert 0.95 * limit < np.abs(kernel).max() <= limit


def test_the_number_of_slots_and_iterations_may_change_in_the_call():
    variables = tiny_variables()
    found = run(
        tiny(),
        variables,
        IMAGES,
        sample_keys=KEYS,
        num_slots=5,
        iterations=4,
        every_iteration=True,
    )
    assert found["slots"].shape == (5, 5, 8)
    assert found["attention"].shape == (5, 5, 12)
    assert found["masks"].shape == (5, 5, 8, 6)
    assert found["slots_per_iteration"].shape == (5, 5, 5, 8)
    assert found["attention_per_iteration"].shape == (4, 5, 5, 12)
    # Each is a sum of float32 softmax weights.
    np.testing.assert_allclose(found["masks"].sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(found["attention"].sum(1), 1, atol=1e-6)


def test_decode_gives_what_the_call_gave_for_its_slots():
    variables = tiny_variables()
    found = run(tiny(), variables, IMAGES, sample_keys=KEYS)
    decoded = run(tiny(), variables, found["slots"], method="decode")
    assert set(decoded) == {"reconstruction", "slot_reconstructions", "masks"}
    for name, value in decoded.items():  # two programs: a few roundings
        np.testing.assert_allclose(value, found[name], rtol=0, atol=5e-6)
    mixed = (found["masks"][..., None] * found["slot_reconstructions"]).sum(axis=1)
    np.testing.assert_allclose(found["reconstruction"], mixed, rtol=0, atol=5e-6)


def test_every_iteration_s_attention_is_sown_in_order():
    found, sown = run(
        tiny(),
        tiny_variables(),
        IMAGES,
        sample_keys=KEYS,
        every_iteration=True,
        mutable=["intermediates"],
    )
    sown = sown["intermediates"]["slot_attention"]["attention"]
    np.testing.assert_array_equal(
        np.stack(sown)[:, :, 0], found["attention_per_iteration"]
    )


def test_bfloat16_keeps_the_outputs_float32_and_their_values_near():
    variables = tiny_variables()
    ours = run(tiny(dtype="bfloat16"), variables, IMAGES, sample_keys=KEYS)
    exact = run(tiny(), variables, IMAGES, sample_keys=KEYS)
    for name, value in ours.items():
        assert value.dtype == jnp.float32
        # 8 bits through some ten layers: a percent or two of values near 1.
        np.testing.assert_allclose(value, exact[name], rtol=0, atol=0.1)


def test_losses_in_bfloat16_are_within_two_percent_of_those_in_float32():
    source = scenes.Tetrominoes("train", 16, canvas=8, tile=2, pieces=1)
    pixels = jnp.asarray(np.stack([record["image"] for record in source]))
    pictures = images.normalize(pixels)
    keys = jax.random.split(KEY, (40, len(source)))  # of each step's slots
    # At 1e-2 roundings grow from step to step: losses of single steps differ by 5 to 9 %.
    adam = optax.adam(3e-3)

    def train(dtype):
        module = tiny(decoder_initial_size=(4, 4), dtype=dtype)

        def loss(params, keys):
            outputs = module.apply(params, pictures, sample_keys=keys)
            return jnp.square(outputs["reconstruction"] - pictures).mean()

        def update(carry, keys):
            params, moments = carry
            value, gradient = jax.value_and_grad(loss)(params, keys)
            change, moments = adam.update(gradient, moments)
            return (optax.apply_updates(params, change), moments), value

        @jax.jit
        def run():
            params = module.init(KEY, pictures, sample_keys=keys[0])
            return jax.lax.scan(update, (params, adam.init(params)), keys)[1]

        return run()

    ours, exact = train("bfloat16"), train("float32")
    assert exact[-1] < 0.7 * exact[0]  # it learns
    np.testing.assert_allclose(ours, exact, rtol=0.02)  # what the reference asks


def equations(jaxpr):
    """Every equation of a program, those of its subprograms too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from equations(part)


def test_no_sum_over_inputs_is_in_bfloat16():
    N = 1009  # no other size is as large
    module = SlotAttention(num_slots=2, width=4, dtype="bfloat16")
    inputs, keys = jnp.zeros((1, N, 4)), KEYS[:1]
    variables = run_init(module, inputs, keys)
    traced = jax.make_jaxpr(lambda *x: module.apply(*x, sample_keys=keys))
    summed = []
    for equation in equations(traced(variables, inputs).jaxpr):
        operand = equation.invars[0].aval if equation.invars else None
        dims = ()
        if equation.primitive.name == "dot_general":
            dims = equation.params["dimension_numbers"][0][0]
        elif equation.primitive.name == "reduce_sum":
            dims = equation.params["axes"]
        if any(operand.shape[dim] == N for dim in dims):
            summed.append(
                (equation.primitive.name, {v.aval.dtype for v in equation.invars})
            )
    # Three iterations: the weights, and the values that they weigh.
    assert len(summed) == 6
    assert all(dtypes == {np.dtype("float32")} for _, dtypes in summed), summed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "neither of sample_keys and initial_slots"),
        (
            {"sample_keys": KEYS, "initial_slots": jnp.zeros((5, 3, 8))},
            "both of sample_keys and initial_slots",
        ),
        (
            {"initial_slots": jnp.zeros((5, 3, 8)), "num_slots": 4},
            r"\[5, 3, 8\].*\[5, 4, 8\].*leave out num_slots",
        ),
        ({"initial_slots": jnp.zeros((5, 3, 9))}, r"\[5, 3, 9\].*\[5, 3, 8\]"),
        ({"sample_keys": KEYS, "num_slots": 0}, "num_slots=0 must be at least 1"),
        ({"sample_keys": KEYS, "iterations": 0}, "iterations=0 must be at least 1"),
    ],
)
def test_a_call_that_cannot_start_says_why(options, words):
    with pytest.raises(ValueError, match=words):
        tiny().apply(tiny_variables(), IMAGES, **options)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            tiny(decoder_initial_size=(4, 4)),
            "images are 8x6, but the decoder outputs 8x8.*decoder_initial_size",
        ),
        (
            tiny(decoder_strides=(2, 1)),
            "the decoder has 3 channels, 3 kernels, 2 strides.*decoder_channels",
        ),
        (tiny(encoder_kernels=(3,)), "the encoder has 2 channels, 1 kernels"),
        (
            SlotAttentionClassifier(3),
            "images are 8x6, but the model expects 128x128.*model.resolution",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_image_says_why(module, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: module.init(KEY, IMAGES, sample_keys=KEYS))
