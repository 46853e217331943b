"""Heads replaced by the average over visible tokens."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_hopfield_attention import TOKENS, bert, perturb

from attn_jax.__main__ import main
from attn_jax.analysis.replacing import (
    fit_gaussian,
    parse_heads,
    replace_heads,
    substitute,
)
from attn_jax.models.hopfield import HopfieldAttention

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("attention", [None, HopfieldAttention(num_heads=2)])
def test_a_replaced_head_averages_over_the_keys_it_sees(attention):
    module = bert(attention=attention, attention_dropout=0.0, depth=1)
    variables = jax.jit(module.init)(jax.random.key(2), **TOKENS)
    variables = perturb(variables, 0.7)

    def compute(variables):
        return jax.jit(lambda v: module.apply(v, **TOKENS)["tokens"])(variables)

    # Queries of zero see all their keys alike: the same average by other means.
    zeroed = jax.tree.map(jnp.array, variables)
    query = zeroed["params"]["block_0"]["attention"]["query"]
    query["kernel"] = query["kernel"].at[:, 1].set(0)
    query["bias"] = query["bias"].at[1].set(0)
    with replace_heads({(0, 1): None}):
        found = compute(variables)
    real = np.asarray(TOKENS["mask"])
    # Weights are 1 / n by a division here and by a softmax there.
    np.testing.assert_allclose(found[real], compute(zeroed)[real], atol=2e-6)
    assert np.abs(found - compute(variables))[real].max() > 0.01


def test_the_command_reports_each_metric_with_and_without(copied, capsys):
    main(["analyze", f"--workdir={copied}", "--replace=0.1,0.0"])
    effect = json.loads(capsys.readouterr().out)
    assert effect["replaced"] == ["0.0", "0.1"] and effect["by"] == "average"
    main(["evaluate", f"--workdir={copied}"])
    plain = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert effect["step"] == plain.pop("step")
    before = {name: two["before"] for name, two in effect["evaluations"].items()}
    assert before == plain
    losses = [two for name, two in effect["evaluations"].items() if "loss" in name]
    assert losses and all(two["before"] != two["after"] for two in losses)


def test_a_gaussian_head_has_the_moments_of_the_head_it_replaces():
    place = np.linspace(-1, 1, 33)
    mean, deviation = np.array([-0.2, 0.3]), np.array([0.1, 0.2])
    rows = np.exp(-(((place - mean[:, None]) / deviation[:, None]) ** 2) / 2)
    rows /= rows.sum(axis=1, keepdims=True)
    kernel = fit_gaussian(np.stack([rows, rows, np.full((2, 33), 1 / 33)]), MASK)
    # A Gaussian of which the ends, 3.5 deviations away, are cut off.
    np.testing.assert_allclose(kernel[0] / kernel[0].sum(), rows[0], atol=1e-3)
    # The second query is real in the first example only, the third example never.
    np.testing.assert_allclose(kernel[1] / kernel[1].sum(), rows[1], atol=1e-3)
    [alone] = fit_gaussian(np.eye(33)[None, 4:5])
    assert alone.argmax() == 4 and alone[4] / alone.sum() > 0.7
    [unseen] = fit_gaussian(np.eye(33)[None, 4:5], np.zeros((1, 1), bool))
    assert unseen.max() == 1 and unseen.min() > 0.1  # deviation 1


MASK = np.array([[True, True], [True, False], [False, False]])


def test_a_gaussian_head_weighs_visible_tokens_by_its_kernel():
    kernel = np.arange(1.0, 13.0).reshape(3, 4)
    mask = jnp.array([True, True, False, True]).reshape(1, 1, 1, 4)
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 2, 3, 4)))
    found = substitute(weights, {1: kernel}, mask)
    np.testing.assert_array_equal(found[:, 0], weights[:, 0])
    expected = kernel * [1, 1, 0, 1]
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found[:, 1], np.stack([expected] * 2), rtol=1e-6)
    with pytest.raises(ValueError, match=r"rows have \[3, 4\] .* fitted \[2, 4\]"):
        substitute(weights, {1: kernel[:2]}, mask)


def test_the_command_replaces_by_gaussian_heads(copied, capsys):
    arguments = ["analyze", f"--workdir={copied}"]
    main([*arguments, "--replace=0.0", "--by=gaussian"])
    effect = json.loads(capsys.readouterr().out)
    assert effect["by"] == "gaussian"
    losses = [two for name, two in effect["evaluations"].items() if "loss" in name]
    assert losses and all(two["before"] != two["after"] for two in losses)
    with pytest.raises(ValueError, match="--by=average needs --replace"):
        main([*arguments, "--by=average"])


@pytest.mark.parametrize("text", ["", "0", "0.0,", "a.b", "0.-1"])
def test_a_list_of_heads_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="must be a list LAYER.HEAD"):
        parse_heads(text)


@pytest.mark.parametrize(
    ("head", "message"),
    [((0, 2), "layer 0 has the heads 0 to 1"), ((5, 0), "has no block 5")],
)
def test_a_head_that_does_not_exist_is_named(head, message):
    module = bert(depth=1)
    with pytest.raises(ValueError, match=message), replace_heads({head: None}):
        jax.eval_shape(lambda t: module.init(jax.random.key(0), **t), TOKENS)
