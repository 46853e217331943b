"""Variants of Slot Attention: their equations, symmetries, masks and gradients."""

import functools
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import ROOT
from slot_models import IMAGES, KEY, KEYS, run, tiny, tiny_variables

from attn_jax import config as config_lib
from attn_jax.models.slot_attention import SlotAttention, SlotMLP

pytestmark = pytest.mark.usefixtures("quick_compilation")

VARIANTS = {
    "paper": {},
    "divisor": {"normalizer": "savi"},
    "sum": {"normalizer": "sum"},
    "sum and norm": {"normalizer": "sum_norm"},
    "sum over N": {"normalizer": "sum_over_inputs"},
    "softmax over inputs": {"over": "inputs"},
    "heads": {"num_heads": 2},
    "temperature": {"scale": 1.0},
    "learned slots": {"initial": "learned"},
    "implicit": {"differentiate": "implicit"},
    "bilevel": {"initial": "learned", "differentiate": "bilevel"},
    "no GRU": {"use_gru": False},
    "no MLP": {"use_mlp": False},
    "no norms": {"use_norms": False},
    "soft k-means": {"soft_kmeans": True},
}
N, SEEN, K = 11, 7, 3  # inputs, inputs that are not masked in a test of masks, slots
X = jax.random.normal(KEY, (1, N, 5))
START = jax.random.normal(jax.random.key(1), (1, K, 8))


def make(**changes):
    """(module, variables); the parameters are drawn, because an init would be compiled."""
    module = SlotAttention(K, iterations=2, width=8, mlp_width=6, **changes)
    shapes = jax.eval_shape(lambda: module.init(KEY, X, initial_slots=START))
    rng = np.random.default_rng(0)

    def draw(path, shape):
        near = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(near + 0.5 * rng.normal(size=shape.shape), jnp.float32)

    return module, jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_the_symmetries_of_sets(name):
    module, variables = make(**VARIANTS[name])
    inputs, slots = np.array([4, 9, 0, 2, 8, 10, 5, 1, 7, 3, 6]), np.array([2, 0, 1])
    hidden = X.at[:, SEEN:].set(50.0)
    rows = [  # all in one batch, because a program takes longer to compile than to run
        (X, START),
        (X[:, inputs], START),
        (X, START[:, slots]),
        (X, jnp.broadcast_to(START[:, :1], START.shape)),
        (X, START),
        (hidden, START),
    ]
    x, start = (jnp.concatenate(part) for part in zip(*rows, strict=True))
    mask = np.ones((len(rows), N), bool)
    mask[4:, SEEN:] = False
    arrays = {"initial_slots": start, "inputs_mask": jnp.asarray(mask)}
    found = jax.jit(module.apply)(variables, x, **arrays)
    plain, moved, turned, alike, masked, other = np.asarray(found["slots"])
    # Sums of eleven float32 numbers in another order, twice: some roundings.
    near = dict(rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(moved, plain, **near)
    np.testing.assert_allclose(turned, plain[slots], **near)
    assert np.abs(turned - plain).max() > 0.05
    np.testing.assert_allclose(alike[1:], alike[:-1], **near)
    np.testing.assert_array_equal(other, masked)  # each is multiplied by zero
    assert np.abs(masked - plain).max() > 1e-3
    attention = np.asarray(found["attention"])
    np.testing.assert_allclose(attention[1], attention[0][:, inputs], **near)
    assert not attention[4:, :, SEEN:].any()
    without = jax.jit(module.apply)(variables, X[:, :SEEN], initial_slots=START)
    np.testing.assert_allclose(without["slots"][0], masked, **near)


def test_an_example_without_inputs_has_finite_slots():
    for changes in ({}, {"normalizer": "sum_over_inputs"}, {"over": "inputs"}):
        module, variables = make(epsilon=0.0, **changes)
        mask = jnp.zeros((1, N), bool)
        found = run(module, variables, X, initial_slots=START, inputs_mask=mask)
        assert np.isfinite(found["slots"]).all()
        assert not np.any(found["attention"])


def project(params, name):
    """Inputs after their norm and a projection, by NumPy."""
    norm, x = params["norm_inputs"], np.asarray(X[0])
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-3)
    x = x * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    return x @ np.asarray(params[name]["kernel"])


