"""The theorems of the paper as properties that hypothesis tries to break.

Numbers are those of the list in the project's reference: T1 to T10 and T13. Patterns are multiples of
1/8, which float64, float32 and bfloat16 represent alike. A claim about exact numbers then holds
for the computed ones up to `Rounding`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attn_jax.models.hopfield import (
    Entmax,
    Normmax,
    Softmax,
    Subsets,
    energy,
    retrieve,
    theory,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Not faster on a slower machine, the same in every run, and no folder of found examples.
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
each_dtype = pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
# Without bfloat16: a ball of T7 is smaller than its rounding, 1/256 of a pattern.
each_wide_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])
SHAPES = st.sampled_from([(2, 1), (7, 5)])  # [K, D]; each is compiled once for a dtype


def eighths(shape, most=32):
    """Arrays of n/8 with |n| up to `most`, every entry drawn by itself."""
    integers = hnp.arrays(
        np.int64, shape, elements=st.integers(-most, most), fill=st.nothing()
    )
    return integers.map(lambda n: n / 8)


def length(vectors):
    return np.linalg.norm(vectors, axis=-1)


# beta, whose logits a float32 knows to about 1e-3.
BETAS = st.floats(-2, 1).map(lambda exponent: 10**exponent)
# {"x": patterns [K, D], "xi": states [3, D]}
PROBLEMS = SHAPES.flatmap(
    lambda shape: st.fixed_dictionaries(
        {"x": eighths(shape), "xi": eighths((3, shape[1]), 64)}
    )
)


class Rounding(NamedTuple):
    """How far computed numbers may be from exact ones.

    Attributes:
        state: of an updated state, a Euclidean distance.
        energy: of an energy at a given state.
    """

    state: float
    energy: float

    @classmethod
    def of(cls, x, xi, beta, dtype):
        """Of sums of K or D terms, each wrong by its size times the rounding of its dtype.

        Logits, softmax and energy are of float32 or wider; weights are rounded to `dtype` before
        they mix, and so is the state. A wrong logit is a factor on a weight.
        """
        unit = float(jnp.finfo(dtype).eps)
        wide = min(unit, float(jnp.finfo("float32").eps))
        (size, width), largest = x.shape, length(x).max()
        reach = max(largest, length(xi).max())
        logits = width * wide * beta * largest * reach
        state = largest * (2 * logits + (size + 2) * wide + 2 * unit)
        terms = (width + 3) * (largest + reach) ** 2 + (size + 3) * np.log(size) / beta
        return cls(state, wide * terms)


@functools.partial(jax.jit, static_argnames="dtype")
def measure(x, xi, beta, dtype):
    """What T1 to T5 and T10 compare; states and energies in `dtype`, bounds in float32 at least."""
    wide = jnp.promote_types(dtype, "float32")
    x, xi, beta = x.astype(dtype), xi.astype(dtype), beta.astype(wide)
    new = retrieve(x, xi, beta=beta)
    found = {
        "new": new,
        "before": energy(x, xi, beta=beta),
        "after": energy(x, new, beta=beta),
    }
    x, xi = x.astype(wide), xi.astype(wide)

    def bound(state):
        return {
            "energy": theory.energy_bounds(x, state, beta),
            "update": theory.bound_update_error(x, state, beta),
            "jacobian": theory.update_jacobian(x, state, beta),
            "jacobian_bounds": theory.bound_jacobian(x, state, beta),
            "derivative": jax.jacfwd(lambda s: retrieve(x, s[None], beta=beta)[0])(
                state
            ),
        }

    return found | {"bounds": jax.vmap(bound)(xi)}


def compute(function, *arrays, dtype):
    """The function's numbers in float64; its own arithmetic is in `dtype`."""
    with jax.enable_x64(True):
        found = function(*(jnp.asarray(array) for array in arrays), dtype=dtype)
        return jax.tree.map(lambda a: np.asarray(a, np.float64), found)


