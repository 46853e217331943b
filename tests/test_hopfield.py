"""Hopfield layers: the original's numbers, the paper's theorems, bags of digits."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import perturb

from attn_jax.attention import MultiHeadAttention
from attn_jax.convert.hopfield import from_torch, inputs_from_torch
from attn_jax.models import hopfield as layers
from attn_jax.models.hopfield import (
    Hopfield,
    HopfieldEncoderLayer,
    HopfieldLayer,
    HopfieldPooling,
    arguments,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOLDEN = pathlib.Path(__file__).parent / "golden" / "hopfield"
CASES = sorted(
    path.stem
    for kind in ("hopfield_", "pooling_", "layer_", "encoder", "decoder")
    for path in GOLDEN.glob(f"{kind}*.npz")
)
# The golden set's own for float32: its inputs were drawn such that a jitter of 1e-6
# moves no output by more than 2e-5, and an independent float32 run stayed within 6e-6.
CLOSE = dict(atol=3e-5, rtol=1e-4)
OFF = dict(norm_stored="off", norm_state="off", norm_projection="off")


def golden(name):
    return np.load(GOLDEN / f"{name}.npz")


def official(case, pick=lambda key: key):
    """(kind, config, state_dict) of a golden file; `pick` renames the arrays."""
    keys = json.loads(str(case["state_dict_keys"]))
    config = json.loads(str(case["config"]))
    return str(case["kind"]), config, {key: case[pick(key)] for key in keys}


def call_arguments(case):
    kind, config, _ = official(case)
    names = ("stored", "state", "projection", "input", "tgt", "memory")
    given = tuple(case[name] for name in names if name in case)
    masks = {name: case[name] for name in case if name.endswith("_mask")}
    given = given[0] if len(given) == 1 else given
    return inputs_from_torch(kind, config, given, **masks)


def run(module, variables, *arguments, **inputs):
    """(output, last association) of one compiled call."""
    arguments, inputs = jax.tree.map(jnp.asarray, (arguments, inputs))
    call = functools.partial(module.apply, mutable=["intermediates"])
    output, sown = jax.jit(call)(variables, *arguments, **inputs)
    # A decoder layer's second association is not among the golden numbers.
    sown["intermediates"].pop("cross_hopfield", None)
    [attention] = jax.tree.leaves(sown)
    return output, attention


def batch_first(case, output):
    _, config, _ = official(case)
    return output if config.get("batch_first", True) else output.swapaxes(0, 1)


# --- the original code ----------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_original_code_gives_the_same_numbers(name):
    case = golden(name)
    module, variables = from_torch(*official(case))
    output, association = run(module, variables, **call_arguments(case))
    # Samples run alone: the original mixes static inputs over the batch, and stops all
    # samples at once. It has no such run with one beta per head.
    alone = "_per_sample" if "output_per_sample_f64" in case else ""
    expected = batch_first(case, case[f"output{alone}_f64"])
    np.testing.assert_allclose(output, expected, **CLOSE)
    np.testing.assert_allclose(association, case[f"association{alone}_f64"], **CLOSE)


@pytest.mark.parametrize(
    "name", ["hopfield_until_eps", "hopfield_perhead_steps", "hopfield_connected"]
)
def test_float64_gives_the_numbers_of_the_original_in_float64(name):
    case = golden(name)
    module, variables = from_torch(*official(case))
    with jax.enable_x64(True):
        inputs = jax.tree.map(np.float64, call_arguments(case))
        output, association = run(module.clone(dtype="float64"), variables, **inputs)
    # The golden set's own: two float64 implementations agreed to 8e-15.
    close = dict(rtol=0, atol=1e-11)
    np.testing.assert_allclose(output, case["output_per_sample_f64"], **close)
    np.testing.assert_allclose(association, case["association_per_sample_f64"], **close)


@pytest.mark.parametrize("name", [n for n in CASES if "fixed" in golden(n)])
def test_gradients_are_those_of_the_original_code(name):
    case = golden(name)
    kind, config, _ = official(case)
    module, variables = from_torch(*official(case))
    # The map from their parameters to ours is linear, so it maps gradients too.
    _, expected = from_torch(*official(case, lambda key: f"grad/{key}"))
    inputs = call_arguments(case)
    roles = {k: v for k, v in inputs.items() if f"grad_in/{k}" in case}
    if "grad_in/input" in case:
        [role] = [k for k in inputs if k in ("stored", "state")]
        roles = {role: inputs[role]}
    assert roles
    constant = {k: jnp.asarray(v) for k, v in inputs.items() if k not in roles}

    def loss(variables, roles):
        output = module.apply(variables, **constant, **roles)
        return (output * case["fixed"]).sum()

    value, (ours, ours_in) = jax.jit(jax.value_and_grad(loss, (0, 1)))(variables, roles)
    np.testing.assert_allclose(value, case["loss_f64"], rtol=1e-4)  # a float32 sum
    theirs_in = {
        role: case[f"grad_in/{role if f'grad_in/{role}' in case else 'input'}"]
        for role in roles
    }
    every = jax.tree.leaves((expected, theirs_in))
    largest = max(np.abs(leaf).max() for leaf in every)
    # The golden set's own for float32: 1e-3 of the largest entry.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-3 * largest),
        (ours, ours_in),
        (expected, theirs_in),
    )


def test_one_beta_per_head_is_not_the_tiling_of_the_original():
    case = golden("hopfield_perhead_beta")
    module, variables = from_torch(*official(case))
    output, _ = run(module, variables, **call_arguments(case))
    # The original is wrong by half a unit; our tolerance against the right one is 3e-5.
    assert np.abs(output - case["wrong_output_tensor_scaling"]).max() > 0.1


# --- the layers -----------------------------------------------------------------------


def test_a_layer_whose_association_has_another_width_is_refused():
    layer = HopfieldEncoderLayer(Hopfield(output_width=5))
    with pytest.raises(ValueError, match=r"returns \(2, 3, 5\), .* output_width"):
        layer.init(jax.random.key(0), jnp.ones((2, 3, 8)))


def test_dropout_of_a_layer_acts_in_training_only():
    layer = HopfieldEncoderLayer(Hopfield(), dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    variables = layer.init(jax.random.key(1), x)
    rngs = {"dropout": jax.random.key(2)}
    evaluated = layer.apply(variables, x)
    without = layer.clone(dropout=0.0).apply(variables, x, train=True, rngs=rngs)
    np.testing.assert_array_equal(evaluated, without)
    trained = layer.apply(variables, x, train=True, rngs=rngs)
    assert np.abs(trained - evaluated).max() > 0.1


def inputs(batch=2, states=3, patterns=5, width=6, seed=0):
    rng = np.random.default_rng(seed)
    stored = rng.normal(size=(batch, patterns, width)).astype(np.float32)
    state = rng.normal(size=(batch, states, width)).astype(np.float32)
    return jnp.asarray(stored), jnp.asarray(state)


def started(module, *arguments, seed=0):
    """Parameters far from their start, where 0.02 would make all of them look alike."""
    variables = jax.jit(module.init)(jax.random.key(seed), *arguments)
    return perturb(variables, scale=0.5, seed=seed)


def test_one_association_is_the_attention_of_a_transformer():
    stored, state = inputs()
    attention = MultiHeadAttention(num_heads=3)
    variables = started(attention, state, stored)
    expected, weights = run(attention, variables, state, stored)
    output, association = run(Hopfield(num_heads=3, **OFF), variables, stored, state)
    # The same operations in the same order.
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(association, weights)


@pytest.mark.parametrize("updates", [0, 2, None])
def test_padding_changes_nothing(updates):
    stored, state = inputs()
    module = Hopfield(num_heads=2, max_updates=updates, zero_association=True)
    variables = started(module, stored, state)
    mask = np.ones((2, 5), bool)
    short, _ = run(module, variables, stored, state, stored_mask=mask)
    padded = np.pad(stored, ((0, 0), (0, 3), (0, 0)), constant_values=7)
    longer = np.pad(mask, ((0, 0), (0, 3)))
    long, association = run(module, variables, padded, state, stored_mask=longer)
    # Longer sums with exact zeros: roundings, which 20 updates blow up a little.
    np.testing.assert_allclose(long, short, rtol=0, atol=1e-5)
    assert (association[..., 5:8] == 0).all()


def test_a_bias_of_minus_infinity_bars_as_a_mask_does():
    stored, state = inputs()
    module = Hopfield(num_heads=2, max_updates=1)
    variables = started(module, stored, state)
    mask = np.random.default_rng(1).random((2, 2, 3, 5)) < 0.5
    mask[0, 0, 0] = False  # one state of one head sees nothing at all
    barred, _ = run(module, variables, stored, state, association_mask=mask)
    bias = np.where(mask, 0, -np.inf).astype(np.float32)
    biased, _ = run(module, variables, stored, state, association_bias=bias)
    np.testing.assert_array_equal(barred, biased)
    assert np.isfinite(barred).all()


@pytest.mark.parametrize("updates", [0, 2])
def test_an_empty_bag_reads_zeros_and_has_finite_gradients(updates):
    stored, state = inputs()
    module = Hopfield(num_heads=2, max_updates=updates, out_projection=False)
    variables = started(module, stored, state)
    mask = jnp.array([[False] * 5, [True] * 5])

    def loss(variables):
        output = module.apply(variables, stored, state, stored_mask=mask)
        return (output**2).sum(), output

    gradient, output = jax.jit(jax.grad(loss, has_aux=True))(variables)
    assert (output[0] == 0).all()
    assert (output[1] != 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_sample_stops_when_it_would_stop_alone():
    stored, state = inputs(batch=4)
    module = Hopfield(num_heads=2, max_updates=20, eps=0.05, beta=2.0)
    variables = started(module, stored, state)
    together, association = run(module, variables, stored, state)
    changes = []
    for i in range(4):
        alone, one = run(module, variables, stored[i : i + 1], state[i : i + 1])
        # Another batch size may sum in another order, and updates blow that up a
        # little; an update more or less would change the association by up to 0.05.
        np.testing.assert_allclose(together[i], alone[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(association[i], one[0], rtol=0, atol=1e-5)
    for limit in (1, 2, 3):
        other = module.clone(max_updates=limit)
        _, early = run(other, variables, stored, state)
        changes.append(np.abs(early - association).max(axis=(1, 2, 3)) > 1e-6)
    # Some samples stop sooner than others, else the test would show nothing.
    assert len({tuple(column) for column in np.array(changes).T}) > 1


def test_a_static_input_does_not_mix_samples():
    stored, state = inputs()
    module = Hopfield(num_heads=3, static_stored=True, static_projection=True)
    variables = started(module, stored, state)
    before, _ = run(module, variables, stored, state)
    after, _ = run(module, variables, stored.at[1].set(stored[0]), state)
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-3


def test_remat_changes_no_number():
    stored, state = inputs()
    module = Hopfield(num_heads=2, max_updates=3, beta=1.5)
    variables = started(module, stored, state)

    def gradient(module):
        def loss(variables):
            return (module.apply(variables, stored, state, train=True) ** 2).sum()

        return jax.jit(jax.grad(loss))(variables)

    jax.tree.map(
        # The gradient's sums may be fused in another order.
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        gradient(module.clone(remat=True)),
        gradient(module),
    )


def test_a_trainable_beta_starts_where_it_is_set_and_has_a_gradient():
    stored, state = inputs()
    fixed = Hopfield(num_heads=2, beta=(0.5, 3.0), **OFF)
    learned = fixed.clone(trainable_beta=True)
    variables = started(fixed, stored, state)
    log_beta = jnp.log(jnp.array([0.5, 3.0]))
    more = {"params": {**variables["params"], "log_beta": log_beta}}
    expected, _ = run(fixed, variables, stored, state)
    output, _ = run(learned, more, stored, state)
    np.testing.assert_allclose(output, expected, atol=1e-6)  # exp(ln(x)) rounds

    def loss(variables):
        return (learned.apply(variables, stored, state) ** 2).sum()

    assert (jax.jit(jax.grad(loss))(more)["params"]["log_beta"] != 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_heads=4), "divisible by num_heads=4"),
        (dict(num_heads=2, beta=(1.0,)), "one for each head"),
        (dict(num_heads=2, max_updates=(1, 2, 3)), "one for each head"),
        (dict(max_updates=None, eps=None), "set eps"),
        (dict(static_state=True, head_dim=4), "head_dim=4"),
        (dict(static_stored=True, head_dim=4), "head_dim=4"),
        (dict(static_projection=True, value_dim=4), "value_dim=4"),
        (
            dict(static_projection=True, connected=True, value_dim=4),
            "must be head_dim=6",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Hopfield(**fields).init, jax.random.key(0), *inputs())


@pytest.mark.parametrize(
    "beta", [[0.5, 2.0], np.array([0.5, 2.0]), jnp.array([0.5, 2])]
)
def test_one_beta_per_head_may_be_a_tuple_a_list_or_an_array(beta):
    module = Hopfield(num_heads=2, beta=beta, trainable_beta=True)
    assert module.beta == (0.5, 2.0)
    hash(module)
    params = module.init(jax.random.key(0), *inputs())["params"]
    np.testing.assert_allclose(params["log_beta"], np.log([0.5, 2.0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(beta=-1.0), r"beta=-1.0 must be positive and finite"),
        (dict(beta=0.0), "beta=0.0 must be positive"),
        (dict(beta=-1.0, trainable_beta=True), "beta=-1.0 must be positive"),
        (dict(beta=[1.0, -2.0]), r"beta=\(1.0, -2.0\) must be positive"),
        (dict(beta=[1.0, float("nan")]), "beta=.* must be positive and finite"),
        (dict(beta=np.array([1.0, 2.0, 3.0])), "beta=.* has 3 entries for num_heads=2"),
        (dict(max_updates=-1), "max_updates=-1 must be 0 or more"),
        (dict(max_updates=[2, -1]), r"max_updates=\(2, -1\) must be 0 or more"),
        (dict(max_updates=1, eps=-1e-3), "eps=-0.001 must be 0 or more"),
        (dict(max_updates=1, eps=[1e-3]), "eps=.* has 1 entries for num_heads=2"),
    ],
)
def test_a_setting_of_a_head_is_checked_by_name(fields, message):
    pooling = HopfieldPooling(Hopfield(num_heads=2, **fields))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(pooling.init, jax.random.key(0), inputs()[0])


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 5, 6), (3, 4, 6), (2, 5, 6)],
        [(2, 5, 6), (2, 4, 6), (2, 4, 6)],
        [(2, 5, 6), (2, 4, 6), (1, 5, 6)],
    ],
)
def test_inputs_of_other_samples_or_without_values_are_named(shapes):
    fields = dict.fromkeys(("head_dim", "value_dim"))
    flags = ("static_stored", "static_state", "static_projection", "connected")
    with pytest.raises(
        ValueError, match=r"stored \(2, 5, 6\), .* \[B, K, Dv\]: of the"
    ):
        arguments.find_widths(
            *shapes, num_heads=2, **fields, **dict.fromkeys(flags, False)
        )


def test_a_matrix_larger_than_the_memory_is_refused_and_chunks_are_not():
    query, key = (jax.ShapeDtypeStruct((2, n, 4, 8), "float32") for n in (3, 1000))
    needed = 4 * 2 * 4 * 3 * 1000
    arguments.check_matrix.__wrapped__(query, key, needed)
    with pytest.raises(
        ValueError, match=r"1,000 patterns, .*\[2, 4, 3, 1000\].* chunk"
    ):
        arguments.check_matrix.__wrapped__(query, key, needed - 1)
    # A self-association of ten million patterns: 364 TiB.
    x = jax.ShapeDtypeStruct((1, 10**7, 8), "float32")
    with pytest.raises(ValueError, match="10,000,000 patterns"):
        jax.eval_shape(Hopfield().init, jax.random.key(0), x)
    streaming = Hopfield(chunk=4096)
    jax.eval_shape(streaming.init, jax.random.key(0), x)


def test_updates_without_a_fixed_number_cannot_be_trained():
    module = Hopfield(max_updates=None)
    init = functools.partial(module.init, train=True)
    with pytest.raises(ValueError, match="cannot be trained"):
        jax.eval_shape(init, jax.random.key(0), *inputs())


def test_dropout_needs_training():
    stored, state = inputs()
    module = Hopfield(num_heads=2, dropout=0.5)
    variables = started(module, stored, state)

    def output(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return jax.jit(functools.partial(module.apply, train=train))(
            variables, stored, state, rngs=rngs
        )

    assert (output(0, False) == output(1, False)).all()
    assert (output(0, True) != output(1, True)).any()


def test_patterns_that_do_not_train_have_no_gradient():
    stored, _ = inputs()
    for module, names in [
        (HopfieldPooling(Hopfield(), quantity=2, trainable=False), {"state"}),
        (HopfieldLayer(Hopfield(), 3, trainable=False), {"stored"}),
    ]:
        variables = started(module, stored)

        def loss(variables, module=module):
            return (module.apply(variables, stored) ** 2).sum()

        gradient = jax.jit(jax.grad(loss))(variables)["params"]
        moved = gradient["hopfield"]["value"]["kernel"]
        assert names == {name for name, g in gradient.items() if name != "hopfield"}
        assert all((gradient[name] == 0).all() for name in names)
        assert (moved != 0).any()


def test_a_layer_of_one_pattern_is_constant_and_of_two_is_not():
    _, state = inputs()
    for quantity, constant in ((1, True), (2, False)):
        module = HopfieldLayer(Hopfield(num_heads=2), quantity)
        output, _ = run(module, started(module, state), state)
        spread = np.ptp(np.asarray(output), axis=(0, 1)).max()
        assert (spread < 1e-6) == constant  # a softmax over one entry is 1


def test_a_layer_starts_as_the_original_does():
    stored, state = inputs(width=64)
    made = jax.jit(Hopfield(num_heads=4).init)(jax.random.key(0), stored, state)
    for name in ("query", "key", "value", "out"):
        part = made["params"][name]
        # The standard deviation of 4,096 draws: four standard errors.
        assert abs(part["kernel"].std() / 0.02 - 1) < 4 / (2 * 4096) ** 0.5
        assert (part["bias"] == 0).all()
    assert layers.MAX_UPDATES == 1000  # as the docstrings say