@pytest.mark.parametrize("normalizer", ["paper", "savi", "sum", "sum_over_inputs"])
def test_what_a_slot_gets_is_the_normalizer_s_equation(normalizer):
    epsilon = 0.1  # so large that its place shows
    bare = dict(use_gru=False, use_mlp=False, epsilon=epsilon)
    module, variables = make(normalizer=normalizer, **bare)
    found = run(module, variables, X, initial_slots=START, iterations=1)
    won = np.asarray(found["attention"][0])  # [K, N]
    weights = {
        "paper": (won + epsilon) / (won + epsilon).sum(1, keepdims=True),
        "savi": won / (won.sum(1, keepdims=True) + epsilon),
        "sum": won,
        "sum_over_inputs": won / N,
    }[normalizer]
    expected = weights @ project(variables["params"], "value")
    np.testing.assert_allclose(found["slots"][0], expected, rtol=1e-4, atol=1e-5)


def test_soft_k_means_moves_slots_to_the_means_of_what_is_near():
    module, variables = make(soft_kmeans=True, scale=0.7, epsilon=0.0)
    params = variables["params"]
    assert set(params) == {"slots_mu", "slots_log_sigma", "norm_inputs", "key"}
    found = run(module, variables, X, initial_slots=START, iterations=1)
    keys, slots = project(params, "key"), np.asarray(START[0])
    distances = ((slots[:, None] - keys[None]) ** 2).sum(-1)  # [K, N]
    chances = np.exp(-0.7 * distances / 2)
    chances /= chances.sum(0, keepdims=True)
    np.testing.assert_allclose(found["attention"][0], chances, rtol=1e-4, atol=1e-5)
    means = chances @ keys / chances.sum(1, keepdims=True)
    np.testing.assert_allclose(found["slots"][0], means, rtol=1e-4, atol=1e-5)


def test_every_head_has_a_competition_of_its_own():
    module, variables = make(num_heads=2)
    found, sown = run(
        module, variables, X, initial_slots=START, mutable=["intermediates"]
    )
    heads = np.asarray(sown["intermediates"]["attention"][-1])
    assert heads.shape == (1, 2, K, N)
    np.testing.assert_allclose(heads.sum(axis=2), 1, atol=1e-6)  # a softmax each
    assert np.abs(heads[:, 0] - heads[:, 1]).max() > 0.01
    np.testing.assert_allclose(found["attention"], heads.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("differentiate", ["implicit", "bilevel"])
def test_only_the_last_iteration_gets_a_gradient(differentiate):
    unrolled, variables = make(initial="learned")
    module = unrolled.clone(differentiate=differentiate)

    def value(slots):
        return (slots * jnp.arange(1.0, 9).reshape(1, 1, 8)).sum()

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def ours(variables):
        found = module.apply(variables, X, every_iteration=True)
        return value(found["slots"]), found["slots_per_iteration"]

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def of_one_step(variables, slots):
        found = unrolled.apply(variables, X, initial_slots=slots, iterations=1)
        return value(found["slots"])

    (_, every), found = ours(variables)
    expected, of_start = of_one_step(variables, every[1])
    found, expected = found["params"], expected["params"]
    start = found.pop("slots")
    assert not np.any(expected.pop("slots"))
    expected_start = of_start if differentiate == "bilevel" else jnp.zeros_like(start)
    np.testing.assert_allclose(start, expected_start, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        # The same sums in two programs: a few roundings of numbers up to 10.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )
    same = run(unrolled, variables, X)
    np.testing.assert_allclose(same["slots"], every[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"num_heads": 3}, {}, "width=8 must be divisible by num_heads=3"),
        (
            {"soft_kmeans": True, "use_gru": False},
            {},
            "use_gru=False has no effect on soft_kmeans=True",
        ),
        (
            {"initial": "learned"},
            {"num_slots": 4},
            "num_slots=4, but initial='learned' has learned 3 slots",
        ),
        (
            {"initial": "learned"},
            {"sample_keys": KEYS[:1], "initial_slots": START},
            "both of sample_keys and initial_slots",
        ),
    ],
)
def test_a_variant_that_cannot_be_says_why(changes, options, words):
    module = SlotAttention(K, width=8, mlp_width=6, **changes)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: module.init(KEY, X, **options))


