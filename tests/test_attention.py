"""One equation: each architecture is a setting of `attention_weights`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import attention
from attn_jax.attention import (
    LayerNorm,
    MultiHeadAttention,
    attention_weights,
    layer_norm,
    mix,
)
from attn_jax.models import bert, hopfield, slot_attention, vit

B, Q, K, N, C = 2, 3, 5, 2, 4


def arrays(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


QUERY, KEY, VALUE = arrays((B, Q, N, C), (B, K, N, C), (B, K, N, C))


@pytest.mark.parametrize(("over", "axis"), [("keys", -1), ("queries", -2)])
def test_the_weights_are_a_softmax_of_scaled_similarity(over, axis):
    logits = 0.3 * np.einsum("bqnc,bknc->bnqk", QUERY, KEY)
    powers = np.exp(logits)
    ours = attention_weights(QUERY, KEY, scale=0.3, over=over)
    np.testing.assert_allclose(
        ours, powers / powers.sum(axis, keepdims=True), rtol=1e-5
    )


def test_a_masked_key_counts_as_if_it_were_absent():
    mask = jnp.arange(K) < 3
    bias = jnp.where(mask, 0.0, -jnp.inf)
    shape = (1, 1, 1, K)
    masked = attention_weights(QUERY, KEY, scale=1.0, mask=mask.reshape(shape))
    barred = attention_weights(QUERY, KEY, scale=1.0, bias=bias.reshape(shape))
    short = attention_weights(QUERY, KEY[:, :3], scale=1.0)
    # Some roundings (6e-8 each) of logits and sums, in another order. A key that still
    # counted would change every weight by percents.
    np.testing.assert_allclose(masked[..., :3], short, rtol=3e-6)
    np.testing.assert_array_equal(masked[..., 3:], 0)
    np.testing.assert_array_equal(masked, barred)


def test_each_head_may_have_its_own_scale():
    scales = jnp.array([[0.2], [3.0]])
    ours = attention_weights(QUERY, KEY, scale=scales)
    for head, scale in enumerate([0.2, 3.0]):
        alone = attention_weights(
            QUERY[:, :, head : head + 1], KEY[:, :, head : head + 1], scale=scale
        )
        np.testing.assert_allclose(ours[:, head], alone[:, 0], rtol=1e-6)


def test_the_softmax_is_float32_for_bfloat16_inputs():
    low = attention_weights(
        QUERY.astype(jnp.bfloat16), KEY.astype(jnp.bfloat16), scale=1.0
    )
    assert low.dtype == jnp.float32
    # Rows of bfloat16 would be off by up to 4e-3.
    np.testing.assert_allclose(low.sum(-1), 1.0, rtol=1e-6)


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="over='slots' must be 'keys' or 'queries'"):
        attention.attention_weights.__wrapped__(QUERY, KEY, scale=1.0, over="slots")


# --- the four ---------------------------------------------------------------------------


def settings_of(monkeypatch, module, inputs):
    """(axis, scale) of every call of the equation in one pass."""
    calls = []

    def spy(query, key, *, scale, mask=None, bias=None, over="keys"):
        calls.append((over, float(scale)))
        return attention_weights(
            query, key, scale=scale, mask=mask, bias=bias, over=over
        )

    for file in (attention, hopfield.equations, slot_attention.slots):
        monkeypatch.setattr(file, "attention_weights", spy)
    jax.eval_shape(lambda: module.init(jax.random.key(0), **inputs))
    return calls


def test_vit_attends_over_keys_once_a_block(monkeypatch):
    module = vit.ViT(
        num_classes=3, patch_size=2, width=8, depth=3, mlp_width=8, num_heads=2
    )
    images = jnp.zeros((1, 4, 4, 3))
    calls = settings_of(monkeypatch, module, {"images": images})
    assert calls == 3 * [("keys", 4**-0.5)]


def test_bert_attends_over_keys_once_a_block(monkeypatch):
    module = bert.Bert(vocab_size=7, width=8, depth=3, mlp_width=8, num_heads=2)
    calls = settings_of(
        monkeypatch, module, {"token_ids": jnp.zeros((1, 4), jnp.int32)}
    )
    assert calls == 3 * [("keys", 4**-0.5)]


def test_hopfield_attends_over_keys_at_beta_again_and_again(monkeypatch):
    module = hopfield.Hopfield(num_heads=2, beta=0.7, max_updates=2)
    calls = settings_of(monkeypatch, module, {"stored": jnp.zeros((1, 4, 8))})
    # Traced once for all the updates, which are a loop.
    assert set(calls) == {("keys", 0.7)}
    assert len(calls) >= 2


def test_slot_attention_lets_queries_compete_in_every_iteration(monkeypatch):
    module = slot_attention.SlotAttention(
        num_slots=3, width=8, mlp_width=8, iterations=2
    )
    inputs = {"inputs": jnp.zeros((1, 4, 5)), "initial_slots": jnp.zeros((1, 3, 8))}
    calls = settings_of(monkeypatch, module, inputs)
    assert calls == 2 * [("queries", 8**-0.5)]


def test_one_hopfield_association_is_the_attention_of_a_transformer():
    """beta = 1 / sqrt(C), no update of the state, no norms: the paper's main statement."""
    stored, state = arrays((B, K, 8), (B, Q, 8))
    ours = hopfield.Hopfield(
        num_heads=N, norm_stored="off", norm_state="off", norm_projection="off"
    )
    theirs = MultiHeadAttention(num_heads=N)
    variables = theirs.init(jax.random.key(1), state, stored)
    np.testing.assert_allclose(
        ours.apply(variables, stored, state),
        theirs.apply(variables, state, stored),
        rtol=0,
        atol=1e-6,  # the same operations, in a program of its own
    )


