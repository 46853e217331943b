"""Heads replaced by the average over visible tokens."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_hopfield_attention import TOKENS, bert, perturb

from attn_jax.__main__ import main
from attn_jax.analysis.replacing import parse_heads, replace_heads
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
    with replace_heads([(0, 1)]):
        found = compute(variables)
    real = np.asarray(TOKENS["mask"])
    # Weights are 1 / n by a division here and by a softmax there.
    np.testing.assert_allclose(found[real], compute(zeroed)[real], atol=2e-6)
    assert np.abs(found - compute(variables))[real].max() > 0.01


def test_the_command_reports_each_metric_with_and_without(copied, capsys):
    main(["analyze", f"--workdir={copied}", "--replace=0.1,0.0"])
    effect = json.loads(capsys.readouterr().out)
    assert effect["replaced"] == ["0.0", "0.1"]
    main(["evaluate", f"--workdir={copied}"])
    plain = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert effect["step"] == plain.pop("step")
    before = {name: two["before"] for name, two in effect["evaluations"].items()}
    assert before == plain
    losses = [two for name, two in effect["evaluations"].items() if "loss" in name]
    assert losses and all(two["before"] != two["after"] for two in losses)


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
    with pytest.raises(ValueError, match=message), replace_heads([head]):
        jax.eval_shape(lambda t: module.init(jax.random.key(0), **t), TOKENS)