# --- in a model -------------------------------------------------------------------------


def shapes_of(module):
    init = jax.eval_shape(lambda: module.init(KEY, IMAGES, sample_keys=KEYS))
    return jax.tree.map(lambda leaf: leaf.shape, init)["params"]


def test_slot_attention_given_as_a_module_is_the_model_s_own():
    same = tiny(grouping=SlotAttention(3), iterations=3, width=64, mlp_width=128)
    assert shapes_of(same) == shapes_of(same.clone(grouping=None))
    given = SlotAttention(3, iterations=2, width=8, mlp_width=12)
    module = tiny(grouping=given, iterations=3, width=64, mlp_width=128)
    ours = run(module, tiny_variables(), IMAGES, sample_keys=KEYS)
    theirs = run(tiny(), tiny_variables(), IMAGES, sample_keys=KEYS)
    np.testing.assert_array_equal(ours["reconstruction"], theirs["reconstruction"])


def test_without_positions_only_the_decoder_knows_them():
    shapes = shapes_of(tiny(encoder_positions=False))
    assert "position" not in shapes["encoder"]
    assert "position" in shapes["decoder"]
    assert "position" in shapes_of(tiny())["encoder"]


def test_slot_mlp_is_an_mlp_of_all_inputs_and_then_of_each_slot():
    module = SlotMLP(K, width=4, grid=3, widths=(6,), slot_widths=(5, 2))
    x = jax.random.normal(KEY, (2, 9, 5))
    found, variables = jax.jit(lambda: module.init_with_output(KEY, x))()
    params = jax.tree.map(np.asarray, variables["params"])

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    hidden = np.maximum(dense("dense_1", np.asarray(x).reshape(2, -1)), 0)
    slots = np.maximum(dense("dense_2", hidden).reshape(2, K, 4), 0)
    expected = dense("slot_2", np.maximum(dense("slot_1", slots), 0))
    np.testing.assert_allclose(found["slots"], expected, atol=1e-5)  # float32 sums


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            tiny(grouping=SlotAttention(3)),
            "config.model.iterations=2 has no effect on config.model.grouping; set it to 3",
        ),
        (
            tiny(grouping=SlotMLP(4), iterations=3, width=64, mlp_width=128),
            "config.model.grouping.num_slots=4 must be config.model.num_slots=3",
        ),
        (
            tiny(grouping=SlotMLP(3), iterations=3, width=64, mlp_width=128),
            "12 inputs are no square grid",
        ),
    ],
)
def test_a_grouping_that_does_not_fit_the_model_says_why(module, words):
    with pytest.raises(ValueError, match=words):
        shapes_of(module)


@pytest.mark.parametrize(
    "options", [{"num_slots": 2}, {"iterations": 1}, {"every_iteration": True}]
)
def test_slot_mlp_refuses_what_it_does_not_have(options):
    with pytest.raises(ValueError, match=f"so {[*options][0]} cannot be chosen"):
        jax.eval_shape(lambda: SlotMLP(3).init(KEY, jnp.zeros((1, 9, 5)), **options))


TETROMINOES = f"{ROOT}/configs/slot_attention/tetrominoes.py"


def test_every_ablation_of_the_recipe_changes_one_part():
    usual = config_lib.load(f"{TETROMINOES}:debug")
    seen = [config_lib.build(usual.model)]
    for name in runpy.run_path(TETROMINOES)["ABLATIONS"]:
        config = config_lib.load(f"{TETROMINOES}:debug,{name}")
        model = config_lib.build(config.model)
        assert (config.schedule != usual.schedule) == (name == "no_decay")
        assert (model in seen) == (name == "no_decay"), name
        seen.append(model)
        call = functools.partial(model.init_with_output, sample_keys=KEYS[:1])
        outputs, _ = jax.eval_shape(call, KEY, jnp.zeros((1, 10, 10, 3)))
        assert outputs["masks"].shape == (1, 4, 10, 10)
    with pytest.raises(ValueError, match="ablation='no_gnu' must be one of"):
        config_lib.load(f"{TETROMINOES}:debug,no_gnu")