@each_dtype
@few
@given(problem=PROBLEMS, beta=BETAS)
def test_an_update_lowers_the_energy_by_half_the_squared_step(dtype, problem, beta):
    """T1 and T2; T3: the bounds of the energy; T4: the new state stays within the patterns."""
    x, xi = problem["x"], problem["xi"]
    found = compute(measure, x, xi, np.float64(beta), dtype=dtype)
    wrong = Rounding.of(x, xi, beta, dtype)
    largest = length(x).max()
    step = length(found["new"] - xi)
    # The energy's slope is at most 2 M at the exact new state, and its curvature 1.
    moved = (2 * largest + step) * wrong.state + wrong.state**2
    fall = found["before"] - found["after"]
    assert (fall >= step**2 / 2 - moved - 2 * wrong.energy).all()
    lower, upper = found["bounds"]["energy"]
    assert (found["before"] >= lower - 2 * wrong.energy).all()
    assert (found["after"] >= -wrong.energy).all()
    assert (found["after"] <= upper + moved + 2 * wrong.energy).all()
    assert (length(found["new"]) <= largest + wrong.state).all()


@few
@given(problem=PROBLEMS, beta=BETAS)
def test_the_derivative_of_an_update_is_a_covariance_within_its_bounds(problem, beta):
    """T4: beta times the covariance of the patterns, so symmetric and without negative
    eigenvalues; T5: three bounds of its norm."""
    x, xi = problem["x"], problem["xi"]
    bounds = compute(measure, x, xi, np.float64(beta), dtype="float64")["bounds"]
    jacobian = bounds["jacobian"]
    # J is a product of two patterns and beta, and as wrong as the weights.
    wrong = Rounding.of(x, xi, beta, "float64").state
    wrong *= 4 * beta * (1 + length(x).max())
    np.testing.assert_allclose(jacobian, bounds["derivative"], rtol=0, atol=wrong)
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=wrong)
    eigenvalues = np.linalg.eigvalsh(jacobian)
    assert (eigenvalues >= -wrong).all()
    for bound in bounds["jacobian_bounds"]:
        assert (eigenvalues[:, -1] <= bound * (1 + 1e-12) + wrong).all()


@each_dtype
@few
@given(problem=PROBLEMS, beta=BETAS)
def test_an_update_ends_near_the_pattern_that_leads(dtype, problem, beta):
    """T10: the lead of one product over the others bounds the distance to its pattern."""
    x, xi = problem["x"], problem["xi"]
    found = compute(measure, x, xi, np.float64(beta), dtype=dtype)
    wrong = Rounding.of(x, xi, beta, dtype).state
    nearest = x[np.argmax(xi @ x.T, axis=1)]
    error = length(nearest - found["new"])
    bound = found["bounds"]["update"]
    # The bound's exponent is as wrong as logits are: 1e-2 of float32 at most.
    assert (error <= bound * 1.02 + wrong).all()


@functools.partial(jax.jit, static_argnames=("dtype", "steps"))
def settle(x, xi, beta, dtype, steps):
    x, xi = x.astype(dtype), xi.astype(dtype)
    beta = beta.astype(jnp.promote_types(dtype, "float32"))
    return retrieve(x, xi, beta=beta, steps=steps)


@each_wide_dtype
@few
@given(problem=PROBLEMS, share=st.floats(0.01, 0.95))
def test_below_a_radius_all_states_approach_one_fixed_point(dtype, problem, share):
    """T6: with beta m_max^2 = c < 1, n updates shrink every distance to c^n of it."""
    x, xi = problem["x"], problem["xi"]
    radius = length(x - x.mean(axis=0)).max()
    assume(radius > 0)
    beta, steps = share / radius**2, 40
    many = functools.partial(settle, steps=steps)
    ends = compute(many, x, xi, np.float64(beta), dtype=dtype)
    # Roundings of earlier updates shrink as well: their sum is that of a geometric series.
    wrong = 2 * Rounding.of(x, xi, beta, dtype).state / (1 - share)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        limit = share**steps * length(xi[i] - xi[j]) + wrong
        assert length(ends[i] - ends[j]) <= limit


