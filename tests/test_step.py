"""One update: exact under accumulation, repeatable, not spoilt by a bad gradient."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_jax import paths, step

ROWS, FEATURES = 8, 3


class Linear(nn.Module):
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return {"y": nn.Dense(2, name="dense")(x)}


class BatchNormed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return {"y": nn.BatchNorm(use_running_average=not train)(x)}


@dataclasses.dataclass(frozen=True)
class TwoTerms:
    """Squared errors of the marked outputs, a pull to 1 of every row's first output.

    The first term counts marks, the second rows: their counts differ, and between
    micro-batches too. `report` adds a term without a coefficient.
    """

    noise: float = 0.0
    pull: float = 0.5
    report: bool = False

    @property
    def coefficients(self):
        return {"error": 1.0, "pull": self.pull}

    def prepare(self, batch, key, train):
        noise = self.noise * jax.random.normal(key, batch["x"].shape) if train else 0.0
        return {**batch, "x": batch["x"] + noise}

    def inputs(self, batch):
        return {"x": batch["x"]}

    def loss(self, outputs, batch):
        valid = batch["valid"].astype(jnp.float32)
        marks = batch["marks"] * valid[:, None]
        terms = {
            "error": (
                (marks * (outputs["y"] - batch["target"]) ** 2).sum(),
                marks.sum(),
            ),
            "pull": ((valid * (outputs["y"][:, 0] - 1) ** 2).sum(), valid.sum()),
        }
        if self.report:
            terms["magnitude"] = ((valid * outputs["y"][:, 1] ** 4).sum(), valid.sum())
        return terms


def a_batch(seed=0, **changes):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(ROWS, FEATURES)).astype(np.float32),
        "target": rng.normal(size=(ROWS, 2)).astype(np.float32),
        # Micro-batch 0 of 2 holds the even rows: 5 marks to 2, 1 valid row to 3.
        "marks": np.array(
            [[1, 1], [0, 1], [1, 0], [0, 0], [1, 1], [1, 0], [0, 0], [0, 0]], np.float32
        ),
        "valid": np.array([1, 1, 1, 1, 1, 1, 0, 1], bool),
        **changes,
    }


def a_state(optimizer, *, model=None, seed=0, averaged=None):
    key = jax.random.key(seed)
    init = functools.partial(step.init_params, model or Linear(), TwoTerms())
    start = functools.partial(step.init_state, optimizer=optimizer, averaged=averaged)
    make = jax.jit(lambda batch, key: start(init(batch, key), key=key))
    return make(a_batch(), key)


def updater(*, model=None, task=None, optimizer=None, **options):
    return functools.partial(
        step.train_step,
        model=model or Linear(),
        task=task or TwoTerms(),
        optimizer=optimizer or optax.sgd(0.5),
        **options,
    )


def run(state, batches, **options):
    update = jax.jit(updater(**options))
    for batch in batches:
        state, sums = update(state, batch)
    return state, {k: float(total / count) for k, (total, count) in sums.items()}


def arrays(tree):
    """{name: array}; a random key is shown by its numbers."""

    def array(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return {name: array(leaf) for name, leaf in paths.named_leaves(tree).items()}


def check_equal(ours, theirs, atol=0.0):
    ours, theirs = arrays(ours), arrays(theirs)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=atol, err_msg=name)


# --- the loss -------------------------------------------------------------------------


def test_the_update_is_the_gradient_of_the_sum_of_terms_each_by_its_count():
    """Against the gradient written out in NumPy."""
    batch, state = a_batch(), a_state(optax.sgd(0.5))
    after, means = run(state, [batch])
    kernel, bias = (np.asarray(state.params["dense"][n]) for n in ("kernel", "bias"))
    y = batch["x"] @ kernel + bias
    valid = batch["valid"].astype(np.float32)
    marks = batch["marks"] * valid[:, None]
    first = np.array([1.0, 0.0])
    error = (marks * (y - batch["target"]) ** 2).sum() / marks.sum()
    pull = (valid * (y[:, 0] - 1) ** 2).sum() / valid.sum()
    slope = 2 * marks * (y - batch["target"]) / marks.sum()
    slope += 0.5 * 2 * valid[:, None] * (y[:, :1] - 1) * first / valid.sum()
    expected = {
        "bias": bias - 0.5 * slope.sum(axis=0),
        "kernel": kernel - 0.5 * batch["x"].T @ slope,
    }
    # Values near 1, sums of 8 products: some float32 roundings of 1e-7.
    check_equal(after.params["dense"], expected, atol=1e-6)
    np.testing.assert_allclose(means["loss"], error + 0.5 * pull, rtol=1e-6)
    np.testing.assert_allclose(
        [means["error"], means["pull"]], [error, pull], rtol=1e-6
    )
    norm = np.sqrt((slope.sum(axis=0) ** 2).sum() + ((batch["x"].T @ slope) ** 2).sum())
    np.testing.assert_allclose(means["gradient_norm"], norm, rtol=1e-6)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_with_unequal_counts_are_one_batch(micro_batches):
    batches = [a_batch(seed) for seed in range(3)]
    task = TwoTerms(noise=0.1)  # drawn for the global batch, before it is split
    state = a_state(optax.sgd(0.5))
    whole, whole_means = run(state, batches, task=task)
    parts, means = run(state, batches, task=task, micro_batches=micro_batches)
    # The same sums in another order: roundings of values near 1, over three steps.
    check_equal(parts, whole, atol=1e-6)
    for name in whole_means:
        np.testing.assert_allclose(means[name], whole_means[name], rtol=1e-6)


def test_a_mean_of_micro_batch_means_would_be_another_update():
    """The tolerance above can tell the two apart: by a factor of ten thousand."""
    batch, state = a_batch(), a_state(optax.sgd(0.5))
    whole, _ = run(state, [batch])
    halves = [
        run(state, [{name: value[i::2] for name, value in batch.items()}])[0].params
        for i in range(2)
    ]
    mean = jax.tree.map(lambda a, b: (np.asarray(a) + np.asarray(b)) / 2, *halves)
    moved = np.asarray(whole.params["dense"]["kernel"])
    assert np.abs(mean["dense"]["kernel"] - moved).max() > 1e-2


def test_a_term_without_a_coefficient_is_reported_and_moves_nothing():
    state = a_state(optax.sgd(0.5))
    plain, means = run(state, [a_batch()])
    reporting, reported = run(state, [a_batch()], task=TwoTerms(report=True))
    check_equal(reporting, plain)
    assert reported.keys() - means.keys() == {"magnitude"}
    assert reported["loss"] == means["loss"] and reported["magnitude"] > 0


def test_padded_rows_change_nothing():
    batch, state = a_batch(), a_state(optax.sgd(0.5))
    pad = ~batch["valid"]
    other = {
        name: np.where(pad.reshape(-1, *[1] * (value.ndim - 1)), value + 7, value)
        for name, value in batch.items()
        if name != "valid"
    }
    ours, means = run(state, [{**other, "valid": batch["valid"]}])
    theirs, expected = run(state, [batch])
    check_equal(ours, theirs)
    assert means == expected
    without = {name: value[~pad] for name, value in batch.items()}
    # One row less in a matrix product: it may sum in another order.
    check_equal(run(state, [without])[0], theirs, atol=1e-6)


def test_a_batch_with_nothing_to_count_moves_nothing():
    nothing = a_batch(valid=np.zeros(ROWS, bool))
    state = a_state(optax.sgd(0.5))
    after, means = run(state, [nothing], micro_batches=2)
    check_equal(after.params, state.params)
    assert (means["loss"], means["skipped"]) == (0.0, 0.0)


def test_an_evaluation_sums_the_terms_of_its_rows():
    state, task = a_state(optax.sgd(0.5)), TwoTerms(noise=1.0, report=True)
    evaluate = jax.jit(functools.partial(step.eval_step, model=Linear(), task=task))
    sums, predictions = evaluate(state.params, a_batch(), jax.random.key(1))
    assert predictions is None
    assert float(sums["error"][1]) == 7 and float(sums["magnitude"][1]) == 7
    # Nothing is random in it: the loss of the quiet training step before its update.
    _, means = run(state, [a_batch()])
    np.testing.assert_allclose(
        float(sums["error"][0] / sums["error"][1]), means["error"], rtol=1e-6
    )


def test_predictions_are_what_the_task_makes_of_the_outputs():
    class Predicting(TwoTerms):
        def predictions(self, outputs, batch):
            return {"first": outputs["y"][:, 0]}

    state = a_state(optax.sgd(0.5))
    evaluate = functools.partial(step.eval_step, model=Linear(), task=Predicting())
    _, found = jax.jit(evaluate)(state.params, a_batch(), jax.random.key(1))
    dense = state.params["dense"]
    y = a_batch()["x"] @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    np.testing.assert_allclose(found["first"], y[:, 0], rtol=1e-6, atol=1e-6)


# --- randomness -----------------------------------------------------------------------


def test_two_keys_under_vmap_are_two_runs():
    model, task = Linear(dropout=0.5), TwoTerms(noise=0.1)
    optimizer = optax.adam(0.1)
    averaged = {"dense/kernel"}
    states = [a_state(optimizer, seed=seed, averaged=averaged) for seed in (0, 1)]
    options = dict(
        model=model,
        task=task,
        optimizer=optimizer,
        micro_batches=2,
        ema_decay=0.9,
    )
    batches = [a_batch(0), a_batch(1)]
    both = jax.jit(jax.vmap(updater(**options), in_axes=(0, None)))
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    for batch in batches:
        together, _ = both(together, batch)
    alone = [run(state, batches, **options)[0] for state in states]
    for i, one in enumerate(alone):
        # A batched product may sum its 3 terms in another order: a rounding of 1e-7,
        # which Adam's division by the root of its square hands on.
        check_equal(jax.tree.map(lambda leaf, i=i: leaf[i], together), one, atol=1e-6)
    kernels = [one.params["dense"]["kernel"] for one in alone]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-2


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Its gradient is the mean over the rows of what dropout left of each input."""

    coefficients = {"kept": 1.0}

    def inputs(self, batch):
        return {"x": batch["x"]}

    def loss(self, outputs, batch):
        y = outputs["y"][:, 0]
        return {"kept": (y.sum(), jnp.full((), len(y), jnp.float32))}


