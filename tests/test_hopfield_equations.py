"""Retrieval and energy: the theorems of the paper, masks, and wrong arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_hopfield import golden

from attn_jax.models.hopfield import energy, retrieve

pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.partial(jax.jit, static_argnames="steps")
def traced(x, xi, beta, steps):
    """States and energies before each of `steps` updates, and the state after them."""

    def one(xi, _):
        return retrieve(x, xi, beta=beta), (xi, energy(x, xi, beta=beta))

    states, energies = jax.lax.scan(one, xi, length=steps)[1]
    return states, energies, retrieve(x, xi, beta=beta, steps=steps - 1)


@pytest.mark.parametrize("number", range(12))
def test_states_and_energies_are_those_of_the_equations(number):
    case = golden("theory_general")
    x, beta, states, energies = (
        case[f"{number}/{key}"] for key in ("X", "beta", "states", "energies")
    )
    with jax.enable_x64(True):
        ours = traced(jnp.asarray(x), jnp.asarray(states[:1]), jnp.asarray(beta), 6)
        ours, our_energies, last = (np.asarray(array) for array in ours)
    # The golden set's own, in float64: 1e-10 relative, of small values 1e-12.
    close = dict(rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ours[:, 0], states, **close)
    np.testing.assert_allclose(last[0], states[5], **close)
    np.testing.assert_allclose(our_energies[:, 0], energies, **close)


@pytest.mark.parametrize("number", range(6))
def test_a_well_separated_pattern_is_retrieved(number):
    case = {
        key.split("/", 1)[1]: value
        for key, value in golden("theory_separated").items()
        if key.startswith(f"{number}/")
    }
    x, beta = case["X"], float(case["beta"])
    close = dict(rtol=1e-10, atol=1e-10)
    with jax.enable_x64(True):
        from_x = functools.partial(retrieve, jnp.asarray(x), beta=beta)
        xi = jnp.asarray(case["xi"][None])
        once = np.asarray(from_x(xi))[0]
        settled = np.asarray(from_x(xi, steps=None, eps=1e-14))[0]
    np.testing.assert_allclose(once, case["update"], **close)
    np.testing.assert_allclose(settled, case["fixed_point"], **close)
    pattern = x[case["index"]]
    assert np.linalg.norm(once - pattern) <= case["T9_bound"]  # theorem 5
    # Theorem 4; the fixed point itself is known to about 1e-15.
    distance = np.linalg.norm(once - case["fixed_point"])
    assert distance <= case["T8_rhs"] + 1e-13


@pytest.mark.parametrize("beta", [0.01, 1.0, 100.0])
def test_energy_falls_by_at_least_half_the_squared_step_and_states_stay_bounded(beta):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.array(rng.normal(size=(50, 9, 5)))
        xi = jnp.array(3 * rng.normal(size=(50, 4, 5)))
        states, energies, _ = traced(x, xi, jnp.array(beta), 6)
        x, states, energies = (np.asarray(array) for array in (x, states, energies))
    largest = np.linalg.norm(x, axis=-1).max(axis=-1)
    rounding = 1e-9 * (1 + largest.max() ** 2)  # of sums of that size, divided by beta
    fall = energies[:-1] - energies[1:]
    step = ((states[1:] - states[:-1]) ** 2).sum(axis=-1)
    assert (fall >= step / 2 - rounding).all()  # theorem 1, made quantitative
    assert (energies >= -rounding).all()  # lemma A1
    bound = np.minimum(2 * largest**2, np.log(9) / beta + largest**2 / 2)
    assert (
        energies[1:] <= bound[:, None] + rounding
    ).all()  # the same, after an update
    norms = np.linalg.norm(states[1:], axis=-1)
    assert (norms <= largest[:, None] + rounding).all()


def test_masked_patterns_change_neither_retrieval_nor_energy():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 4)), jnp.float32)
    xi = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    mask = jnp.asarray(np.arange(6) < np.array([[4], [2]]))
    for steps in (1, 3):
        ours = retrieve(x, xi, beta=2.0, steps=steps, stored_mask=mask)
        for i, size in enumerate((4, 2)):
            alone = retrieve(x[i, :size], xi[i], beta=2.0, steps=steps)
            # A longer sum of float32 with exact zeros: a rounding or two.
            np.testing.assert_allclose(ours[i], alone, atol=1e-6)
    ours = energy(x, xi, beta=2.0, stored_mask=mask)
    for i, size in enumerate((4, 2)):
        alone = energy(x[i, :size], xi[i], beta=2.0)
        np.testing.assert_allclose(ours[i], alone, rtol=1e-6)


def test_where_no_pattern_takes_part_zeros_are_retrieved_and_energy_is_infinite():
    x, none = jnp.ones((1, 3, 2)), jnp.zeros((1, 3), bool)
    assert (retrieve(x, x, beta=1.0, stored_mask=none) == 0).all()
    assert (energy(x, x, beta=1.0, stored_mask=none) == np.inf).all()


def test_no_state_moves_differently_in_company_than_alone():
    rng = np.random.default_rng(0)
    x, xi = rng.normal(size=(8, 5)), 2 * rng.normal(size=(6, 5))
    settle = functools.partial(retrieve, beta=1.5, steps=None, eps=0.05)
    with jax.enable_x64(True):
        x, xi = jnp.asarray(x), jnp.asarray(xi)
        together = settle(x, xi)
        alone = [settle(x, xi[i : i + 1])[0] for i in range(6)]
        onward = settle(x, xi, steps=100, eps=None)
    # Another shape may sum in another order; where a state
    # stopped is off by up to 0.05.
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-13)
    assert np.abs(together - onward).max() > 1e-3


def test_retrieve_with_a_fixed_number_of_steps_has_a_gradient():
    x = jax.random.normal(jax.random.key(0), (5, 4))

    def total(xi, eps):
        return retrieve(x, xi, beta=0.7, steps=3, eps=eps).sum()

    free = jax.grad(total)(x[:2], None)
    assert np.abs(free).max() > 1e-3
    # No step is as small as 1e-30, so nothing stops: the same operations but
    # for selects.
    np.testing.assert_allclose(jax.grad(total)(x[:2], 1e-30), free, atol=1e-6)


@pytest.mark.parametrize("arguments", [dict(steps=None), dict(steps=-1)])
def test_retrieve_refuses_what_never_ends_or_never_starts(arguments):
    with pytest.raises(ValueError, match="steps"):
        retrieve(jnp.ones((1, 2)), jnp.ones((1, 2)), beta=1.0, **arguments)


# Without the shape checks of the test run, as users call them.
@pytest.mark.parametrize("function", [retrieve.__wrapped__, energy.__wrapped__])
@pytest.mark.parametrize(
    ("stored", "state", "options", "message"),
    [
        ((5, 3), (3,), {}, r"state has the shape \(3,\); .*Pass state\[None\]"),
        ((3,), (2, 3), {}, r"stored has the shape \(3,\); .*Pass stored\[None\]"),
        (
            (5, 3),
            (2, 4),
            {},
            r"stored \(5, 3\) and state \(2, 4\) must agree in the last",
        ),
        ((2, 5, 3), (2, 3), {}, "must agree .* in all leading dimensions"),
        ((5, 3), (2, 3), dict(beta=0.0), "beta=0.0 must be positive"),
        ((5, 3), (2, 3), dict(beta=jnp.array(-1.0)), "beta=-1.0 must be positive"),
        (
            (5, 3),
            (2, 3),
            dict(beta=jnp.ones(2)),
            r"beta of shape \(2,\) must be a single",
        ),
        ((5, 3), (2, 3), dict(stored_mask=jnp.ones(4, bool)), r"stored_mask .* \(5,\)"),
    ],
)
def test_patterns_that_do_not_fit_are_named(function, stored, state, options, message):
    with pytest.raises(ValueError, match=message) as error:
        function(jnp.ones(stored), jnp.ones(state), **(dict(beta=1.0) | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("function", [retrieve, energy])
def test_a_pattern_or_state_that_is_no_number_is_named(function):
    x = jnp.ones((5, 3))
    with pytest.raises(ValueError, match=r"stored\[2, 1\] is nan; every pattern"):
        function(x.at[2, 1].set(jnp.nan), x[:1], beta=1.0)
    with pytest.raises(ValueError, match=r"state\[0, 2\] is -inf; .* finite"):
        function(x, x[:1].at[0, 2].set(-jnp.inf), beta=1.0)
    with pytest.raises(ValueError, match=r"stored\[2, 1\] is nan"):  # known inside jit
        bad = x.at[2, 1].set(jnp.nan)
        jax.jit(lambda xi: function(bad, xi, beta=1.0))(x[:1])
    jax.jit(lambda xi: function(x.astype("bfloat16"), xi, beta=1.0))(x[:1])