def measure_margin(x, index=0):
    """Delta of one pattern."""
    products = x @ x[index]
    return products[index] - np.delete(products, index).max()


def separate(x, index, most, factor):
    """beta at which pattern `index` is well separated, with `most` for K or K - 1, times `factor`."""
    margin = measure_margin(x, index)
    largest = length(x).max()
    assume(margin >= 0.05 * largest**2)  # else beta is too large for a float32
    pairs = 2 * most * len(x) * largest**2
    beta = np.e / pairs  # from here on the threshold falls with beta
    for _ in range(100):
        beta = max(beta, (2 / len(x) + np.log(pairs * beta)) / margin)
    return 1.001 * factor * beta


@functools.partial(jax.jit, static_argnames="dtype")
def measure_ball(x, directions, beta, dtype):
    """Two states in the ball of the first pattern, their updates, the fixed point, and the bounds."""
    wide = jnp.promote_types(dtype, "float32")
    exact, beta = x.astype(wide), beta.astype(wide)
    well = theory.well_separated(exact, beta)
    starts = (exact[:1] + well.radius * directions.astype(wide)).astype(dtype)
    x = x.astype(dtype)
    once = retrieve(x, starts, beta=beta)
    fixed = retrieve(x, starts[:1], beta=beta, steps=100)[0]
    distance = jnp.linalg.norm(
        jnp.concatenate([starts, fixed[None]]).astype(wide) - exact[:1], axis=1
    ).max()
    return {
        "well": well,
        "margin": theory.separation(exact)[0],
        "starts": starts,
        "once": once,
        "fixed": fixed,
        "contraction": theory.bound_contraction(exact, 0, distance, beta),
        "retrieval": theory.bound_retrieval_error(exact, 0, distance, beta),
        "fixed_error": theory.bound_fixed_point_error(exact, 0, beta),
    }


@st.composite
def balls(draw):
    """(x, beta, directions): the first pattern is well separated; two vectors of length 1 at most."""
    x = draw(eighths((7, 5)))
    x = x[np.argsort(-length(x))]  # the longest is nearest to no other
    assume(np.any(x))
    beta = separate(x, 0, len(x) - 1, draw(st.floats(1, 4)))
    directions = draw(eighths((2, 5), 8))
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    return x, beta, directions / np.maximum(lengths, 1)


@each_wide_dtype
@few
@given(ball=balls())
def test_a_well_separated_pattern_has_a_fixed_point_in_its_ball(dtype, ball):
    """T7: an update maps the ball into itself and brings states closer together."""
    x, beta, directions = ball
    found = compute(measure_ball, x, directions, np.float64(beta), dtype=dtype)
    threshold, radius, *_ = found["well"]
    assert found["margin"] >= threshold
    pattern, starts, once = x[0], found["starts"], found["once"]
    wrong = Rounding.of(x, x, beta, dtype).state
    inside = radius * (1 + 1e-6) + wrong  # 1e-6: the radius is of float32
    assert (length(once - pattern) <= inside).all()
    assert length(found["fixed"] - pattern) <= inside
    assert length(once[0] - once[1]) <= length(starts[0] - starts[1]) + 2 * wrong


@each_dtype
@few
@given(ball=balls())
def test_one_update_retrieves_a_well_separated_pattern(dtype, ball):
    """T8: closer to the fixed point by a factor; T9: the errors of state and fixed point."""
    x, beta, directions = ball
    found = compute(measure_ball, x, directions, np.float64(beta), dtype=dtype)
    pattern, fixed, wrong = x[0], found["fixed"], Rounding.of(x, x, beta, dtype)
    before, after = (length(found[name] - fixed) for name in ("starts", "once"))
    # Both the new state and the fixed point are rounded; 1.02 as in T10.
    assert (after <= 1.02 * found["contraction"] * before + 2 * wrong.state).all()
    error = length(found["once"] - pattern)
    assert (error <= 1.02 * found["retrieval"] + wrong.state).all()
    assert length(fixed - pattern) <= 1.02 * found["fixed_error"] + wrong.state


