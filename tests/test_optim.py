"""The update against traces of the original code, then what no trace shows.

Reference gradients are replayed, so an error of one step stays visible in all later ones.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from test_schedules import schedule, to_steps

from attn_jax import optim, schedules, sharding
from attn_jax.paths import named_leaves

GOLDEN = pathlib.Path(__file__).parent / "golden"
BERT_DECAYED = [".*/kernel", ".*/word_embeddings", ".*/output_weights"]

# Parameters are float32 and up to 2 in size: one rounding is 1.2e-7, and no more was seen
# after all steps. A wrong order or factor moves parameters by over 1e-5.
ONE_ROUNDING = 2e-7


@pytest.fixture(scope="module")
def vit():
    return np.load(GOLDEN / "vit/optim/trace.npz")


@pytest.fixture(scope="module")
def bert():
    return np.load(GOLDEN / "bert/optim/optim_trace.npz")


def config(optimizer, **changes):
    common = dict(
        clip_norm=None,
        weight_decay_on=[".*/kernel"],
        learning_rate_multipliers=[],
        freeze=[],
    )
    return common | dict(optimizer=optimizer) | changes


def constant(step):
    return 1.0


def tree(arrays, prefix):
    """The nested dict of the arrays whose names begin with prefix, in float32."""
    nested = {}
    for name in arrays:
        if name.startswith(prefix) and "#" not in name:
            *parents, last = name.removeprefix(prefix).split("/")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = jnp.asarray(arrays[name], jnp.float32)
    return nested


def replay(optimizer, params, gradients):
    """(parameters, state) after each gradient, jitted as in training.

    Without excess precision: XLA may else keep a bfloat16 product in float32, which the
    reference, run operation by operation, does not (1.1e-4 after 6 steps).
    """

    @functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, history = optimizer.init(params), []
    for gradient in gradients:
        params, state = step(params, state, gradient)
        history.append((params, state))
    return history


def check(ours, theirs, only=lambda name: True, atol=ONE_ROUNDING):
    """The trees have the same names, and leaves equal up to `atol`."""
    ours, theirs = named_leaves(ours), named_leaves(theirs)
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if only(name)]
    assert names
    for name in names:
        np.testing.assert_allclose(
            ours[name], theirs[name], rtol=0, atol=atol, err_msg=name
        )


def replay_vit(vit, name, config, schedule, only=lambda name: True):
    params = tree(vit, f"{name}/param/0/")
    gradients = [tree(vit, f"{name}/grad/{step}/") for step in range(6)]
    optimizer = optim.make_optimizer(config, params, schedule)
    for step, (ours, _) in enumerate(replay(optimizer, params, gradients), 1):
        check(ours, tree(vit, f"{name}/param/{step}/"), only)


def replay_bert(bert, run, config, schedule, atol=ONE_ROUNDING):
    """The state after each step, once the parameters have been compared."""
    params = tree(bert, "init/")
    gradients = [tree(bert, f"grad{step}/") for step in range(5)]
    optimizer = optim.make_optimizer(config, params, schedule)
    history = replay(optimizer, params, gradients)
    for step, (ours, _) in enumerate(history, 1):
        check(ours, tree(bert, f"{run}/step{step}/param/"), atol=atol)
    return [state for _, state in history]


def random_params(**shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: {"kernel": jax.random.normal(key, shape)}
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def gradient_of(params):
    return jax.tree.map(lambda p: jnp.sin(3 * p), params)


# --- reference traces -----------------------------------------------------------------


@pytest.mark.parametrize(
    "mu_dtype, name", [(None, "adamw"), ("bfloat16", "adamw_bf16mu")]
)
def test_adamw_takes_the_steps_of_big_vision(vit, mu_dtype, name):
    # big_vision's wd 0.001 is the learning rate times ours.
    section = dict(
        name="adamw", learning_rate=0.01, weight_decay=0.1, mu_dtype=mu_dtype
    )
    warm_cosine = schedule("cosine", warmup="2 steps")
    replay_vit(vit, name, config(section, clip_norm=1.0), warm_cosine)


@pytest.mark.parametrize(
    "part, name, wd, decays",
    [
        ("head", "cosine", 0.1, ".*/kernel"),
        ("Transformer", "linear", 0.1, ".*/kernel"),
        ("cls", "linear", 0.1, ".*/kernel"),
        ("pos_embedding", "linear", 0.2, "pos_embedding"),
        ("embedding", "linear", 0.1, ".*/kernel"),
    ],
)
def test_parameter_groups_take_the_steps_of_big_vision(vit, part, name, wd, decays):
    # big_vision gives every group its own schedule and decay; a run of ours has one. Groups
    # meet only in the clip norm, which does not depend on either, so one run per group will do.
    section = dict(
        name="adamw", learning_rate=0.01, weight_decay=wd, b1=0.8, b2=0.95, eps=1e-6
    )
    settings = config(
        section,
        clip_norm=1.0,
        weight_decay_on=[decays],
        learning_rate_multipliers=[["Transformer/.*", 0.5], [".*", 1.0]],
        freeze=["embedding/.*"],
    )
    warmup = {"cosine": "2 steps", "linear": "1 steps"}[name]
    factor = schedule(name, warmup=warmup)
    replay_vit(vit, "groups", settings, factor, lambda path: path.split("/")[0] == part)


def test_bfloat16_momentum_takes_the_steps_of_big_vision(vit):
    # The product is rounded to bfloat16, the sum is not: optax.trace does the same.
    section = dict(
        name="sgd", learning_rate=0.01, momentum=0.9, momentum_dtype="bfloat16"
    )
    warm_cosine = schedule("cosine", warmup="2 steps")
    replay_vit(vit, "sgd_momentum_bf16", config(section, clip_norm=1.0), warm_cosine)


@pytest.mark.parametrize("run", ["adamw_const", "adamw_full"])
def test_bert_adamw_takes_the_steps_of_google(bert, run):
    section = dict(name="bert_adamw", learning_rate=0.01, weight_decay=0.01)
    full = run == "adamw_full"
    states = replay_bert(
        bert,
        run,
        config(section, clip_norm=1.0 if full else None, weight_decay_on=BERT_DECAYED),
        schedule("bert_linear", total_steps=8, warmup="3 steps") if full else constant,
    )
    names = named_leaves(tree(bert, "init/"))
    for step, state in enumerate(states, 1):
        slots = named_leaves(state)
        for name in names:
            for ours, theirs in (("mu", "m"), ("nu", "v")):
                (slot,) = (v for k, v in slots.items() if k.endswith(f"{ours}/{name}"))
                golden = bert[f"{run}/step{step}/{name}#adam_{theirs}"]
                # float32 against float64, relative to moments of size 1e-8 to 30.
                np.testing.assert_allclose(slot, golden, rtol=2e-6, atol=1e-8)


def test_bert_adamw_walks_googles_quadratic(bert):
    target = jnp.array([0.4, 0.2, -0.5])
    section = dict(name="bert_adamw", learning_rate=0.2, weight_decay=0.0)
    settings = config(section, weight_decay_on=[])
    params = {"w": jnp.array([0.1, -0.2, -0.1])}
    optimizer = optim.make_optimizer(settings, params, constant)

    def step(carry, _):
        params, state = carry
        gradient = {"w": 2 * (params["w"] - target) / 3}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["w"]

    _, history = jax.lax.scan(step, (params, optimizer.init(params)), length=100)
    # The gradient depends on the parameters here, so rounding returns amplified by
    # 1 / sqrt(nu): 1.2e-6 was seen. Bias correction changes the first step by 0.4.
    np.testing.assert_allclose(history, bert["quadratic/w_history"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("run, clip_norm", [("lamb_tf", None), ("lamb_tf_clip", 1.0)])
def test_lamb_takes_the_steps_of_the_tensorflow_code(bert, run, clip_norm):
    rates = jnp.asarray(bert["lamb_lr"], jnp.float32)
    section = dict(name="lamb", learning_rate=1.0, weight_decay=0.01)
    settings = config(section, clip_norm=clip_norm, weight_decay_on=BERT_DECAYED)
    # The ratio is of two float32 norms: 6e-7 was seen against the float64 trace.
    replay_bert(bert, run, settings, lambda step: rates[step], atol=1e-6)


@pytest.mark.parametrize("case", range(3))
def test_clipping_gives_googles_gradients(bert, case):
    gradients = tree(bert, f"clip{case}/in")
    settings = config(
        dict(name="sgd", learning_rate=1.0), clip_norm=1.0, weight_decay_on=[]
    )
    optimizer = optim.make_optimizer(settings, gradients, constant)
    updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
    check(jax.tree.map(jnp.negative, updates), tree(bert, f"clip{case}/out"))


# --- what no trace shows --------------------------------------------------------------


def test_frozen_parameters_have_no_slots_and_do_not_move():
    params = random_params(a=(3, 5), b=(5, 7))
    settings = config(dict(name="adamw", weight_decay=0.1), freeze=["a/.*"])
    optimizer = optim.make_optimizer(settings, params, constant)
    ((after, state),) = replay(optimizer, params, [gradient_of(params)])
    assert (after["a"]["kernel"] == params["a"]["kernel"]).all()
    assert (after["b"]["kernel"] != params["b"]["kernel"]).all()
    slots = named_leaves(state)
    assert not [name for name in slots if name.endswith("a/kernel")]
    assert len([name for name in slots if name.endswith("b/kernel")]) == 2  # mu and nu


def test_the_number_of_frozen_parameters_is_told():
    params = random_params(**{"a": (3, 5), "b": (7,), "c": (2,)})
    line = optim.describe_frozen(["[ac]/.*"], params)
    assert line == "frozen: 17 of 24 parameters, by freeze=['[ac]/.*']"


def test_the_gradient_of_a_frozen_parameter_is_not_in_the_clip_norm():
    params = random_params(a=(3, 5), b=(5, 7))
    settings = config(dict(name="sgd"), clip_norm=1.0, freeze=["a/.*"])
    optimizer = optim.make_optimizer(settings, params, constant)
    quiet, loud = (
        {"a": {"kernel": jnp.full((3, 5), size)}, "b": params["b"]}
        for size in (0.0, 1e3)
    )
    ((without, _),) = replay(optimizer, params, [quiet])
    ((with_, _),) = replay(optimizer, params, [loud])
    assert (without["b"]["kernel"] == with_["b"]["kernel"]).all()


def test_a_multiplier_scales_the_gradient_part_and_leaves_the_decay():
    params = random_params(a=(3, 5), b=(5, 7))
    still = jax.tree.map(jnp.zeros_like, params)

    def moved(gradient, weight_decay, multipliers):
        section = dict(name="sgd", learning_rate=0.5, weight_decay=weight_decay)
        settings = config(section, learning_rate_multipliers=multipliers)
        optimizer = optim.make_optimizer(settings, params, constant)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    # The first match wins: a gets 0.25. Powers of two make every product exact.
    rules = [["a/.*", 0.25], [".*", 1.0]]
    decayed = moved(still, 0.5, rules)
    assert (decayed["a"]["kernel"] == -0.25 * params["a"]["kernel"]).all()
    pulled = moved(params, 0.0, rules)
    assert (pulled["a"]["kernel"] == -0.125 * params["a"]["kernel"]).all()
    assert (pulled["b"]["kernel"] == -0.5 * params["b"]["kernel"]).all()


def test_a_multiplier_scales_the_whole_update_of_lamb():
    params = random_params(a=(3, 5), b=(5, 7))
    section = dict(name="lamb", weight_decay=0.5)

    def moved(multipliers):
        settings = config(section, learning_rate_multipliers=multipliers)
        optimizer = optim.make_optimizer(settings, params, constant)
        gradient = gradient_of(params)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    plain, halved = moved([]), moved([["a/.*", 0.5]])
    assert (halved["a"]["kernel"] == 0.5 * plain["a"]["kernel"]).all()
    assert (halved["b"]["kernel"] == plain["b"]["kernel"]).all()
    # The ratio makes a step of learning_rate x |parameter|; float32 norms of 15 elements.
    norm = jnp.linalg.norm
    ratio = norm(plain["a"]["kernel"]) / norm(params["a"]["kernel"])
    np.testing.assert_allclose(ratio, 1e-3, rtol=1e-6)


def test_a_locked_config_dict_is_read_as_a_dict_is():
    params = random_params(a=(2, 5), b=(5, 7))
    settings = config(
        dict(name="lamb", stacked=["a/.*"]),
        clip_norm=1.0,
        learning_rate_multipliers=[["a/.*", [0.5, 1.0]]],
        freeze=["b/.*"],
    )

    def after(settings):
        factor = schedules.make_schedule(
            settings["schedule"], total_steps=12, to_steps=to_steps
        )
        optimizer = optim.make_optimizer(settings, params, factor)
        return replay(optimizer, params, [gradient_of(params)] * 3)[-1][0]

    settings["schedule"] = dict(name="linear", warmup="1 steps")
    ours, theirs = after(ConfigDict(settings).lock()), after(settings)
    assert (ours["a"]["kernel"] == theirs["a"]["kernel"]).all()
    assert (ours["a"]["kernel"] != params["a"]["kernel"]).any()


def test_sgd_without_momentum_keeps_no_slots():
    params = random_params(a=(3, 5))
    optimizer = optim.make_optimizer(config(dict(name="sgd")), params, constant)
    assert list(named_leaves(optimizer.init(params)).values()) == [
        0
    ]  # the step counter


def test_nesterov_looks_one_step_ahead():
    params, gradient = {"w": jnp.array([1.0])}, {"w": jnp.array([2.0])}
    section = dict(name="sgd", learning_rate=1.0, momentum=0.5, nesterov=True)
    settings = config(section, weight_decay_on=[])
    optimizer = optim.make_optimizer(settings, params, constant)
    history = [
        after["w"].item() for after, _ in replay(optimizer, params, [gradient] * 2)
    ]
    # t = 2, 3; d = 2 + 0.5 t = 3, 3.5; exact in binary.
    assert history == [-2.0, -5.5]


def test_momentum_is_stored_in_the_dtype_asked_for():
    params = random_params(a=(3, 5))
    for section in (
        dict(name="adamw", mu_dtype="bfloat16"),
        dict(name="sgd", momentum=0.9, momentum_dtype="bfloat16"),
    ):
        optimizer = optim.make_optimizer(config(section), params, constant)
        for _, state in replay(optimizer, params, [gradient_of(params)] * 2):
            dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
            assert "bfloat16" in dtypes


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_layers_stacked_by_scan_move_as_if_they_were_separate(name):
    separate = random_params(block_0=(3, 5), block_1=(3, 5))
    separate["block_1"]["kernel"] *= 7  # a ratio over both layers would be far off
    kernels = [separate[f"block_{i}"]["kernel"] for i in range(2)]
    stacked = {"block": {"kernel": jnp.stack(kernels)}}
    section = dict(name=name, weight_decay=0.1)

    def after(params, multipliers, **arguments):
        settings = config(section | arguments, learning_rate_multipliers=multipliers)
        optimizer = optim.make_optimizer(settings, params, constant)
        gradients = [gradient_of(params)] * 3
        return replay(optimizer, params, gradients)[-1][0]

    one_by_one = after(separate, [["block_0/.*", 0.5], ["block_1/.*", 0.75]])
    arguments = dict(stacked=["block/.*"]) if name == "lamb" else {}
    at_once = after(stacked, [["block/.*", [0.5, 0.75]]], **arguments)
    for i in range(2):
        # The sums of a norm may be ordered otherwise: one rounding of values up to 20.
        ours, theirs = at_once["block"]["kernel"][i], one_by_one[f"block_{i}"]["kernel"]
        np.testing.assert_allclose(ours, theirs, rtol=3e-7)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_two_seeds_under_vmap_equal_two_runs(name):
    runs = [random_params(a=(3, 5), b=(5, 7))]
    runs += [jax.tree.map(lambda p: 2 * p + 1, runs[0])]
    settings = config(dict(name=name), clip_norm=1.0, freeze=["b/.*"])
    optimizer = optim.make_optimizer(settings, runs[0], schedule("cosine"))

    def run(params):
        return replay(optimizer, params, [gradient_of(params)] * 2)[-1]

    together = jax.vmap(run)(jax.tree.map(lambda *ps: jnp.stack(ps), *runs))
    for i, alone in enumerate(map(run, runs)):
        for ours, theirs in zip(
            jax.tree.leaves(together), jax.tree.leaves(alone), strict=True
        ):
            # Batched norms may add up in another order: a rounding of values up to 8.
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_sharded_parameters_take_the_same_step_and_slots_lie_like_them(name):
    params = random_params(a=(8, 16), b=(16, 3))
    settings = config(dict(name=name), clip_norm=1.0, freeze=["b/.*"])
    shapes = jax.eval_shape(lambda: params)
    optimizer = optim.make_optimizer(settings, shapes, schedule("cosine"))
    mesh = sharding.make_mesh({"fsdp": -1})
    layout = sharding.param_shardings(mesh, params, [], fsdp_min_elements=1)
    state = optimizer.init(params)
    slots = sharding.state_shardings(mesh, state, params, layout)
    mirrored = {k: v for k, v in named_leaves(slots).items() if "kernel" in k}
    assert len(mirrored) == (0 if name == "sgd" else 2)
    assert not any(slot.is_fully_replicated for slot in mirrored.values())

    update = jax.jit(optimizer.update)
    ours, _ = update(
        *jax.device_put((gradient_of(params), state, params), (layout, slots, layout))
    )
    theirs, _ = update(gradient_of(params), state, params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        # The norm is summed in another order: a rounding of updates up to 1e-2.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value",
    [
        ("weight_decay_on", [".*/kernel", "head"]),
        ("freeze", ["head"]),
        ("learning_rate_multipliers", [[".*", 1.0], ["head", 2.0]]),
    ],
)
def test_a_regex_without_a_parameter_is_refused_by_its_key(key, value):
    params = random_params(a=(3, 5))
    with pytest.raises(
        ValueError, match=rf"config\.{key}: the regex 'head' .*a/kernel"
    ):
        optim.make_optimizer(
            config(dict(name="adamw"), **{key: value}), params, constant
        )


def test_a_stacked_regex_without_a_parameter_is_refused():
    params = random_params(a=(3, 5))
    section = dict(name="lamb", stacked=["head"])
    with pytest.raises(
        ValueError, match=r"config\.optimizer\.stacked: the regex 'head'"
    ):
        optim.make_optimizer(config(section), params, constant)


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    params = random_params(a=(3, 5))
    with pytest.raises(
        ValueError, match="'adam' is unknown.* adamw, bert_adamw, lamb, sgd"
    ):
        optim.make_optimizer(config(dict(name="adam")), params, constant)


def test_a_clip_norm_that_is_not_positive_is_refused():
    settings = config(dict(name="sgd"), clip_norm=0.0)
    with pytest.raises(ValueError, match=r"config\.clip_norm=0\.0 must be positive"):
        optim.make_optimizer(settings, random_params(a=(3, 5)), constant)


@pytest.mark.parametrize("factor", [0.0, -1.0, [1.0, 2.0]])
def test_a_multiplier_that_cannot_be_honoured_is_refused(factor):
    settings = config(dict(name="sgd"), learning_rate_multipliers=[[".*", factor]])
    with pytest.raises(ValueError, match="a/kernel of shape .* must be a positive"):
        optim.make_optimizer(settings, random_params(a=(3, 5)), constant)


@pytest.mark.parametrize(
    "pattern, factor, message",
    [
        (
            "a/(?P<layer>[a-z]+)",
            0.5,
            "the group `layer` of .* is 'kernel' for a/kernel",
        ),
        ("(a/kernel|(?P<layer>[0-9]+))", [0.5, 0.5, 0.5], "must be one number"),
    ],
)
def test_a_layer_decay_that_cannot_be_honored_is_refused(pattern, factor, message):
    settings = config(dict(name="sgd"), learning_rate_multipliers=[[pattern, factor]])
    with pytest.raises(ValueError, match=message):
        optim.make_optimizer(settings, random_params(a=(3, 5)), constant)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="nesterov=True.* set a momentum"):
        optim.OPTIMIZERS["sgd"](nesterov=True)
