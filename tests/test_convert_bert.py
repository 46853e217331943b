"""BERT checkpoints of transformers: layouts of the same file, and files that lie.

That a loaded model gives the numbers of transformers is tested in test_bert.py.
"""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from test_bert import GOLDEN, expected, inputs_of, run, tiny

from attn_jax import paths
from attn_jax.convert import export, label_names, load_pretrained
from attn_jax.convert.arrays import write_arrays
from attn_jax.convert.bert.names import bert_entries
from attn_jax.convert.files import write_safetensors
from attn_jax.data.vocabulary import SPECIALS, make_tokenizer, read_vocabulary
from attn_jax.models.bert import Bert, ChoiceHead, ClassHead, SpanHead, TagHead

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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_prefix_of_a_wrapper_is_left_out(prefix, tmp_path):
    def rename(arrays):
        for name in list(arrays):
            arrays[prefix + name] = arrays.pop(name)

    _, wrapped = load_pretrained(rewritten(tmp_path, rename))
    _, variables = load_pretrained(GOLDEN / "pretraining")
    jax.tree.map(np.testing.assert_array_equal, variables, wrapped)


def sharded(folder):
    """The pretraining checkpoint in two files with an index."""
    rewritten(folder, lambda arrays: None)
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(arrays), {}
    for part, chosen in (("a.safetensors", names[:9]), ("b.safetensors", names[9:])):
        safetensors.numpy.save_file({n: arrays[n] for n in chosen}, folder / part)
        weight_map |= dict.fromkeys(chosen, part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_arrays_in_several_files_are_read_by_their_index(tmp_path):
    sharded(tmp_path)
    _, parts = load_pretrained(tmp_path)
    _, variables = load_pretrained(GOLDEN / "pretraining")
    jax.tree.map(np.testing.assert_array_equal, variables, parts)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match="b.safetensors cannot be read"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("../a.safetensors", "must be the name of a .safetensors file in the same"),
        ("b.safetensors", "does not hold the arrays that .* lists for it"),
    ],
)
def test_an_index_that_lies_is_refused(part, message, tmp_path):
    index = sharded(tmp_path)
    listed = json.loads(index.read_text())
    name = next(n for n, file in listed["weight_map"].items() if file[0] == "a")
    listed["weight_map"][name] = part
    index.write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


def classifier(folder, outputs, **config):
    """The pretraining encoder with a layer called `classifier`."""

    def replace_heads(arrays):
        for name in [n for n in arrays if n.startswith("cls.")]:
            del arrays[name]
        arrays["classifier.weight"] = np.ones((outputs, 32), np.float32)
        arrays["classifier.bias"] = np.zeros(outputs, np.float32)

    rewritten(folder, replace_heads)
    saved = json.loads((folder / "config.json").read_text())
    del saved["architectures"]
    (folder / "config.json").write_text(json.dumps(saved | config))
    return folder


def test_a_classifier_without_a_name_is_told_by_its_outputs_or_by_the_caller(tmp_path):
    module, _ = load_pretrained(classifier(tmp_path, 3, classifier_dropout=0.3))
    assert module.head == ClassHead(3, dropout=0.3)
    classifier(tmp_path, 1)
    with pytest.raises(ValueError, match="does not say what classifier.weight with 1"):
        load_pretrained(tmp_path)
    module, variables = load_pretrained(tmp_path, head=ChoiceHead(), heads=())
    assert module.head == ChoiceHead()
    assert variables["params"]["head"]["logits"]["kernel"].shape == (32, 1)
    module, _ = load_pretrained(tmp_path, head=None)
    assert module.head is None
    with pytest.raises(ValueError, match="no Dense, only ClassHead"):
        load_pretrained(tmp_path, head=nn.Dense(1))


