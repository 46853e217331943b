"""The theorems' bounds and the binary networks, against the golden tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_hopfield import golden

from attn_jax.models.hopfield import binary, dense, theory

pytestmark = pytest.mark.usefixtures("quick_compilation")

# The golden set's own, in float64: 1e-10 relative, of small values 1e-12.
CLOSE = dict(rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def table(name, number):
    prefix = f"{number}/"
    return {
        key.removeprefix(prefix): value
        for key, value in golden(name).items()
        if key.startswith(prefix)
    }


@jax.jit
def describe(x, states, beta):
    """Every function of the theory at several states; compiled as one program."""

    def at_each(function):
        return jax.vmap(lambda xi: function(x, xi, beta))(states)

    jacobian = at_each(theory.update_jacobian)
    return {
        "separation": theory.separation(x),
        "M": theory.largest_norm(x),
        "m_max": theory.largest_radius(x),
        "well": theory.well_separated(x, beta),
        "jacobian": jacobian,
        "norms": jnp.linalg.norm(jacobian, ord=2, axis=(1, 2)),
        "bounds": at_each(theory.bound_jacobian),
        "energies": at_each(theory.energy_bounds),
        "update_error": at_each(theory.bound_update_error),
        "updated": jax.nn.softmax(beta * states @ x.T) @ x,
        "nearest": x[jnp.argmax(states @ x.T, axis=1)],
    }


@pytest.mark.parametrize("number", range(12))
def test_bounds_are_those_of_the_table(number):
    case = table("theory_general", number)
    found = describe(*(jnp.asarray(case[key]) for key in ("X", "states", "beta")))
    well, bounds, (lower, upper) = (
        found[key] for key in ("well", "bounds", "energies")
    )
    for ours, key in (
        (found["separation"], "separation"),
        (found["M"], "M"),
        (found["m_max"], "m_max"),
        (well.threshold, "T7_threshold"),
        (well.all_threshold, "T13_threshold"),
        (found["jacobian"][0], "jacobian0"),
        (found["norms"], "jac_spectral"),
        (bounds.spectral, "T5_bound_spectral"),
        (bounds.norm, "T5_bound_frobenius_free"),
        (bounds.radius[0], "T5_bound_radius"),
        (lower, "T3_energy_lower"),
        (upper[0], "T3_energy_upper_in_hull"),
        (found["update_error"][0], "T10_bound"),
    ):
        np.testing.assert_allclose(ours, case[key], **CLOSE, err_msg=key)
    assert well.disjoint == case["T13_disjoint"]
    for bound in bounds:
        assert (found["norms"] <= bound * (1 + 1e-12)).all()
    error = jnp.linalg.norm(found["nearest"] - found["updated"], axis=1)
    assert (error <= found["update_error"] + 1e-12).all()


@pytest.mark.parametrize("number", range(6))
def test_bounds_of_a_well_separated_pattern_are_those_of_the_table(number):
    case = table("theory_separated", number)
    x, beta, index = jnp.asarray(case["X"]), float(case["beta"]), int(case["index"])
    pattern = case["X"][index]
    distance = max(np.linalg.norm(case[key] - pattern) for key in ("xi", "fixed_point"))
    found = theory.well_separated(x, beta)
    np.testing.assert_allclose(found.radius, case["T7_radius"], **CLOSE)
    np.testing.assert_allclose(found.threshold, case["T7_threshold"], **CLOSE)
    factor = theory.bound_contraction(x, index, distance, beta)
    np.testing.assert_allclose(factor, case["T8_jac_bound"], **CLOSE)
    error = theory.bound_retrieval_error(x, index, distance, beta)
    np.testing.assert_allclose(error, case["T9_bound"], **CLOSE)
    error = theory.bound_fixed_point_error(x, index, beta)
    np.testing.assert_allclose(error, case["T9_fixed_point_bound"], **CLOSE)


def test_capacity_is_that_of_the_table():
    for beta, scale, dimension, failure, *_, base, least, patterns in golden(
        "theory_separated"
    )["T12/table"]:
        found = theory.random_capacity(int(dimension), failure, beta=beta, scale=scale)
        np.testing.assert_allclose(found, (base, least, patterns), rtol=1e-10)
    with pytest.raises(ValueError, match="dimension=1, .* must be 2 or more"):
        theory.random_capacity(1, 0.1)


# --- binary networks ------------------------------------------------------------------


def test_updates_and_energies_of_the_classical_network_are_those_of_the_table():
    case = golden("binary_hopfield")
    patterns, probes = jnp.asarray(case["patterns"]), jnp.asarray(case["probes"])
    for zero, trace in (
        (True, "sync_trace_zero_diag"),
        (False, "sync_trace_full_diag"),
    ):
        weights = binary.hebbian_weights(patterns, normalize=None, zero_diagonal=zero)
        key = "weights_sum_zero_diag" if zero else "weights_sum_full"
        np.testing.assert_array_equal(weights, case[key])
        state = probes
        for expected in case[trace][1:]:
            state = binary.update_synchronously(weights, state)
            np.testing.assert_array_equal(state, expected)
    weights = binary.hebbian_weights(patterns, normalize=None)
    energies = binary.binary_energy(weights, jnp.asarray(case["sync_trace_zero_diag"]))
    np.testing.assert_array_equal(energies, case["sync_energies_zero_diag"])
    state, energies = probes, [binary.binary_energy(weights, probes)]
    for order in jnp.asarray(case["async_orders"]):
        state = binary.update_asynchronously(weights, state, order)
        energies.append(binary.binary_energy(weights, state))
    np.testing.assert_array_equal(state, case["async_final"])
    np.testing.assert_array_equal(np.stack(energies, 1), case["async_energies"])
    # Neither normalization changes a sign.
    for normalize in ("bits", "patterns"):
        other = binary.hebbian_weights(patterns, normalize=normalize)
        np.testing.assert_array_equal(
            binary.update_synchronously(other, probes),
            binary.update_synchronously(weights, probes),
        )


def test_synchronous_updates_end_in_fixed_points_and_cycles_of_two():
    case = golden("binary_two_cycles")
    weights = binary.hebbian_weights(jnp.asarray(case["patterns"]), normalize=None)
    state, trace = jnp.asarray(case["starts"]), []
    for _ in range(int(case["steps"])):
        trace.append(np.asarray(state))
        state = binary.update_synchronously(weights, state)
    np.testing.assert_array_equal(state, case["final"])
    np.testing.assert_array_equal(trace[-1], case["previous"])
    np.testing.assert_array_equal(trace[: len(case["trace"])], case["trace"])


def test_a_bias_moves_bits_and_belongs_to_the_energy():
    weights = jnp.zeros((2, 2))
    bias = jnp.array([1.0, -1.0])
    state = jnp.array([1, 1])
    moved = binary.update_synchronously(weights, state, bias)
    np.testing.assert_array_equal(moved, [-1, 1])
    visited = binary.update_asynchronously(weights, state, jnp.arange(2), bias)
    np.testing.assert_array_equal(visited, moved)
    assert binary.binary_energy(weights, moved, bias) == -2
    # Without a field a bit keeps its value.
    np.testing.assert_array_equal(binary.update_synchronously(weights, state), state)


INTERACTIONS = {
    "poly2": dense.Polynomial(2),
    "poly3": dense.Polynomial(3),
    "rect3": dense.Polynomial(3, rectified=True),
    "poly4": dense.Polynomial(4),
    "exp": dense.Exponential(),
}


@pytest.mark.parametrize("name", INTERACTIONS)
def test_sweeps_and_energies_of_dense_memories_are_those_of_the_table(name):
    case = golden("dense_associative_memory")
    width = int(case["d"])
    for size in case["P_list"]:
        part = {
            key.removeprefix(f"P{size}/"): value
            for key, value in case.items()
            if key.startswith(f"P{size}/")
        }
        bits = np.unpackbits(part["patterns"], axis=1)[:, :width]
        patterns = jnp.asarray(2 * bits.astype(np.int8) - 1)
        interaction = INTERACTIONS[name]
        state = jnp.asarray(part["probes"])
        energies = [dense.dense_energy(patterns, state, interaction)]
        sweep = jax.jit(functools.partial(dense.update_dense, interaction=interaction))
        for number, order in enumerate(part["orders"]):
            state = sweep(patterns, state, jnp.asarray(order))
            expected = part[f"{name}/after_sweeps"][:, number]
            np.testing.assert_array_equal(state, expected)
            energies.append(dense.dense_energy(patterns, state, interaction))
        np.testing.assert_allclose(
            np.stack(energies, 1), part[f"{name}/energies"], rtol=1e-10
        )


def test_an_exponential_interaction_of_many_bits_stays_finite_in_float32():
    with jax.enable_x64(False):
        patterns = jnp.sign(jax.random.normal(jax.random.key(0), (5, 500)))
        probe = patterns[:1].at[:, :50].multiply(-1)
        found = dense.update_dense(
            patterns, probe, jnp.arange(500), dense.Exponential()
        )
        np.testing.assert_array_equal(found, patterns[:1])
        energy = dense.dense_energy(patterns, found, dense.Exponential())
        np.testing.assert_allclose(energy, [-500])


def test_a_linear_interaction_is_refused():
    with pytest.raises(ValueError, match=r"degree=1\) must be 2 or more"):
        dense.Polynomial(1)
