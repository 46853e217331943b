"""The family of energies: maximizers against a plain solver, derivatives, energies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from attn_jax.models.hopfield import (
    Entmax,
    Hopfield,
    Normmax,
    Softmax,
    Subsets,
    energy,
    retrieve,
)

MEMBERS = [
    Softmax(),
    Entmax(1.5),
    Entmax(2.0),
    Entmax(3.0),
    Normmax(2.0),
    Normmax(5.0),
    Subsets(2),
    Subsets(3),
]
each_member = pytest.mark.parametrize("member", MEMBERS, ids=str)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@each_member
@pytest.mark.parametrize("seed", range(3))
def test_weights_maximize_the_definition(member, seed, float64):
    """A general solver, which knows only Omega and the constraints, finds the same."""
    logits = np.random.default_rng(seed).normal(size=6)
    most = 1 / member.k if isinstance(member, Subsets) else 1.0

    def loss(weights):
        weights = jnp.maximum(weights, 0)
        return float(member.regularizer(weights) - weights @ logits)

    found = scipy.optimize.minimize(
        loss,
        np.full(6, 1 / 6),
        method="SLSQP",
        bounds=[(0, most)] * 6,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    ours = np.asarray(jax.jit(member.weights)(jnp.asarray(logits)))
    np.testing.assert_allclose(ours.sum(), 1, rtol=1e-12)
    # The solver's gradients are differences: its weights are good to about 1e-6.
    np.testing.assert_allclose(ours, found.x, atol=1e-5)
    assert loss(ours) <= found.fun + 1e-9


@each_member
def test_derivatives_are_those_of_differences_and_weights_are_that_of_the_maximum(
    member, float64
):
    logits = jax.random.normal(jax.random.key(1), (6,)) / 2
    step = 1e-6
    compute = jax.jit(member.weights)
    units = np.eye(6)
    differences = np.stack(
        [
            np.asarray(compute(logits + step * unit))
            - np.asarray(compute(logits - step * unit))
            for unit in units
        ],
        axis=1,
    ) / (2 * step)
    for derivative in (jax.jacfwd, jax.jacrev):
        ours = jax.jit(derivative(member.weights))(logits)
        np.testing.assert_allclose(ours, differences, atol=1e-8)

    def maximum(logits):
        weights = member.weights(logits)
        return weights @ logits - member.regularizer(weights)

    np.testing.assert_allclose(
        jax.jit(jax.grad(maximum))(logits), compute(logits), atol=1e-12
    )


@each_member
@pytest.mark.parametrize("beta", [0.1, 1.0, 30.0])
def test_no_update_raises_the_energy_and_it_is_never_negative(member, beta, float64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20, 9, 5)))
    xi = jnp.asarray(2 * rng.normal(size=(20, 4, 5)))

    @jax.jit
    def update(xi):
        new = retrieve(x, xi, beta=beta, member=member)
        before, after = (energy(x, y, beta=beta, member=member) for y in (xi, new))
        return new, before, after

    for _ in range(4):
        new, before, after = map(np.asarray, update(xi))
        # Theorem 1 for every member: the energy is strongly convex plus concave.
        assert (before - after >= np.square(new - xi).sum(-1) / 2 - 1e-9).all()
        assert (after >= -1e-9).all()
        xi = new


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_a_sparse_network_retrieves_a_separated_pattern_exactly(alpha):
    x = 3 * jnp.eye(4)
    noisy = x[:1] + 0.1
    # Exactly one pattern remains if the lead beta * (z_1 - z_2) is at least 1 / (alpha - 1).
    found = retrieve(x, noisy, beta=1.0, member=Entmax(alpha))
    np.testing.assert_array_equal(found, x[:1])
    dense = retrieve(x, noisy, beta=1.0)
    assert 0 < np.abs(dense - x[:1]).max() < 0.01


def test_subsets_average_their_patterns():
    x = 10 * jnp.eye(4)
    found = retrieve(x, (x[:1] + x[1:2]) / 2, beta=1.0, member=Subsets(2))
    np.testing.assert_allclose(found, (x[:1] + x[1:2]) / 2)
    with pytest.raises(ValueError, match="k=0"):
        Subsets(0)


@each_member
def test_masked_patterns_have_no_weight(member):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 4)), jnp.float32)
    xi = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    # One pattern is fewer than Subsets associates with.
    mask = jnp.asarray(np.arange(6) < np.array([[4], [1]]))
    ours = retrieve(x, xi, beta=2.0, member=member, stored_mask=mask)
    for i, size in enumerate((4, 1)):
        alone = retrieve(x[i, :size], xi[i], beta=2.0, member=member)
        np.testing.assert_allclose(ours[i], alone, atol=1e-5)
    none = jnp.zeros((2, 6), bool)
    assert (retrieve(x, xi, beta=2.0, member=member, stored_mask=none) == 0).all()


@each_member
def test_a_layer_takes_a_member_and_trains(member):
    module = Hopfield(num_heads=2, max_updates=2, member=member)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    mask = jnp.ones((2, 5), bool).at[1, 2:].set(False)
    variables = jax.jit(module.init)(jax.random.key(1), x)

    def loss(variables):
        return jnp.square(module.apply(variables, x, stored_mask=mask)).sum()

    apply = functools.partial(module.apply, mutable=["intermediates"])
    output, sown = jax.jit(apply)(variables, x, stored_mask=mask)
    [weights] = jax.tree.leaves(sown)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert (weights[1, ..., 2:] == 0).all()
    gradient = jax.jit(jax.grad(loss))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.isfinite(output).all()


@each_member
def test_half_precision_is_finite_where_float32_is(member):
    x = (30 * jax.random.normal(jax.random.key(0), (5, 64))).astype(jnp.bfloat16)
    found = retrieve(x, x, beta=1.0, member=member)
    assert found.dtype == jnp.bfloat16
    assert np.isfinite(found.astype(jnp.float32)).all()


@pytest.mark.parametrize("make", [Entmax, Normmax])
def test_an_alpha_of_one_is_refused(make):
    with pytest.raises(ValueError, match=r"alpha=1.0\) must be above 1 .* Softmax"):
        make(1.0)
