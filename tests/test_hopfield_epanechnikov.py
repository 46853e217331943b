"""Log-sum-ReLU memories: exact retrieval, falling energy, minima that nobody stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.models.hopfield.epanechnikov import (
    epanechnikov_energy,
    update_epanechnikov,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_pattern_alone_in_its_ball_is_retrieved_exactly():
    stored = jax.random.normal(jax.random.key(0), (6, 5))
    distances = np.linalg.norm(stored[:, None] - stored[None], axis=-1)
    nearest = float(distances[distances > 0].min())
    # States within r / 3 of a pattern see no other in a ball of r / 2.
    beta = 2 / (nearest / 2) ** 2
    direction = jax.random.normal(jax.random.key(1), (6, 5))
    direction /= jnp.linalg.norm(direction, axis=-1, keepdims=True)
    found = update_epanechnikov(stored, stored + nearest / 3 * direction, beta=beta)
    np.testing.assert_array_equal(found, stored)
    # With a ball of 4 / 3 r another one takes part, and the mean is none of them.
    wide = update_epanechnikov(stored, stored, beta=2 / (nearest * 4 / 3) ** 2)
    assert (np.abs(wide - stored).max(axis=-1) > 0.01).any()


@pytest.mark.parametrize("beta", [0.05, 0.5, 2.0])
def test_no_update_raises_the_energy_and_states_come_to_rest(beta):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(20, 9, 3)))
        xi = jnp.asarray(1.5 * rng.normal(size=(20, 8, 3)))

        def one(xi, _):
            return update_epanechnikov(x, xi, beta=beta), (
                xi,
                epanechnikov_energy(x, xi, beta=beta),
            )

        states, energies = jax.jit(lambda xi: jax.lax.scan(one, xi, length=20)[1])(xi)
        states, energies = np.asarray(states), np.asarray(energies)
    inside = np.isfinite(energies[0])
    assert inside.any()
    falls = energies[:-1, inside] - energies[1:, inside]
    assert (falls >= -1e-12 / beta).all()  # roundings of sums of about 1
    np.testing.assert_array_equal(states[-1], states[-2])
    assert (states[-1] != states[0])[inside].any()
    # Where no pattern acts, a state stays.
    np.testing.assert_array_equal(states[-1][~inside], states[0][~inside])


def test_the_update_is_a_step_down_the_gradient():
    stored = jnp.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
    state, beta = jnp.array([[0.3, 0.4]]), 1.0

    def energy(xi):
        return epanechnikov_energy(stored, xi, beta=beta)[0]

    # dE / dxi = n (xi - mean) / sum of the heights, by hand.
    heights = np.array([1 - 0.25 / 2, 1 - 0.65 / 2])
    gradient = jax.grad(energy)(state)
    mean = update_epanechnikov(stored, state, beta=beta)
    np.testing.assert_allclose(mean, [[0.5, 0.0]])
    expected = 2 * (state - mean) / heights.sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    np.testing.assert_allclose(energy(state), -np.log(heights.sum()), rtol=1e-6)


def test_overlapping_balls_have_a_new_minimum_at_their_centroid_beside_the_patterns():
    """Global emergence: all patterns and new points are minima at once."""
    stored = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    centroid, beta = stored.mean(axis=0, keepdims=True), 2 / 0.9**2  # of a side of 1
    minima = jnp.concatenate([stored, centroid])
    near = minima + 0.01 * jnp.array([[0.6, -0.8]])
    found = update_epanechnikov(stored, near, beta=beta)
    # The middle of three numbers is known to a rounding.
    np.testing.assert_allclose(found, minima, atol=1e-7)
    np.testing.assert_array_equal(found[:3], stored)
    energies = epanechnikov_energy(stored, minima, beta=beta)
    assert (epanechnikov_energy(stored, near, beta=beta) > energies).all()


def test_masked_patterns_do_not_act():
    stored = jnp.array([[[0.0, 0.0], [0.1, 0.0], [0.2, 0.0]]])
    mask = jnp.array([[True, True, False]])
    ours = update_epanechnikov(stored, stored, beta=1.0, stored_mask=mask)
    alone = update_epanechnikov(stored[:, :2], stored, beta=1.0)
    np.testing.assert_array_equal(ours, alone)
    energy = epanechnikov_energy(stored, stored, beta=1.0, stored_mask=mask)
    expected = epanechnikov_energy(stored[:, :2], stored, beta=1.0)
    np.testing.assert_allclose(energy, expected, rtol=1e-6)
    none = jnp.zeros((1, 3), bool)
    kept = update_epanechnikov(stored, stored, beta=1.0, stored_mask=none)
    np.testing.assert_array_equal(kept, stored)


def test_a_beta_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="beta=0.0 must be positive"):
        update_epanechnikov(jnp.ones((1, 2)), jnp.ones((1, 2)), beta=0.0)
