"""BERT's heads, packed rows and checkpoints of TensorFlow: the numbers of the original code."""

import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bert import GOLDEN, inputs_of, run, tiny

from attn_jax.convert import load_pretrained
from attn_jax.convert.bert.read_tf1 import from_tf1
from attn_jax.models.bert import Bert, ChoiceHead, ClassHead, SpanHead, TagHead

pytestmark = pytest.mark.usefixtures("quick_compilation")

TF1 = GOLDEN.parent / "tf1"
HEADS = {
    "question_answering": (SpanHead(), {"start_logits": None, "end_logits": None}),
    "token_classification": (TagHead(5), {"tag_logits": "logits"}),
    "multiple_choice": (ChoiceHead(), {"choice_logits": "logits"}),
    "sequence_classification": (ClassHead(3), {"class_logits": "logits"}),
    "sequence_regression": (ClassHead(1), {"class_logits": "logits"}),
}


def find_golden(name, request):
    """The folder in this repository, else beside it."""
    if (GOLDEN / name).is_dir():
        return GOLDEN / name
    return request.getfixturevalue("shared") / "golden" / "bert" / "hf" / name


@pytest.mark.parametrize("name", HEADS)
def test_a_head_gives_the_logits_of_transformers(name, request):
    head, outputs_of = HEADS[name]
    folder = find_golden(name, request)
    module, variables = load_pretrained(folder)
    assert module.head == head
    assert module.heads == ()
    io = np.load(folder / "io.npz")
    outputs = run(module, variables, inputs_of(io))
    for ours, theirs in outputs_of.items():
        np.testing.assert_allclose(outputs[ours], io[theirs or ours], rtol=0, atol=2e-5)


def test_masked_words_of_transformers_alone(shared):
    folder = shared / "golden" / "bert" / "hf" / "maskedlm"
    module, variables = load_pretrained(folder)
    assert (module.heads, module.pooler, module.gelu) == (("mlm",), False, "tanh")
    io = np.load(folder / "io.npz")
    outputs = run(module, variables, inputs_of(io))
    np.testing.assert_allclose(outputs["mlm_logits"], io["logits"], rtol=0, atol=2e-5)


class Doubled(nn.Module):
    """A user's own head."""

    @nn.compact
    def __call__(self, tokens, pooled, mask, *, train=False):
        return {"doubled": 2 * pooled}


def test_a_head_of_the_user_is_like_ours():
    module = tiny(head=Doubled(), heads=())
    tokens = jnp.arange(12).reshape(2, 3, 2)
    outputs, _ = module.init_with_output(jax.random.key(0), tokens)
    assert outputs["doubled"].shape == (2, 3, 12)
    np.testing.assert_array_equal(outputs["doubled"], 2 * outputs["pooled"])


def test_several_batch_axes_are_the_rows_of_one():
    module = tiny(head=ChoiceHead())
    tokens = jnp.arange(24).reshape(2, 3, 4)
    variables = module.init(jax.random.key(0), tokens)
    together = run(module, variables, {"token_ids": tokens})
    rows = run(module, variables, {"token_ids": tokens.reshape(6, 4)})
    assert together["choice_logits"].shape == (2, 3)
    for name, array in rows.items():
        np.testing.assert_array_equal(together[name].reshape(array.shape), array)


@pytest.mark.parametrize("head", [ClassHead(2), ChoiceHead(), TagHead(2)])
def test_a_head_drops_its_input_in_training_only(head):
    module = tiny(head=head, heads=(), dropout=0.0, attention_dropout=0.0)
    tokens = jnp.arange(8).reshape(2, 4)
    variables = module.init(jax.random.key(0), tokens)
    outputs = [
        module.apply(
            variables, tokens, train=train, rngs={"dropout": jax.random.key(i)}
        )
        for i, train in enumerate((True, True, False))
    ]
    first, second, evaluated = ([*o.values()][-1] for o in outputs)
    assert np.abs(first - second).max() > 0
    np.testing.assert_array_equal(
        evaluated, [*module.apply(variables, tokens).values()][-1]
    )


@pytest.mark.parametrize("head", [ClassHead(2), ChoiceHead()])
def test_a_head_without_the_pooled_token_is_refused(head):
    module = tiny(head=head, heads=(), pooler=False)
    with pytest.raises(ValueError, match="Head reads the pooled token"):
        module.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))


# --- packed rows ------------------------------------------------------------------------


def test_packed_sequences_give_the_logits_of_each_alone():
    packed = np.load(GOLDEN.parent / "packing" / "packing.npz")
    module, variables = load_pretrained(GOLDEN / "pretraining")
    sequence_ids = jnp.asarray(packed["segment_ids"])
    outputs = run(
        module,
        variables,
        {
            "token_ids": jnp.asarray(packed["input_ids"]),
            "segment_ids": jnp.asarray(packed["token_type_ids"]),
            "sequence_ids": sequence_ids,
            "position_ids": jnp.asarray(packed["position_ids"]),
            "cls_positions": jnp.asarray(packed["cls_positions"]),
        },
    )
    real = np.asarray(sequence_ids > 0)
    for ours, theirs, where in [
        ("tokens", "last_hidden_state", real),
        ("mlm_logits", "prediction_logits", real),
        ("nsp_logits", "seq_relationship_logits", packed["cls_mask"] == 1),
    ]:
        assert where.any()
        np.testing.assert_allclose(
            outputs[ours][where], packed[theirs][where], rtol=0, atol=2e-5
        )