def kept(micro_batches, steps=1, seed=0):
    """The gradient of every step: in how many of two rows a feature was kept."""
    model, optimizer = Linear(dropout=0.5), optax.sgd(1.0)
    batch = {"x": np.ones((2, 64), np.float32)}
    params = {"dense": {"kernel": jnp.zeros((64, 2)), "bias": jnp.zeros(2)}}
    state = step.init_state(params, optimizer, jax.random.key(seed), None)
    update = jax.jit(
        updater(
            model=model,
            task=Dropped(),
            optimizer=optimizer,
            micro_batches=micro_batches,
        )
    )
    found = [np.zeros(64)]
    for _ in range(steps):
        state, _ = update(state, batch)
        found.append(-np.asarray(state.params["dense"]["kernel"][:, 0]))
    return np.diff(found, axis=0)


def test_each_micro_batch_has_a_dropout_of_its_own():
    # One row each. The same draw for both would leave 0 or 2, never 1.
    (gradient,) = kept(micro_batches=2)
    assert set(gradient) == {0.0, 1.0, 2.0}


def test_each_step_and_seed_has_a_dropout_of_its_own_and_the_same_again():
    first, second = kept(micro_batches=1, steps=2)
    assert (first != second).any()
    assert (kept(micro_batches=1, seed=1) != first).any()
    np.testing.assert_array_equal(kept(micro_batches=1, steps=2), [first, second])