def test_a_retrieval_is_one_head_of_the_equation():
    stored, state = arrays((B, K, C), (B, Q, C))
    weights = attention_weights(state[:, :, None], stored[:, :, None], scale=0.9)
    np.testing.assert_allclose(
        hopfield.retrieve(stored, state, beta=0.9),
        mix(weights, stored[:, :, None])[:, :, 0],
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_logits_of_short_floats_are_accumulated_and_stay_in_float32(dtype):
    """Two keys whose logits, 90,000 and 90,300, no short float can hold or tell apart."""
    query = jnp.full((1, 1, 1, 100), 30, dtype)
    key = jnp.stack([jnp.full((1, 1, 100), 30, dtype)] * 2, axis=1)
    key = key.at[:, 1, :, 0].set(40)
    ours = attention_weights(query, key, scale=0.01)
    expected = jax.nn.softmax(jnp.array([900.0, 903.0]))
    np.testing.assert_allclose(ours[0, 0, 0], expected, rtol=1e-5)


# --- layer norm -------------------------------------------------------------------------


def flax_norm(x, scale, bias, dtype="float32"):
    norm = nn.LayerNorm(1e-6, use_fast_variance=False, dtype=dtype)
    return norm.apply({"params": {"scale": scale, "bias": bias}}, x)


def our_norm(x, scale, bias):
    return layer_norm(1e-6, "norm").apply({"params": {"scale": scale, "bias": bias}}, x)


def test_the_layer_norm_gives_the_numbers_of_flax_bit_for_bit():
    x, scale, bias = arrays((2, 3, 7), (7,), (7,))
    np.testing.assert_array_equal(our_norm(x, scale, bias), flax_norm(x, scale, bias))
    ours = LayerNorm(1e-6, affine=False).apply({}, x)
    expected = nn.LayerNorm(
        1e-6, use_fast_variance=False, use_scale=False, use_bias=False
    ).apply({}, x)
    np.testing.assert_array_equal(ours, expected)
    names = layer_norm(1e-6, "norm").init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, names) == {"scale": (7,), "bias": (7,)}


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_its_gradient_is_that_of_float64(offset):
    x, scale, bias, weights = arrays((4, 65), (65,), (65,), (4, 65))
    x = 3 * x + offset
    scale, bias = 1 + 0.3 * scale, 0.5 * bias

    def loss(norm, weights, *arguments):
        return (weights * jnp.sin(norm(*arguments))).sum()

    ours = jax.jit(jax.grad(functools.partial(loss, our_norm), (1, 2, 3)))(
        weights, x, scale, bias
    )
    with jax.enable_x64(True):
        exact = jax.grad(
            functools.partial(loss, functools.partial(flax_norm, dtype="float64")),
            (1, 2, 3),
        )(*(jnp.asarray(np.asarray(a, np.float64)) for a in (weights, x, scale, bias)))
    for name, mine, theirs in zip(("x", "scale", "bias"), ours, exact, strict=True):
        # Gradients near 1. At an offset of 100 the input itself has 4e-6 of rounding.
        np.testing.assert_allclose(
            mine, theirs, rtol=0, atol=2e-6 if offset == 0 else 1e-4, err_msg=name
        )


def test_forward_mode_and_second_derivatives_are_those_of_the_plain_formula():
    x, scale, bias, tangent = arrays((3, 5), (5,), (5,), (3, 5))

    def of(norm):
        def loss(x):
            return (norm(x, scale, bias) ** 3).sum()

        forward = jax.jvp(loss, (x,), (tangent,))[1]
        return forward, jax.hessian(loss)(x), jax.jacrev(jax.jacrev(loss))(x)

    for ours, theirs in zip(of(our_norm), of(flax_norm), strict=True):
        # Second derivatives reach some hundreds; float32 roundings of those.
        size = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * size)
