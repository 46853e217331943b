"""The converter of Hopfield layers: what it refuses, and which tree it makes.

That converted layers give the numbers of the original is tested in test_hopfield.py.
"""

import jax
import numpy as np
import pytest
from test_hopfield import CASES, call_arguments, golden, official

from attn_jax.convert.hopfield import from_torch, inputs_from_torch


def test_what_cannot_be_converted_is_refused_by_name():
    kind, config, weights = official(golden("pooling_q1"))
    name = "hopfield.association_core.out_proj.bias"
    missing = {key: value for key, value in weights.items() if key != name}
    for changed, message in [
        ((f"{kind}X", config, weights), "kind='HopfieldPoolingX'"),
        ((kind, {**config, "width": 3}, weights), "'width' is no argument"),
        ((kind, config, missing), f"{name} +missing"),
        ((kind, config, {**weights, "more": np.ones(2)}), r"more +\[2\] +no such"),
        (
            (kind, {**config, "quantity": 2}, weights),
            r"pooling_weights +\[1, 1, .*state \[1, 2,",
        ),
        ((kind, {**config, "hidden_size": 5}, weights), r"in_proj_weight +\[.* rows"),
        ((kind, {**config, "num_heads": 3, "hidden_size": None}, weights), "divisible"),
        (
            (kind, {**config, "association_activation": "erf"}, weights),
            "association_activation='erf'",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            from_torch(*changed)
    with pytest.raises(ValueError, match="takes one input or 2"):
        inputs_from_torch(kind, config, (weights[name],) * 3)


def test_a_transformer_layer_that_cannot_be_converted_is_refused_by_name():
    kind, config, weights = official(golden("encoder"))
    inner = config["hopfield_association"]
    for changed, message in [
        ({"activation": "silu"}, "activation='silu' is none of relu, gelu"),
        ({"width": 3}, "'width' is no argument"),
        ({"hopfield_association": None}, "hopfield_association=None .* as a dict"),
        (
            {"hopfield_association": {**inner, "output_size": 5}},
            "output_size=5 of hopfield_association must be its input_size=8",
        ),
        ({"dim_feedforward": 9}, r"linear_residual.weight +\[14, 8\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_torch(kind, {**config, **changed}, weights)
    x = golden("encoder")["input"]
    with pytest.raises(ValueError, match="'tgt_mask' is no mask .* src_mask"):
        inputs_from_torch(kind, config, x, tgt_mask=np.zeros((6, 6), bool))
    kind, config, _ = official(golden("decoder"))
    with pytest.raises(ValueError, match=r"takes 2 \(state, stored\), not 1"):
        inputs_from_torch(kind, config, x)


def test_bias_patterns_that_the_original_never_uses_are_left_out():
    kind, config, weights = official(golden("hopfield_plain"))
    dead = {f"association_core.bias_{x}": np.ones((1, 1, 12)) for x in "kv"}
    _, expected = from_torch(kind, config, weights)
    config = {**config, "concat_bias_pattern": True}
    _, ours = from_torch(kind, config, {**weights, **dead})
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_the_converted_tree_is_the_one_that_the_module_makes():
    for name in CASES:
        case = golden(name)
        module, variables = from_torch(*official(case))
        made = jax.eval_shape(module.init, jax.random.key(0), **call_arguments(case))
        made = made.get("params", {})
        shapes = jax.tree.map(np.shape, variables.get("params", {}))
        assert shapes == jax.tree.map(lambda leaf: leaf.shape, made), name