def test_the_key_of_a_state_never_changes():
    state = a_state(optax.sgd(0.5))
    after, _ = run(state, [a_batch()] * 2)
    check_equal({"key": after.key}, {"key": state.key})
    assert int(after.step) == 2


# --- gradients that are not finite ----------------------------------------------------


def test_a_gradient_that_is_not_finite_changes_the_counters_alone():
    averaged = {"dense/kernel"}
    optimizer = optax.adam(0.1)
    options = dict(optimizer=optimizer, ema_decay=0.9)
    good = a_batch()
    x = good["x"].copy()
    x[1, 1] = np.inf
    bad = good | {"x": x}
    before, _ = run(a_state(optimizer, averaged=averaged), [good], **options)
    for micro_batches in (1, 2):
        after, means = run(before, [bad, bad], micro_batches=micro_batches, **options)
        for part in ("params", "opt_state", "average", "key"):
            check_equal({"": getattr(after, part)}, {"": getattr(before, part)})
        assert int(after.step) == 3
        assert (int(after.skipped), int(after.skipped_in_a_row)) == (2, 2)
        assert (means["skipped"], means["skipped_in_a_row"]) == (2, 2)

    recovered, means = run(after, [good], **options)
    assert (int(recovered.skipped), int(recovered.skipped_in_a_row)) == (2, 0)
    assert (means["skipped"], means["skipped_in_a_row"]) == (2, 0)
    kernels = recovered.params["dense"]["kernel"], before.params["dense"]["kernel"]
    assert (kernels[0] != kernels[1]).any()
    assert all(np.isfinite(array).all() for array in arrays(recovered).values())


@pytest.mark.parametrize(
    ("optimizer", "scale", "overflows"),
    [
        # An infinite square: the parameters stay finite, but never move again.
        (optax.chain(optax.scale(1e25), optax.adam(0.1)), 1, "nu"),
        (optax.sgd(1e38), 1e3, "kernel"),
    ],
)
def test_an_update_that_makes_the_state_non_finite_changes_the_counters_alone(
    optimizer, scale, overflows
):
    batch = a_batch()
    huge = batch | {"target": scale * np.sign(batch["target"])}
    state = a_state(optimizer, averaged={"dense/kernel"})
    dense = state.params["dense"]

    def error(params):  # the gradient is finite, what becomes of it is not
        y = batch["x"] @ params["kernel"] + params["bias"][None]
        return ((y - huge["target"]) ** 2).mean()

    assert np.isfinite(jax.grad(error)(dense)["kernel"]).all()
    gradient = {"dense": jax.grad(error)(dense)}
    updates, moments = optimizer.update(gradient, state.opt_state, state.params)
    leaves = arrays((optax.apply_updates(state.params, updates), moments))
    bad = [name for name, leaf in leaves.items() if not np.isfinite(leaf).all()]
    assert bad and overflows in " ".join(bad)

    after, means = run(state, [huge], optimizer=optimizer, ema_decay=0.9)
    assert means["skipped"] == 1
    for part in ("params", "opt_state", "average"):
        check_equal({"": getattr(after, part)}, {"": getattr(state, part)})


