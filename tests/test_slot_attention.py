"""Slot Attention: the official code's numbers, invariances, scenes, scores."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_jax import metrics, paths, step
from attn_jax.convert.slot_attention import from_keras
from attn_jax.data.scenes import COLOURS, SHAPES, TILE, Tetrominoes, pixels
from attn_jax.models.slot_attention import (
    SlotAttention,
    SlotAttentionAutoEncoder,
    SlotAttentionClassifier,
)
from attn_jax.tasks.reconstruct import Reconstruct

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOLDEN = pathlib.Path(__file__).parent / "golden" / "slot_attention"
KEY = jax.random.key(0)
TETROMINOES = dict(  # the paper's, and configs/slot_attention/tetrominoes.py
    num_slots=4,
    encoder_channels=(32,) * 4,
    decoder_initial_size=(35, 35),
    decoder_channels=(32,) * 3,
    decoder_kernels=(5, 5, 5, 3),
    decoder_strides=(1, 1, 1, 1),
)
# The golden set's own: the reference in float32 is off float64 by up to 3.4e-6, and we
# by as much again; Flax' own epsilon in LayerNorm (1e-6) fails by far.
FORWARD = dict(rtol=1e-5, atol=2e-5)
# Likewise; gradients are up to 44 and the reference's off by 1.3e-5.
GRADIENT = dict(rtol=1e-4, atol=5e-5)


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def load(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def weights_of(golden):
    return {k.removeprefix("w/"): v for k, v in golden.items() if k.startswith("w/")}


def converted(kind, golden, **changes):
    """(module, variables) of a golden file."""
    config = {"num_slots": int(golden["num_slots"])}
    for name in ("num_iterations", "epsilon"):
        if name in golden:
            config[name] = golden[name].item()
    for name in ("decoder_initial_size", "decoder_strides"):
        if name in golden:
            config[name] = golden[name].tolist()
    return from_keras(kind, config | changes, weights_of(golden))


def initial_slots(golden):
    weights, noise = weights_of(golden), golden["noise"]
    sigma = np.exp(weights["slot_attention/slots_log_sigma"])
    return weights["slot_attention/slots_mu"] + sigma * noise


def image(golden):
    if "image" in golden:
        return golden["image"]
    return (golden["image_u8"].astype(np.float32) / 255 - np.float32(0.5)) * 2


def run(module, variables, *inputs, **options):
    """One compiled call: op by op, it would take many times as long."""
    arrays = {
        name: options.pop(name)
        for name in ("initial_slots", "sample_keys")
        if name in options
    }
    return jax.jit(functools.partial(module.apply, **options))(
        variables, *inputs, **arrays
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def tiny(**changes):
    fields = dict(
        num_slots=3,
        iterations=2,
        width=8,
        mlp_width=12,
        encoder_channels=(6, 4),
        encoder_kernels=(3, 3),
        encoder_strides=(1, 2),
        decoder_initial_size=(4, 3),
        decoder_channels=(5, 4),
        decoder_kernels=(5, 3, 3),
        decoder_strides=(2, 1, 1),
    )
    return SlotAttentionAutoEncoder(**{**fields, **changes})


IMAGES = jax.random.uniform(KEY, (5, 8, 6, 3), minval=-1)
KEYS = jax.random.split(jax.random.key(1), len(IMAGES))


@functools.cache
def tiny_variables():
    """Every parameter away from its start: zeros would hide a missing one."""
    init = jax.jit(tiny().init)(KEY, IMAGES[:1], sample_keys=KEYS[:1])
    leaves, treedef = jax.tree.flatten(init)
    keys = jax.random.split(KEY, len(leaves))
    moved = [
        x + 0.1 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


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


# --- what must not matter -------------------------------------------------------------


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


# --- adjusted Rand index --------------------------------------------------------------

ARI = load(GOLDEN / "ari.npz")


@functools.partial(jax.jit, static_argnames=("num_true", "num_predicted"))
def rand_index(true, predicted, num_true, num_predicted, where=None):
    return metrics.adjusted_rand_index(
        true, predicted, num_true=num_true, num_predicted=num_predicted, where=where
    )


@pytest.mark.parametrize(
    "case", ["random", "noisy_blobs", "padded", "large", "special"]
)
def test_the_rand_index_is_exact(case):
    golden = {
        name.removeprefix(f"{case}/"): value
        for name, value in ARI.items()
        if name.startswith(f"{case}/")
    }
    true, predicted = golden["true_ids"], golden["pred_ids"]
    sizes = int(golden["num_true"]), int(golden["num_pred"])
    takes_part = np.ones_like(true, bool)
    if "padding_mask" in golden:
        takes_part = golden["padding_mask"].astype(bool)
    # The golden set's own; float32 sums of exact counts, none of which cancel.
    close = dict(rtol=0, atol=5e-6)
    ours = rand_index(true, predicted, *sizes, takes_part)
    np.testing.assert_allclose(ours, golden["exact_ari"], **close)
    ours = rand_index(true, predicted, *sizes, takes_part & (true != 0))
    np.testing.assert_allclose(ours, golden["exact_fg_ari"], **close)


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        ([0, 0, 0, 0], [1, 1, 1, 1], 1.0),  # one cluster in both: 0 / 0
        ([0, 1, 2, 3], [3, 1, 0, 2], 1.0),  # a pixel each in both: 0 / 0
        ([2], [1], 1.0),
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.0),
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),  # R 0, E 2/3, M 2
    ],
)
def test_the_rand_index_of_small_partitions(true, predicted, expected):
    found = rand_index(np.array([true]), np.array([predicted]), 4, 4)
    # The last is a quotient of small whole numbers; the others are exact.
    np.testing.assert_allclose(found, [expected], rtol=0, atol=1e-7)


# --- scenes ---------------------------------------------------------------------------


def canonical(mask, tile):
    """The tiles that a piece covers, from its upper left corner."""
    rows, columns = np.nonzero(mask)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return tuple(map(tuple, box[::tile, ::tile])), box.shape


def test_the_shapes_are_the_19_tetrominoes():
    shapes = {canonical(pixels(shape, 1), 1) for shape in SHAPES}
    assert len(shapes) == len(SHAPES) == 19
    assert all(pixels(shape, 1).sum() == 4 for shape in SHAPES)


@pytest.mark.parametrize(("canvas", "tile"), [(35, 5), (14, 2)])
def test_a_scene_is_three_whole_tetrominoes_on_black(canvas, tile):
    known = {canonical(pixels(shape, tile), tile) for shape in SHAPES}
    source = Tetrominoes("train", 40, canvas=canvas, tile=tile)
    seen = set()
    for i in range(len(source)):
        record = source[i]
        image, mask = record["image"], record["mask"]
        assert image.shape == (canvas, canvas, 3)
        assert image.dtype == mask.dtype == np.uint8
        # None covers a pixel of another, or one of them would have fewer.
        assert np.bincount(mask.ravel())[1:].tolist() == [4 * tile**2] * 3
        np.testing.assert_array_equal(image.any(axis=-1), mask > 0)
        for piece in (1, 2, 3):
            shape = canonical(mask == piece, tile)
            assert shape in known
            seen.add(shape)
            values = image[mask == piece]
            colour = (values > 0).all(axis=0)
            assert tuple(colour.astype(int)) in COLOURS
            assert not values[:, ~colour].any()
    assert len(seen) == 19


def test_tiles_have_the_brightness_of_the_original():
    image = Tetrominoes("test", 5)[3]["image"]
    lit = image.max(axis=-1)
    row, column = (int(i.min()) for i in np.nonzero(lit))
    row = int(np.nonzero(lit[:, column])[0].min())
    np.testing.assert_array_equal(lit[row : row + 5, column : column + 5], TILE)


def test_a_scene_depends_on_seed_split_and_index_alone():
    one = Tetrominoes("train", 30)
    again = Tetrominoes("train", 40)
    np.testing.assert_array_equal(again[7]["image"], one[7]["image"])
    others = [
        Tetrominoes("train", 30, seed=1)[7],
        Tetrominoes("validation", 30)[7],
        Tetrominoes("test", 30)[7],
        one[8],
    ]
    for other in others:
        assert (other["image"] != one[7]["image"]).any()
    prints = {
        Tetrominoes(split, 30, **options).fingerprint()
        for split in ("train", "test")
        for options in ({}, {"seed": 1}, {"canvas": 40}, {"tile": 4}, {"pieces": 2})
    }
    assert len(prints) == 10
    assert one.fingerprint() != again.fingerprint()


def test_no_two_splits_share_an_image():
    images = [
        Tetrominoes(split, 100)[i]["image"].tobytes()
        for split in ("train", "validation", "test")
        for i in range(100)
    ]
    assert len(set(images)) == len(images)


# --- the task -------------------------------------------------------------------------


def batch_of(task, rows, split="train"):
    source = task.source(split)
    examples = [task.example(source[i], None) for i in range(rows)]
    batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
    batch |= {"index": np.arange(rows, dtype=np.int32), "valid": np.ones(rows, bool)}
    return jax.tree.map(jnp.asarray, batch)


SMALL_TASK = Reconstruct("tetrominoes", image_size=12, tile_pixels=2, num_objects=2)


def test_a_perfect_reconstruction_has_no_error_and_index_1():
    batch = SMALL_TASK.prepare(batch_of(SMALL_TASK, 4), KEY, False)
    masks = jnp.stack([batch["object_ids"] == i for i in (2, 0, 1)], axis=1)
    outputs = {"reconstruction": batch["images"], "masks": masks.astype(jnp.float32)}
    terms = jax.jit(SMALL_TASK.loss)(outputs, batch)
    assert {name: float(count) for name, (_, count) in terms.items()} == {
        "squared_error": 4.0,
        "ari": 4.0,
        "fg_ari": 4.0,
    }
    assert [float(terms[n][0]) for n in ("squared_error", "ari", "fg_ari")] == [0, 4, 4]


def test_padded_rows_and_images_without_objects_do_not_count():
    batch = SMALL_TASK.prepare(batch_of(SMALL_TASK, 4), KEY, False)
    batch |= {
        "object_ids": batch["object_ids"].at[1].set(0),
        "valid": jnp.array([True, True, False, True]),
    }
    outputs = {
        "reconstruction": batch["images"] + jnp.array([1, 2, 9, 1]).reshape(4, 1, 1, 1),
        "masks": jax.random.uniform(KEY, (4, 3, 12, 12)),
    }
    terms = jax.jit(SMALL_TASK.loss)(outputs, batch)
    assert float(terms["squared_error"][0]) == pytest.approx(6, rel=1e-6)  # float32
    counts = [float(terms[n][1]) for n in ("squared_error", "ari", "fg_ari")]
    assert counts == [3, 3, 2]


def test_training_draws_new_slots_each_step_and_evaluation_the_same_per_example():
    batch = batch_of(SMALL_TASK, 3)

    def numbers(key, train, rows=slice(None)):
        part = {name: value[rows] for name, value in batch.items()}
        prepared = SMALL_TASK.prepare(part, key, train)
        return np.asarray(jax.random.key_data(prepared["sample_keys"]))

    other = jax.random.key(5)
    assert (numbers(KEY, True) != numbers(other, True)).any(axis=1).all()
    np.testing.assert_array_equal(
        numbers(KEY, False)[1:], numbers(KEY, False, slice(1, None))
    )
    assert len(np.unique(numbers(KEY, False), axis=0)) == 3


def test_micro_batches_take_the_step_of_one_batch():
    model = tiny(decoder_initial_size=(6, 6))
    batch = batch_of(SMALL_TASK, 8)
    optimizer = optax.sgd(0.1)
    init = jax.jit(functools.partial(step.init_params, model, SMALL_TASK))
    state = step.init_state(init(batch, KEY), optimizer, KEY, None)

    def after(micro_batches):
        update = functools.partial(
            step.train_step,
            model=model,
            task=SMALL_TASK,
            optimizer=optimizer,
            micro_batches=micro_batches,
        )
        return jax.jit(update)(state, batch)[0].params

    one, parts = after(1), after(4)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    for ours, theirs in zip(*map(jax.tree.leaves, (parts, one)), strict=True):
        # Four partial sums instead of one: roundings of gradients near 1, times 0.1.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


# --- errors ---------------------------------------------------------------------------


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
            "images are 8x6, but the decoder makes 8x8.*decoder_initial_size",
        ),
        (
            tiny(decoder_strides=(2, 1)),
            "the decoder has 3 channels, 3 kernels, 2 strides.*decoder_channels",
        ),
        (tiny(encoder_kernels=(3,)), "the encoder has 2 channels, 1 kernels"),
        (
            SlotAttentionClassifier(3),
            "images are 8x6, but the model is made for 128x128.*model.resolution",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_image_says_why(module, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: module.init(KEY, IMAGES, sample_keys=KEYS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "testing"}, "split='testing' must be one of"),
        ({"size": 0}, "size=0 images"),
        ({"canvas": 19}, "canvas=19, tile=5"),
        ({"tile": 1}, "tile=1"),
        ({"pieces": 6}, "cover 49%.*at most 35%.*fewer pieces"),
    ],
)
def test_scenes_that_cannot_be_drawn_say_why(options, words):
    with pytest.raises(ValueError, match=words):
        Tetrominoes(**{"split": "train", "size": 3, **options})


def test_unknown_data_or_splits_say_what_is_known():
    with pytest.raises(ValueError, match="config.task.data='clever'.*'tetrominoes'"):
        Reconstruct("clever").source("train")
    with pytest.raises(ValueError, match="split='dev' must be one of train"):
        Reconstruct("tetrominoes").source("dev")
    with pytest.raises(IndexError):
        Tetrominoes("train", 3)[3]
