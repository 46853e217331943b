"""BERT checkpoints of transformers: layouts of the same file, and files that lie.

That a loaded model gives the numbers of transformers is tested in test_bert.py.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from test_bert import GOLDEN, expected, inputs_of, run

from attn_jax import paths
from attn_jax.convert import load_pretrained
from attn_jax.convert.arrays import write_arrays
from attn_jax.convert.bert.names import bert_entries
from attn_jax.convert.files import write_safetensors
from attn_jax.models.bert import Bert

pytestmark = pytest.mark.usefixtures("quick_compilation")


def variant(name, folder):
    """A Hugging Face folder with one of the variants as its weights."""
    source = GOLDEN / "loader_variants"
    shutil.copy(source / "config.json", folder / "config.json")
    shutil.copy(source / f"{name}.safetensors", folder / "model.safetensors")
    return folder


def test_old_names_and_a_stored_decoder_load_alike(tmp_path):
    _, variables = load_pretrained(GOLDEN / "pretraining")
    _, legacy = load_pretrained(variant("legacy_names", tmp_path))
    jax.tree.map(np.testing.assert_array_equal, variables, legacy)


def test_an_encoder_without_prefix_loads_without_heads(tmp_path):
    module, variables = load_pretrained(variant("no_prefix_encoder_only", tmp_path))
    assert module.heads == ()
    _, whole = load_pretrained(GOLDEN / "pretraining", heads=())
    jax.tree.map(np.testing.assert_array_equal, variables, whole)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(dtype, tmp_path):
    module, variables = load_pretrained(variant(dtype, tmp_path))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    outputs = run(module, variables, inputs_of(expected("pretraining")))
    io = expected("loader_variants")
    for ours, theirs in [
        ("mlm_logits", "prediction_logits"),
        ("nsp_logits", "seq_relationship_logits"),
    ]:
        np.testing.assert_allclose(
            outputs[ours], io[f"{dtype}_{theirs}"], rtol=0, atol=2e-5
        )


def test_a_config_of_2019_is_read_by_its_arrays_and_defaults(tmp_path):
    """It has neither `model_type` nor `layer_norm_eps`."""
    config = json.loads((GOLDEN / "pretraining" / "config.json").read_text())
    for key in (
        "model_type",
        "layer_norm_eps",
        "type_vocab_size",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
    ):
        del config[key]
    shutil.copy(GOLDEN / "pretraining" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    module, variables = load_pretrained(tmp_path)
    assert (module.norm_epsilon, module.num_segments) == (1e-12, 2)
    assert (module.dropout, module.attention_dropout) == (0.1, 0.1)
    _, expected = load_pretrained(GOLDEN / "pretraining")
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_the_table_of_names_writes_what_it_reads(tmp_path):
    """A configuration of 2019 (no model_type, no epsilon) beside arrays of our own."""
    config = {
        "hidden_act": "gelu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 24,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "type_vocab_size": 2,
        "vocab_size": 150,
    }
    model = Bert(
        150,
        width=32,
        depth=2,
        mlp_width=48,
        num_heads=4,
        max_positions=24,
        dialect="hf",
    )
    tokens = jnp.zeros((1, 3), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    leaves = {
        name: np.asarray(leaf)
        for name, leaf in paths.named_leaves(variables["params"]).items()
    }
    arrays = write_arrays(bert_entries(depth=2), leaves)
    write_safetensors(tmp_path / "model.safetensors", arrays)
    (tmp_path / "config.json").write_text(json.dumps(config))
    module, loaded = load_pretrained(tmp_path)
    assert module == model.clone(gelu="erf")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def rewritten(folder, change):
    """The pretraining checkpoint with its arrays changed in place."""
    shutil.copy(GOLDEN / "pretraining" / "config.json", folder / "config.json")
    arrays = safetensors.numpy.load_file(GOLDEN / "pretraining" / "model.safetensors")
    change(arrays)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    return folder


NORM = "bert.embeddings.LayerNorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop(NORM), "embeddings.LayerNorm.weight +missing"),
        (
            lambda a: a.update({NORM: np.ones(31, np.float32)}),
            r"LayerNorm.weight +\[31\] +embedding_norm/scale \[32\]",
        ),
        (
            lambda a: a.update({"classifier.weight": np.ones((3, 32), np.float32)}),
            r"heads=\(\)(.|\n)*classifier.weight",
        ),
        (
            lambda a: a.update(
                {"cls.predictions.decoder.weight": np.ones((120, 32), np.float32)}
            ),
            "is not the token table",
        ),
    ],
)
def test_a_checkpoint_with_other_arrays_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_pretrained(rewritten(tmp_path, change))


def test_a_file_cut_short_is_refused(tmp_path):
    folder = rewritten(tmp_path, lambda arrays: None)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole .safetensors file.*Fetch it again"):
        load_pretrained(folder)


def test_a_checkpoint_of_another_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="model_type='gpt2'; known: 'bert'"):
        load_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no config.json"):
        load_pretrained(GOLDEN)
    with pytest.raises(ValueError, match="does not exist"):
        load_pretrained(tmp_path / "nowhere")