# --- frozen parameters ----------------------------------------------------------------


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return {"y": nn.Dense(2, name="head")(nn.Dense(64, name="body")(x))}


def products(trained):
    """How many matrix products a training step of two layers has."""
    state = a_state(optax.sgd(0.5), model=TwoLayers())
    update = updater(model=TwoLayers(), trained=trained)
    # What nothing uses is no part of the compiled program.
    text = jax.jit(update).lower(state, a_batch()).compile().as_text()
    return text.count(" dot(")


class ManyLayers(nn.Module):
    count: int

    @nn.compact
    def __call__(self, x, *, train=False):
        return {"y": sum(nn.Dense(2)(x) for _ in range(self.count))}


def count_instructions(count):
    model, optimizer = ManyLayers(count), optax.adam(0.1)
    update = jax.jit(updater(model=model, optimizer=optimizer))
    state = a_state(optimizer, model=model)
    return update.lower(state, a_batch()).compile().as_text().count(" = ")


def test_the_compiled_step_grows_with_the_leaves_and_not_with_their_square():
    # Each leaf adds the same number of instructions: 4 times the layers, 4 times the growth. It was
    # 13.9 when the number grew with the square.
    few, some, many = map(count_instructions, (2, 10, 42))
    assert (many - some) / (some - few) == pytest.approx(4, rel=0.1)


def test_no_gradient_is_computed_for_frozen_parameters():
    # Forward 2; backward: both kernels, and through the head to the body.
    assert products(None) == 5
    assert products({"head/kernel", "head/bias"}) == 3


def test_frozen_parameters_do_not_move_and_have_no_share_in_the_norm():
    batch, trained = a_batch(), {"head/kernel", "head/bias"}
    state = a_state(optax.sgd(0.5), model=TwoLayers())
    all_, means = run(state, [batch], model=TwoLayers())
    after, frozen_means = run(state, [batch], model=TwoLayers(), trained=trained)
    check_equal(after.params["body"], state.params["body"])
    check_equal(after.params["head"], all_.params["head"])
    assert frozen_means["gradient_norm"] < means["gradient_norm"]
    expected = jax.tree.map(
        lambda new, old: (np.asarray(old) - np.asarray(new)) / 0.5,
        after.params["head"],
        state.params["head"],
    )
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(expected)))
    # The gradient read off the update: a rounding of parameters near 1.
    np.testing.assert_allclose(frozen_means["gradient_norm"], norm, rtol=1e-5)


# --- the average ----------------------------------------------------------------------


def test_the_average_follows_its_formula_and_holds_what_was_picked():
    averaged = {"dense/kernel"}
    optimizer = optax.sgd(0.5)
    state = a_state(optimizer, averaged=averaged)
    assert list(state.average) == ["dense/kernel"]
    expected = np.asarray(state.params["dense"]["kernel"], np.float64)
    update = jax.jit(updater(optimizer=optimizer, ema_decay=0.25))
    decays = []
    for t in range(4):
        state, _ = update(state, a_batch(t))
        decays.append(min(0.25, (1 + t) / (10 + t)))
        kernel = np.asarray(state.params["dense"]["kernel"], np.float64)
        expected = decays[-1] * expected + (1 - decays[-1]) * kernel
    assert decays == [0.1, 2 / 11, 0.25, 0.25]  # both sides of the minimum
    # Float32 against float64, values near 1, four steps.
    np.testing.assert_allclose(state.average["dense/kernel"], expected, atol=1e-6)


def test_without_a_decay_there_is_no_average():
    state = a_state(optax.sgd(0.5))
    assert state.average is None
    assert run(state, [a_batch()])[0].average is None


# --- what is refused ------------------------------------------------------------------


def test_a_module_with_batch_statistics_is_refused_and_told_of_group_norm():
    with pytest.raises(
        ValueError, match="BatchNormed creates the collection 'batch_stats'.*GroupNorm"
    ):
        jax.eval_shape(
            functools.partial(step.init_params, BatchNormed(), TwoTerms()),
            a_batch(),
            jax.random.key(0),
        )
