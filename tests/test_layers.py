"""Layers in a loop give the numbers of separate layers, in a program of one layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.layers import apply_layers
from attn_jax.metrics import count_flops
from attn_jax.models.bert import Bert
from attn_jax.models.vit import ViT

KEY = jax.random.key(1)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def make_vit(**changes):
    fields = dict(num_classes=3, patch_size=2, width=8, mlp_width=12, num_heads=2)
    images = np.random.default_rng(0).normal(size=(3, 4, 4, 3))
    return ViT(**{**fields, "depth": 3, **changes}), {"images": jnp.float32(images)}


def make_bert(**changes):
    fields = dict(vocab_size=11, width=8, mlp_width=12, num_heads=2, dropout=0.0)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 6)), jnp.int32)
    sequences = jnp.asarray([[1, 1, 1, 2, 2, 0]] * 3, jnp.int32)  # a packed row
    inputs = {"token_ids": ids, "sequence_ids": sequences}
    fields |= {"attention_dropout": 0.0, "depth": 3}
    return Bert(**{**fields, **changes}), inputs


def differentiate(model, inputs, variables, seed=0):
    def loss(variables):
        rngs = {"dropout": jax.random.key(seed)}
        outputs = model.apply(variables, **inputs, train=True, rngs=rngs)
        pooled = outputs["pooled"]
        return jnp.sum(pooled * jnp.cos(jnp.arange(pooled.size)).reshape(pooled.shape))

    return jax.jit(jax.value_and_grad(loss))(variables)


def assert_alike(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)  # seen: 1e-6


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("make", [make_vit, make_bert])
def test_a_loop_over_layers_changes_no_number(make, remat):
    separate, inputs = make(remat=remat)
    scanned = separate.clone(scan_layers=True)
    variables = separate.init(KEY, **inputs)
    jax.tree.map(
        np.testing.assert_array_equal,
        variables,
        scanned.init(KEY, **inputs),
    )
    assert_alike(
        differentiate(scanned, inputs, variables),
        differentiate(separate, inputs, variables),
    )


def test_every_layer_of_the_loop_has_its_own_rate():
    separate, inputs = make_vit(depth=2, stochastic_depth=1.0)  # rates 0 and 1
    scanned = separate.clone(scan_layers=True)
    variables = separate.init(KEY, **inputs)
    ours = differentiate(scanned, inputs, variables)
    assert_alike(ours, differentiate(separate, inputs, variables))
    gradients = ours[1]["params"]
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(gradients["block_1"]))
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients["block_0"]))


class Recorder(nn.Module):
    """Appends what its dropout leaves of ones, and drops the oldest row."""

    @nn.compact
    def __call__(self, rows, train):
        self.param("unused", nn.initializers.zeros, (1,))
        ones = nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(rows[:1]))
        return jnp.concatenate([rows[1:], ones])


class Recorders(nn.Module):
    @nn.compact
    def __call__(self, rows):
        options = {"train": True, "scan": True, "remat": False}
        return apply_layers(self, Recorder, dict, 3, rows, **options)


def test_every_layer_of_the_loop_draws_its_own_dropout():
    rows = jnp.zeros((3, 64))
    variables = Recorders().init(dict(params=KEY, dropout=KEY), rows)

    def draw(seed):
        return Recorders().apply(
            variables, rows, rngs={"dropout": jax.random.key(seed)}
        )

    drawn = np.concatenate([draw(0), draw(1)])
    assert len(np.unique(drawn, axis=0)) == 6
    np.testing.assert_array_equal(draw(0), drawn[:3])


@pytest.mark.parametrize("make", [make_vit, make_bert])
def test_the_program_does_not_grow_with_the_depth(make):
    def write(depth):
        model, inputs = make(depth=depth, scan_layers=True)
        variables = jax.eval_shape(model.init, KEY, **inputs)
        gradient = jax.grad(
            lambda variables: model.apply(variables, **inputs)["pooled"].sum()
        )
        flops = count_flops(jax.make_jaxpr(gradient)(variables))
        return jax.jit(gradient).lower(variables).as_text(), flops

    (small, few), (large, many) = write(2), write(6)
    assert small.count("dot_general") == large.count("dot_general") > 0
    separate, inputs = make(depth=6)
    variables = jax.eval_shape(separate.init, KEY, **inputs)
    gradient = jax.grad(lambda v: separate.apply(v, **inputs)["pooled"].sum())
    assert many == count_flops(jax.make_jaxpr(gradient)(variables)) > few


def test_collected_values_are_those_of_separate_layers():
    model, inputs = make_vit(scan_layers=True)
    variables = model.init(KEY, **inputs)
    _, state = model.apply(variables, **inputs, mutable=["intermediates"])
    assert set(state["intermediates"]) == {"block_0", "block_1", "block_2"}