def test_a_sequence_sees_nothing_of_the_others_in_its_row():
    module = tiny()
    ids = jnp.array([[1, 2, 3, 4, 5, 6, 0]])
    inputs = {
        "token_ids": ids,
        "sequence_ids": jnp.array([[1, 1, 1, 2, 2, 2, 0]]),
        "position_ids": jnp.array([[0, 1, 2, 0, 1, 2, 0]]),
    }
    variables = module.init(jax.random.key(0), **inputs)
    before = run(module, variables, inputs)["tokens"]
    changed = {**inputs, "token_ids": ids.at[0, 4].set(9)}
    after = run(module, variables, changed)["tokens"]
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:6] != after[:, 3:6]).any(-1).all()
    assert np.isfinite(after).all()


# --- checkpoints of TensorFlow 1 --------------------------------------------------------


def test_a_checkpoint_of_tensorflow_gives_the_numbers_of_the_original():
    module, variables = load_pretrained(TF1)
    assert (module.dialect, module.heads) == ("google", ("mlm", "nsp"))
    io = np.load(TF1 / "io.npz")
    inputs = {
        "token_ids": jnp.asarray(io["input_ids"]),
        "segment_ids": jnp.asarray(io["segment_ids"]),
        "mask": jnp.asarray(io["input_mask"] == 1),
        "mlm_positions": jnp.asarray(io["masked_lm_positions"]),
    }
    outputs = run(module, variables, inputs)
    for ours, theirs, atol in [
        ("tokens", "sequence_output", 1e-5),
        ("pooled", "pooled_output", 1e-5),
        ("mlm_logits", "masked_lm_logits", 2e-5),
        ("nsp_logits", "next_sentence_logits", 2e-5),
    ]:
        np.testing.assert_allclose(outputs[ours], io[theirs], rtol=0, atol=atol)


def test_the_checkpoint_of_keras_bert_gives_the_numbers_of_the_original(shared):
    folder = shared / "golden" / "bert" / "tf1_checkpoint"
    module, variables = load_pretrained(folder / "bert_model.ckpt")
    io = np.load(folder / "io.npz")
    inputs = {
        "token_ids": jnp.asarray(io["input_ids"]),
        "segment_ids": jnp.asarray(io["segment_ids"]),
        "mask": jnp.asarray(io["input_mask"] == 1),
    }
    outputs = run(module, variables, inputs)
    # The weights are nearly those of a new model: a missing transpose would be small.
    np.testing.assert_allclose(
        outputs["tokens"], io["sequence_output"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    "name", ["model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001"]
)
def test_a_checkpoint_of_tensorflow_has_several_names(name):
    module, _ = load_pretrained(TF1 / name, heads=(), pooler=False, dtype="bfloat16")
    assert (module.heads, module.pooler, module.dtype) == ((), False, "bfloat16")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.ckpt.index", None, "lacks its index model.ckpt.index"),
        (
            "model.ckpt.data-00000-of-00001",
            None,
            "lacks model.ckpt.data-00000-of-00001",
        ),
        ("bert_config.json", None, "needs bert_config.json beside it"),
        ("model.ckpt.index", lambda d: d[:-100], "no whole index.*last bytes"),
        ("model.ckpt.index", lambda d: d[:500], "no whole index"),
        (
            "model.ckpt.index",
            lambda d: d[:100] + bytes([d[100] ^ 1]) + d[101:],
            "checksum of the block at 0 is wrong",
        ),
        ("model.ckpt.data-00000-of-00001", lambda d: d[:-8], "cut short: it has"),
        (
            "model.ckpt.data-00000-of-00001",
            lambda d: bytes([d[0] ^ 1]) + d[1:],
            "its bytes have changed",
        ),
        (
            "bert_config.json",
            lambda d: d.replace(b'"vocab_size": 60', b'"vocab_size": 59'),
            r"word_embeddings +\[60, 24\] +token_embedding/embedding \[59, 24\]",
        ),
    ],
)
def test_a_damaged_checkpoint_of_tensorflow_is_refused(name, change, message, tmp_path):
    shutil.copytree(TF1, tmp_path / "c")
    file = tmp_path / "c" / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=message):
        from_tf1(tmp_path / "c" / "model.ckpt")


def test_no_flipped_bit_of_a_checkpoint_of_tensorflow_is_read_in_silence(tmp_path):
    shutil.copytree(TF1, tmp_path / "c")
    rng = np.random.default_rng(0)
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        file = tmp_path / "c" / name
        data = file.read_bytes()
        # Not in the unused part of the footer, which no reader looks at.
        places = rng.integers(0, len(data) - 48, 40)
        for place in places:
            flipped = bytearray(data)
            flipped[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(flipped)
            with pytest.raises(ValueError):
                from_tf1(tmp_path / "c" / "model.ckpt")
        file.write_bytes(data)
    from_tf1(tmp_path / "c" / "model.ckpt")


def test_heads_of_fine_tuned_tensorflow_checkpoints_are_found(monkeypatch):
    from attn_jax.convert.bert import read_tf1

    arrays = read_tf1.read_tensorflow1(TF1 / "model.ckpt")
    arrays = {n: a for n, a in arrays.items() if not n.startswith("cls/")}
    for added, head in [
        (
            {"cls/squad/output_weights": (2, 24), "cls/squad/output_bias": (2,)},
            SpanHead(),
        ),
        ({"output_weights": (3, 24), "output_bias": (3,)}, ClassHead(3)),
    ]:
        extra = {n: np.ones(shape, np.float32) for n, shape in added.items()}
        monkeypatch.setattr(read_tf1, "read_tensorflow1", lambda _, e=extra: arrays | e)
        module, variables = load_pretrained(TF1)
        assert module == Bert(60, 24, 2, 40, 3, max_positions=20, heads=(), head=head)
        assert variables["params"]["head"]["logits"]["kernel"].shape[0] == 24
