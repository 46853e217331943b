"""The attention of a ViT and a BERT as a Hopfield association."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import config as config_lib
from attn_jax.analysis import attention_maps
from attn_jax.convert.bert import write as write_bert
from attn_jax.convert.vit import write as write_vit
from attn_jax.models.bert import Bert
from attn_jax.models.hopfield import (
    Entmax,
    HopfieldAttention,
    Normmax,
    Softmax,
    Subsets,
)
from attn_jax.models.vit import ViT
from attn_jax.paths import named_leaves

pytestmark = pytest.mark.usefixtures("quick_compilation")

# The same products in the same order up to the fusions of the compiler; values are near 1.
ROUNDING = {"rtol": 0, "atol": 2e-6}
vit = functools.partial(
    ViT, num_classes=3, patch_size=4, width=8, depth=2, mlp_width=16, num_heads=2
)
bert = functools.partial(
    Bert, vocab_size=20, width=8, depth=2, mlp_width=16, num_heads=2, heads=("mlm",)
)
IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
TOKENS = {
    "token_ids": jax.random.randint(jax.random.key(1), (2, 6), 0, 20),
    "mask": jnp.arange(6)[None] < jnp.array([[6], [4]]),
    "sequence_ids": jnp.array([[1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 0, 0]]),
}


def perturb(variables, deviation):
    """Parameters at which biases, norms and every head matter."""
    draws = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + deviation * draws.normal(size=x.shape).astype(np.float32),
        variables,
    )


def compute(module, variables, inputs, train=False):
    rngs = {"dropout": jax.random.key(3)}
    apply = functools.partial(module.apply, rngs=rngs, train=train)
    return jax.jit(apply)(variables, **inputs)["tokens"]


@pytest.mark.parametrize(
    ("make", "inputs", "remat"),
    [(vit, {"images": IMAGES}, True), (bert, TOKENS, False)],
    ids=["vit with remat", "bert packed"],
)
def test_without_updates_it_is_attention(make, inputs, remat):
    rate = 0.3
    reference = make(attention_dropout=rate)
    variables = jax.jit(reference.init)(jax.random.key(2), **inputs)
    variables = perturb(variables, 0.3)
    association = HopfieldAttention(num_heads=2, dropout=rate)
    module = make(attention=association, attention_dropout=0.0, remat=remat)
    shapes = jax.eval_shape(lambda k: module.init(k, **inputs), jax.random.key(2))
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    visible = slice(None) if "mask" not in inputs else np.asarray(inputs["mask"])
    for train in (False, True):  # with the same draws of dropout
        expected = compute(reference, variables, inputs, train)[visible]
        found = compute(module, variables, inputs, train)[visible]
        np.testing.assert_allclose(found, expected, **ROUNDING)


def test_every_block_learns_a_beta_per_head_and_moves_its_queries():
    attention = HopfieldAttention(
        num_heads=2, beta=(0.5, 2.0), trainable_beta=True, max_updates=(1, 3)
    )
    module = bert(attention=attention, attention_dropout=0.0, dropout=0.0)
    variables = jax.jit(module.init)(jax.random.key(2), **TOKENS)
    variables = perturb(variables, 0.7)
    names = [n for n in named_leaves(variables["params"]) if n.endswith("log_beta")]
    assert names == [f"block_{i}/attention/log_beta" for i in range(2)]

    def first_output(params):
        return module.apply({"params": params}, **TOKENS)["tokens"][0, 0, 0]

    gradients = named_leaves(jax.jit(jax.grad(first_output))(variables["params"]))
    for name in names:
        assert gradients[name].shape == (2,) and np.all(gradients[name] != 0)
    maps = attention_maps(module, variables, **TOKENS)
    assert sorted(maps) == [f"block_{i}/attention" for i in range(2)]
    first = maps["block_0/attention"]
    np.testing.assert_allclose(first.sum(axis=-1)[0], 1, rtol=1e-6)
    # Queries of one packed sequence see no key of another, also after the updates.
    assert np.all(first[0, :, :3, 3:] == 0)
    plain = module.clone(attention=attention.clone(max_updates=0))
    before = attention_maps(plain, variables, **TOKENS)["block_0/attention"]
    assert np.abs(before - first).max(axis=(0, 2, 3)).min() > 0.01  # in both heads


def test_sparse_weights_leave_keys_out():
    attention = HopfieldAttention(num_heads=2, alpha=2.0, beta=50.0)
    module = vit(attention=attention)
    variables = jax.jit(module.init)(jax.random.key(2), IMAGES)
    variables = perturb(variables, 0.7)
    weights = attention_maps(module, variables, images=IMAGES)["block_1/attention"]
    assert (weights == 0).mean() > 0.5
    # beta = 50 makes logits near 1,000, with roundings of 6e-5, which these weights share.
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "fields", "member"),
    [
        ("Softmax", {}, Softmax()),
        ("Entmax", {"alpha": 3}, Entmax(3.0)),
        ("Normmax", {}, Normmax(2.0)),
        ("Subsets", {"k": 3}, Subsets(3)),
    ],
)
def test_a_config_names_any_member_of_the_family(name, fields, member):
    family = "attn_jax.models.hopfield:"
    texts = [f"model.attention.member.{key}={value}" for key, value in fields.items()]
    config = config_lib.load(
        "configs/vit/digits.py:debug",
        [
            f"model.attention.cls={family}HopfieldAttention",
            f"model.attention.member.cls={family}{name}",
            "model.attention.num_heads=2",
            "model.num_heads=2",
            *texts,
        ],
    )
    module = config_lib.build(config.model, ("attn_jax",))
    assert module.attention.member == member
    layer = {"cls": f"{family}Hopfield", "member": {"cls": family + name, **fields}}
    assert config_lib.build(layer).member == member


def test_a_member_that_is_none_is_refused():
    section = {
        "cls": "attn_jax.models.hopfield:HopfieldAttention",
        "num_heads": 2,
        "member": {"cls": "attn_jax.models.hopfield:Hopfield"},
    }
    with pytest.raises(ValueError, match="is no dataclass with weights, regularizer"):
        config_lib.build(section)
    with pytest.raises(ValueError, match="neither a Flax module nor a task"):
        config_lib.build({"cls": "attn_jax.models.hopfield:Softmax"})


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            vit(attention=HopfieldAttention(num_heads=2), qk_norm=True),
            "config.model.qk_norm=True has no effect .* set it to False",
        ),
        (
            vit(attention=HopfieldAttention(num_heads=2), qkv_bias=False),
            "config.model.qkv_bias=False has no effect",
        ),
        (
            vit(attention=HopfieldAttention(num_heads=4)),
            "config.model.attention.num_heads=4 must be config.model.num_heads=2",
        ),
        (
            vit(attention=HopfieldAttention(num_heads=2, alpha=0.5)),
            r"Entmax\(alpha=0.5\) must be above 1",
        ),
        (
            vit(attention=HopfieldAttention(num_heads=2, alpha=2.0, member=Subsets(2))),
            r"alpha=2.0 and member=Subsets\(k=2\) both choose the weights; leave one",
        ),
    ],
)
def test_what_contradicts_the_attention_is_named(module, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x), IMAGES)


def test_the_default_dropout_of_bert_is_named():
    module = bert(attention=HopfieldAttention(num_heads=2))
    with pytest.raises(ValueError, match="config.model.attention_dropout=0.1 has no"):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), **x), TOKENS)


def test_other_libraries_have_no_such_attention(tmp_path):
    attention = HopfieldAttention(num_heads=2)
    with pytest.raises(ValueError, match="no BERT with HopfieldAttention"):
        write_bert.to_hf(bert(attention=attention), {}, tmp_path, None, None)
    images = write_vit.Images((8, 8))
    with pytest.raises(ValueError, match="attention"):
        write_vit.to_hf(vit(attention=attention, pool="cls"), {}, tmp_path, images)