@each_wide_dtype
@few
@given(
    bits=hnp.arrays(bool, (5, 9), elements=st.booleans(), fill=st.nothing()),
    factor=st.floats(1, 4),
)
def test_separated_patterns_are_all_stored(dtype, bits, factor):
    """T13: every pattern has a fixed point in its own ball, and no two balls meet."""
    x = np.where(bits, 1.0, -1.0)
    assume(len(np.unique(x, axis=0)) == len(x))
    # Of vectors of one length, the two nearest have the least separation.
    products = x @ x.T - 99 * np.eye(len(x))
    beta = separate(x, int(products.max(axis=1).argmax()), len(x), factor)

    with jax.enable_x64(True):
        well = theory.well_separated(jnp.asarray(x), jnp.asarray(beta))
        margins = theory.separation(jnp.asarray(x))
        assert (margins >= well.all_threshold).all() and well.disjoint
        radius = float(well.radius)
    many = functools.partial(settle, steps=40)
    ends = compute(many, x, x, np.float64(beta), dtype=dtype)
    wrong = Rounding.of(x, x, beta, dtype).state
    assert (length(ends - x) <= radius + wrong).all()
    assert np.sqrt(2 * (9 - products.max())) > 2 * radius


# --- the sparse members, and half precision -------------------------------------------


@functools.partial(jax.jit, static_argnames=("dtype", "alpha"))
def retrieve_sparse(x, xi, beta, dtype, alpha):
    x, xi, beta = (array.astype(dtype) for array in (x, xi, beta))
    return retrieve(x, xi, beta=beta, member=Entmax(alpha))


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@few
@given(ball=balls(), factor=st.floats(1.01, 4))
def test_a_sparse_network_retrieves_exactly_from_the_stated_margin_on(
    alpha, ball, factor
):
    """One update gives the pattern itself if Delta_i >= m / beta + 2 M |xi - x_i|, where the margin m
    of alpha-entmax is 1 / (alpha - 1)."""
    x, _, directions = ball
    margin = measure_margin(x)
    largest = length(x).max()
    xi = x[:1] + directions * margin / (4 * largest)  # half of the margin is left
    beta = factor / (alpha - 1) / (margin / 2)
    exact = functools.partial(retrieve_sparse, alpha=alpha)
    for dtype in ("float64", "float32"):
        found = compute(exact, x, xi, np.float64(beta), dtype=dtype)
        # The weight of a single pattern is a number divided by itself: a rounding or two.
        expected = np.broadcast_to(x[:1], found.shape)
        np.testing.assert_allclose(found, expected, rtol=8 * np.finfo(dtype).eps)


MEMBERS = (Softmax(), Entmax(1.5), Normmax(2.0), Subsets(2))


@functools.partial(jax.jit, static_argnames="dtype")
def retrieve_and_weigh(x, xi, beta, dtype):
    x, xi = x.astype(dtype), xi.astype(dtype)
    return [
        (
            retrieve(x, xi, beta=beta, member=member),
            energy(x, xi, beta=beta, member=member),
        )
        for member in MEMBERS
    ]


@few
@given(x=eighths((7, 5)), xi=eighths((3, 5)), beta=BETAS, exponent=st.integers(0, 13))
def test_half_precision_is_finite_where_float32_is(x, xi, beta, exponent):
    """Patterns of up to 32,768: their logits are far above the 65,504 of float16."""
    x, xi = x * 2.0**exponent, xi * 2.0**exponent
    for dtype in ("float32", "float16", "bfloat16"):
        found = retrieve_and_weigh(*(jnp.float32(a) for a in (x, xi, beta)), dtype)
        for state, level in found:
            assert state.dtype == dtype and level.dtype == "float32"
            assert np.isfinite(state.astype("float32")).all(), dtype
            assert np.isfinite(level).all(), dtype