# --- written for transformers -----------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"heads": ()}, "BertModel"),
        ({"heads": ("mlm",), "gelu": "erf"}, "BertForMaskedLM"),
        ({"heads": ("nsp",)}, "BertForNextSentencePrediction"),
        ({"heads": ("mlm", "nsp"), "dialect": "hf"}, "BertForPreTraining"),
        ({"heads": (), "head": ClassHead(3)}, "BertForSequenceClassification"),
        ({"heads": (), "head": ClassHead(1)}, "BertForSequenceClassification"),
        ({"heads": (), "head": TagHead(2)}, "BertForTokenClassification"),
        ({"heads": (), "head": ChoiceHead()}, "BertForMultipleChoice"),
        ({"heads": (), "head": SpanHead()}, "BertForQuestionAnswering"),
    ],
)
def test_what_is_exported_loads_as_it_was(fields, name, tmp_path):
    module = tiny(**fields)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    export(module, variables, tmp_path, "hf")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [name]
    loaded, read = load_pretrained(tmp_path)
    assert loaded == module.clone(dialect="hf", gelu=module.gelu_kind)
    jax.tree.map(np.testing.assert_array_equal, variables, read)


PIECES = [*SPECIALS, *"abcdefgh", *(f"##{c}" for c in "abcdefgh"), *"ÉÄ.,()!?"]


def test_vocabulary_and_labels_are_exported_too(tmp_path):
    module = tiny(heads=(), head=TagHead(2))
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    assets = {
        "vocab.txt": "".join(f"{piece}\n" for piece in PIECES),
        "text.json": json.dumps({"lower_case": False}),
    }
    export(
        module, variables, tmp_path, "hf", vocabulary=assets, labels=["name", "place"]
    )
    assert label_names(tmp_path) == ("name", "place")
    saved = read_vocabulary(tmp_path)
    assert saved["vocab.txt"] == assets["vocab.txt"]
    assert json.loads(saved["text.json"]) == {"lower_case": False}
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = make_tokenizer(PIECES, lower_case=False)
    text = "bad É (cab), fegÄ! " + "a" * 150
    ids = ours.encode(text, add_special_tokens=False).ids
    assert theirs.encode(text).ids == [2, *ids, 3]
    assert theirs.encode("ab", "c").type_ids == [0, 0, 0, 0, 1, 1]
    # Newer versions of transformers save tokenizer.json alone.
    (tmp_path / "vocab.txt").unlink()
    assert read_vocabulary(tmp_path) == saved


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        (
            {"head": ClassHead(2)},
            {},
            "no model with the heads mlm, nsp and a ClassHead",
        ),
        ({"heads": (), "head": nn.Dense(2)}, {}, "have no Dense, only ClassHead"),
        ({}, {"labels": ["a"]}, "labels are for a model with a head"),
        (
            {"heads": (), "head": ClassHead(2)},
            {"labels": ["a"]},
            "there are 1 different labels, but the head has 2 outputs",
        ),
        (
            {"vocab_size": 30},
            {"vocabulary": {"vocab.txt": "\n".join(PIECES)}},
            "the vocabulary has 29 word pieces, but the model 30",
        ),
        ({}, {"format": "timm"}, "a BERT has the format 'hf'"),
        ({}, {"mean": 0.5, "std": 0.5}, "neither image_size, mean nor std"),
    ],
)
def test_a_bert_that_cannot_be_exported_is_refused(fields, options, message, tmp_path):
    options = {"format": "hf", **options}
    with pytest.raises(ValueError, match=message):
        export(tiny(**fields), {"params": {}}, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"].update(type="BPE"), "its model is no WordPiece"),
        (lambda d: d.update(normalizer=None), "its normalizer is not BertNormalizer"),
        (
            lambda d: d["normalizer"].update(strip_accents=False),
            "strip_accents=False is not supported",
        ),
        (lambda d: d["model"]["vocab"].pop("a"), "its ids are not 0, 1, 2"),
        (lambda d: d["model"].update(vocab=7), "its vocabulary is damaged"),
    ],
)
def test_a_tokenizer_that_is_not_of_bert_is_refused(change, message, tmp_path):
    make_tokenizer(PIECES).save(str(tmp_path / "tokenizer.json"))
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    change(described)
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=f"tokenizer.json: {message}"):
        read_vocabulary(tmp_path)


# --- files that lie ---------------------------------------------------------------------


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
