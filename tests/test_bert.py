"""BERT: the numbers of transformers, and what must not matter."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_jax.attention import MultiHeadAttention
from attn_jax.convert import load_pretrained
from attn_jax.convert.bert import read_hf as convert
from attn_jax.models.bert import Bert
from attn_jax.models.bert.model import GELU, Block

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOLDEN = pathlib.Path(__file__).parent / "golden" / "bert" / "hf"


def expected(name):
    return np.load(GOLDEN / name / "io.npz")


def inputs_of(io):
    return {
        "token_ids": jnp.asarray(io["input_ids"]),
        "segment_ids": jnp.asarray(io["token_type_ids"]),
        "mask": jnp.asarray(io["attention_mask"] == 1),
    }


def run(module, variables, inputs, **options):
    """One compiled call, at full float32."""
    apply = functools.partial(module.apply, **options)
    with jax.default_matmul_precision("highest"):
        return jax.jit(apply)(variables, **inputs)


def tiny(**changes):
    fields = dict(
        vocab_size=29, width=12, depth=2, mlp_width=20, num_heads=3, max_positions=11
    )
    return Bert(**{**fields, **changes})


TOKENS = {"token_ids": jnp.arange(14).reshape(2, 7) % 29}


# --- exact equalities -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "encoder", "pretraining"),
    [
        ((2, 128, 2, 30522), 4_385_920, 4_433_468),
        ((4, 256, 4, 30522), 11_170_560, 11_267_900),
        ((12, 768, 12, 30522), 109_482_240, 110_106_428),
        ((24, 1024, 16, 30522), 335_141_888, 336_226_108),
        ((12, 768, 12, 28996), 108_310_272, None),
    ],
)
def test_parameter_counts_are_those_of_the_released_models(
    fields, encoder, pretraining
):
    depth, width, heads, vocabulary = fields

    def count(**heads_of):
        module = Bert(
            vocabulary,
            width=width,
            depth=depth,
            mlp_width=4 * width,
            num_heads=heads,
            **heads_of,
        )
        tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
        tree = jax.eval_shape(module.init, jax.random.key(0), tokens)
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert count(heads=()) == encoder
    assert pretraining is None or count() == pretraining


def test_predictions_at_positions_are_those_of_all_positions():
    module = tiny()
    variables = module.init(jax.random.key(0), **TOKENS)
    positions = jnp.array([[1, 6, 3], [0, 2, 2]])
    every = run(module, variables, TOKENS)["mlm_logits"]
    some = run(module, variables, {**TOKENS, "mlm_positions": positions})["mlm_logits"]
    chosen = jnp.take_along_axis(every, positions[..., None], axis=1)
    # The same sums in products of another shape.
    np.testing.assert_allclose(some, chosen, rtol=0, atol=1e-6)


# --- invariances ------------------------------------------------------------------------


def test_padding_changes_nothing():
    module, variables = load_pretrained(GOLDEN / "pretraining")
    io = expected("pretraining")
    inputs = inputs_of(io)
    row = int(inputs["mask"].sum(axis=1).argmin())
    length = int(inputs["mask"][row].sum())
    assert length < inputs["mask"].shape[1]
    cut = {name: array[row : row + 1, :length] for name, array in inputs.items()}
    noise = jnp.where(inputs["mask"], inputs["token_ids"], 7)
    padded = run(module, variables, {**inputs, "token_ids": noise})
    alone = run(module, variables, cut)
    for name in ("tokens", "mlm_logits"):
        # A softmax over more keys, all but `length` of them zero: another order of sums.
        np.testing.assert_allclose(
            padded[name][row, :length], alone[name][0], rtol=0, atol=2e-5
        )


def test_rematerialisation_changes_no_gradient():
    module, again = tiny(dropout=0.0), tiny(dropout=0.0, remat=True)
    variables = module.init(jax.random.key(0), **TOKENS)

    def gradient(one):
        def loss(variables):
            return jnp.square(one.apply(variables, **TOKENS)["mlm_logits"]).sum()

        return jax.jit(jax.grad(loss))(variables)

    # The same operations, fused otherwise; gradients are of the size of 1.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(module),
        gradient(again),
    )


def test_dropout_is_drawn_in_training_only():
    module = tiny()
    variables = module.init(jax.random.key(0), **TOKENS)
    quiet = run(module, variables, TOKENS)["tokens"]
    noisy = run(
        module, variables, TOKENS, train=True, rngs={"dropout": jax.random.key(1)}
    )["tokens"]
    assert np.array_equal(quiet, run(module, variables, TOKENS)["tokens"])
    assert np.abs(quiet - noisy).max() > 0.1


# --- numbers of transformers ------------------------------------------------------------


def test_pretraining_outputs_are_those_of_transformers():
    module, variables = load_pretrained(GOLDEN / "pretraining")
    io = expected("pretraining")
    outputs = run(module, variables, inputs_of(io))
    # float32 torch is 8.5e-6 off its own float64.
    np.testing.assert_allclose(
        outputs["mlm_logits"], io["prediction_logits"], rtol=0, atol=2e-5
    )
    np.testing.assert_allclose(
        outputs["nsp_logits"], io["seq_relationship_logits"], rtol=0, atol=2e-5
    )


def test_a_model_without_heads_has_the_outputs_of_transformers():
    module, variables = load_pretrained(GOLDEN / "model")
    assert module.heads == ()
    assert module.gelu == "tanh"  # gelu_new; erf would be 1e-3 off
    io = expected("model")
    outputs = run(module, variables, inputs_of(io))
    for ours, theirs in [("tokens", "last_hidden_state"), ("pooled", "pooler_output")]:
        np.testing.assert_allclose(outputs[ours], io[theirs], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["pretraining", "model"])
def test_hidden_states_and_attention_are_those_of_transformers(name):
    module, variables = load_pretrained(GOLDEN / name)
    io = expected(name)
    _, state = run(module, variables, inputs_of(io), mutable=["intermediates"])
    seen = state["intermediates"]
    hidden = [seen["embedding_output"][0]]
    hidden += [seen[f"block_{i}"]["block_output"][0] for i in range(module.depth)]
    for i, array in enumerate(hidden):
        np.testing.assert_allclose(array, io[f"hidden_states_{i}"], rtol=0, atol=1e-5)
    real = (io["attention_mask"] == 1)[:, None, :, None]  # rows of padding mean nothing
    for i in range(module.depth):
        ours = seen[f"block_{i}"]["attention"]["attention"][0]
        np.testing.assert_allclose(
            ours * real, io[f"attentions_{i}"] * real, rtol=0, atol=1e-5
        )


def test_blocks_are_those_of_a_published_classifier(shared):
    """Of the classifier all is published but its embedding tables."""
    golden = np.load(shared / "golden/bert/bert_tiny_emotion/encoder.npz")
    block = Block(
        attention=MultiHeadAttention(2, parent=None),
        mlp_width=512,
        activation=GELU["erf"],
        kernel_init=jax.nn.initializers.zeros,
        dropout=0.0,
        norm_epsilon=1e-12,
        dtype="float32",
    )
    x = jnp.asarray(golden["embedded_input"])[None]
    for layer in ("l0", "l1"):
        params = convert_block(golden, layer, num_heads=2)
        apply = functools.partial(block.apply, train=False, mutable=["intermediates"])
        with jax.default_matmul_precision("highest"):
            x, state = jax.jit(apply)({"params": params}, x, None)
        [weights] = state["intermediates"]["attention"]["attention"]
        for ours, theirs in [(x, "hidden"), (weights, "attention_probs")]:
            # Theirs is float64; the tanh GELU is 1.7e-3 off.
            np.testing.assert_allclose(
                ours[0], golden[f"out/{layer}.{theirs}"], rtol=0, atol=1e-5
            )


def convert_block(golden, layer, num_heads):
    def dense(name):
        weights = golden[f"{layer}.{name}.w_in_out"], golden[f"{layer}.{name}.b"]
        return dict(zip(("kernel", "bias"), weights, strict=True))

    def norm(name):
        return {
            "scale": golden[f"{layer}.{name}_g"],
            "bias": golden[f"{layer}.{name}_b"],
        }

    attention = {name: dense(name) for name in ("query", "key", "value")}
    for leaves in attention.values():
        leaves["kernel"] = np.stack(np.split(leaves["kernel"], num_heads, 1), 1)
        leaves["bias"] = np.stack(np.split(leaves["bias"], num_heads))
    attention["out"] = dense("attn_out")
    attention["out"]["kernel"] = np.stack(
        np.split(attention["out"]["kernel"], num_heads)
    )
    return {
        "attention": attention,
        "mlp": {"dense_1": dense("mlp_in"), "dense_2": dense("mlp_out")},
        "norm_1": norm("selfoutput.ln"),
        "norm_2": norm("output.ln"),
    }


def test_gradients_are_those_of_transformers():
    module, variables = load_pretrained(GOLDEN / "pretraining")
    io = expected("pretraining")
    inputs = inputs_of(io)
    labels, follows = io["label_labels"], io["label_next_sentence_label"]
    asked = jnp.asarray(labels != -100)

    def loss(params):
        outputs = module.apply({"params": params}, **inputs)
        each = optax.softmax_cross_entropy_with_integer_labels(
            outputs["mlm_logits"], jnp.where(asked, labels, 0)
        )
        nsp = optax.softmax_cross_entropy_with_integer_labels(
            outputs["nsp_logits"], jnp.asarray(follows)
        )
        return (each * asked).sum() / asked.sum() + nsp.mean()

    with jax.default_matmul_precision("highest"):
        value, gradient = jax.jit(jax.value_and_grad(loss))(variables["params"])
    np.testing.assert_allclose(value, io["loss"], rtol=0, atol=1e-5)
    theirs = dict(np.load(GOLDEN / "pretraining" / "grads.npz"))
    theirs = {convert.modernize_name(name): array for name, array in theirs.items()}
    wanted = convert.read_params(module, theirs, "grads.npz", heads_chosen=False)
    flat, tree = jax.tree.flatten_with_path(gradient)
    assert tree == jax.tree.structure(wanted)
    for (path, ours), array in zip(flat, jax.tree.leaves(wanted), strict=True):
        # Gradients of up to 1 or so, float32 sums over 56 positions; the tied table has
        # the sum of both its uses.
        np.testing.assert_allclose(
            ours, array, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )


def test_each_dialect_has_its_own_gelu():
    google, hf = tiny(dialect="google"), tiny(dialect="hf")
    variables = google.init(jax.random.key(0), **TOKENS)
    louder = jax.tree.map(lambda x: 10 * x, variables)
    ours, theirs = (run(m, louder, TOKENS)["tokens"] for m in (google, hf))
    assert 1e-5 < np.abs(ours - theirs).max() < 1e-2
    chosen = run(tiny(dialect="hf", gelu="tanh"), louder, TOKENS)["tokens"]
    np.testing.assert_array_equal(chosen, ours)


# --- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_positions": 5}, "has 7 tokens, but max_positions=5; shorten"),
        ({"pooler": False}, "'nsp' reads the pooled token"),
        ({"heads": ("cls",)}, "'cls' is not a head; use 'mlm'"),
        ({"num_heads": 5}, "width=12 must be divisible by num_heads=5"),
    ],
)
def test_a_model_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(tiny(**fields).init, jax.random.key(0), **TOKENS)
