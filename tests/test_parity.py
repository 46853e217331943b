"""Exported models in the libraries they are for: transformers and timm give the same logits.

`make parity` runs this in an environment of its own; elsewhere it is skipped, since PyTorch is
no dependency. What is exported here was read from files of all four code bases.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import attn_jax
from attn_jax.convert import export, load_pretrained
from attn_jax.convert.vit.read_timm import derive_timm_options
from attn_jax.data.vocabulary import SPECIALS, make_tokenizer
from attn_jax.models import bert
from attn_jax.models.vit import ViT

WHY = "`make parity` installs {} and runs this test"
torch = pytest.importorskip("torch", reason=WHY.format("torch"))
timm = pytest.importorskip("timm", reason=WHY.format("timm"))
transformers = pytest.importorskip("transformers", reason=WHY.format("transformers"))

GOLDEN = pathlib.Path(__file__).parent / "golden" / "vit"

# The libraries raise warnings of their own, which are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

# Two float32 implementations of models of a few layers.
CLOSE = dict(rtol=0, atol=1e-5)


def made(**changes):
    """A model whose every parameter is away from its start, and its variables."""
    fields = dict(
        num_classes=5, patch_size=4, width=24, depth=2, mlp_width=48, num_heads=3
    )
    model = ViT(**{**fields, **changes})
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        x + 0.2 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return model, jax.tree.unflatten(treedef, leaves)


def pixels(size=16):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def ours(model, variables, images, output="logits", **options):
    return np.asarray(jax.jit(model.apply)(variables, images, **options)[output])


def as_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def by_timm(path, images):
    arguments = json.loads(path.with_suffix(".json").read_text())
    model = timm.models.vision_transformer.VisionTransformer(**arguments).eval()
    timm.models.load_checkpoint(model, str(path), strict=True)
    with torch.no_grad():
        return model(as_torch(images)).numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "gap"},
        {"pool": "gap", "norm_after_pool": False, "class_token": True},
        {"pool": "map"},
        {"registers": 2, "position_on": "patches"},
        {"registers": 3},
        {"layer_scale": 0.1, "qk_norm": True, "qkv_bias": False, "pre_norm": True},
        {"gelu": "tanh"},
        {"gelu": "quick"},
        {"position": "sincos2d"},
    ],
    ids=str,
)
def test_timm_gives_the_logits_of_what_it_is_given(changes, tmp_path):
    model, variables = made(dialect="timm", **changes)
    path = tmp_path / "m.safetensors"
    export(model, variables, path, "timm", image_size=16)
    found = by_timm(path, pixels())
    np.testing.assert_allclose(found, ours(model, variables, pixels()), **CLOSE)


@pytest.mark.parametrize(
    "file",
    ["google/token_ckpt.npz", "bigvision/map_learn_ckpt.npz", "hf/classification"],
)
def test_timm_reads_the_checkpoints_of_others_through_us(file, tmp_path):
    model, variables = load_pretrained(GOLDEN / file)
    export(model, variables, tmp_path / "m.safetensors", "timm")
    found = by_timm(tmp_path / "m.safetensors", pixels())
    np.testing.assert_allclose(found, ours(model, variables, pixels()), **CLOSE)


def test_every_architecture_of_timm_is_known_as_it_is_or_refused():
    """Heads, GELU and epsilon leave no trace in arrays; the Hub's config has only a name."""
    kinds = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
    known = 0
    for name in timm.list_models(["vit*", "deit*", "flexivit*", "eva*", "beit*"]):
        with torch.device("meta"):  # shapes alone
            model = timm.create_model(name)
        try:
            hidden = derive_timm_options(name, model.embed_dim, pathlib.Path(), {})
        except (ValueError, AttributeError):
            continue  # refused by name, or not even of one width
        if isinstance(model.blocks[0].mlp, timm.layers.GluMlp):
            continue  # refused by its arrays: the second matrix has half the rows
        known += 1
        assert type(model) is timm.models.vision_transformer.VisionTransformer, name
        block = model.blocks[0]
        assert type(block) is timm.models.vision_transformer.Block, name
        assert type(block.attn) is timm.layers.Attention, name
        epsilons = {part.eps for part in model.modules() if hasattr(part, "eps")}
        assert epsilons == {hidden["norm_epsilon"]}, name
        assert block.attn.num_heads == hidden["num_heads"], name
        assert kinds[type(block.mlp.act).__name__] == hidden["act_layer"], name
    assert known > 100


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gelu": "tanh"},
        {"gelu": "quick"},
        {"qkv_bias": False},
        {"position": "sincos2d"},
    ],
    ids=str,
)
def test_transformers_gives_the_logits_of_what_it_is_given(changes, tmp_path):
    model, variables = made(dialect="hf", **changes)
    export(model, variables, tmp_path, "hf", image_size=16)
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = theirs(as_torch(pixels())).logits.numpy()
    np.testing.assert_allclose(found, ours(model, variables, pixels()), **CLOSE)


def test_a_pipeline_of_transformers_gives_the_labels_that_predict_gives(tmp_path):
    model, variables = made(dialect="hf")
    labels, mean, std = list("abcde"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    known = dict(labels=labels, mean=mean, std=std)
    export(model, variables, tmp_path, "hf", image_size=16, **known)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    classify = transformers.pipeline("image-classification", str(tmp_path))
    theirs = classify(Image.fromarray(pixels))
    [ours] = attn_jax.predict(tmp_path, [pixels])
    assert [x["label"] for x in theirs] == [x["label"] for x in ours["predictions"]]
    np.testing.assert_allclose(
        [x["score"] for x in theirs],
        [x["probability"] for x in ours["predictions"]],
        **CLOSE,
    )


def test_transformers_gives_the_pooled_token_of_what_it_is_given(tmp_path):
    model, variables = made(dialect="hf", num_classes=0, representation_size=24)
    export(model, variables, tmp_path, "hf")
    theirs = transformers.ViTModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = theirs(as_torch(pixels())).pooler_output.numpy()
    expected = ours(model, variables, pixels(), "pooled")
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_transformers_fills_masked_patches_as_we_do(tmp_path):
    model, variables = made(
        dialect="hf", num_classes=0, mask_token=True, patch_outputs=48
    )
    export(model, variables, tmp_path, "hf")
    theirs = transformers.ViTForMaskedImageModeling.from_pretrained(tmp_path).eval()
    mask = np.arange(32).reshape(2, 16) % 3 == 0
    with torch.no_grad():
        found = theirs(
            as_torch(pixels()), torch.from_numpy(mask)
        ).reconstruction.numpy()
    expected = ours(
        model, variables, pixels(), "patch_logits", patch_mask=jnp.asarray(mask)
    )
    expected = expected.reshape(2, 4, 4, 3, 4, 4).transpose(0, 3, 1, 4, 2, 5)
    np.testing.assert_allclose(found, expected.reshape(2, 3, 16, 16), **CLOSE)


# --- BERT -------------------------------------------------------------------------------

# {class of transformers: (fields of ours, {our output: theirs})}
BERTS = {
    "BertModel": ({"heads": ()}, {"tokens": "last_hidden_state"}),
    "BertForPreTraining": (
        {},
        {"mlm_logits": "prediction_logits", "nsp_logits": "seq_relationship_logits"},
    ),
    "BertForMaskedLM": ({"heads": ("mlm",), "gelu": "erf"}, {"mlm_logits": "logits"}),
    "BertForNextSentencePrediction": ({"heads": ("nsp",)}, {"nsp_logits": "logits"}),
    "BertForSequenceClassification": (
        {"heads": (), "head": bert.ClassHead(3)},
        {"class_logits": "logits"},
    ),
    "BertForTokenClassification": (
        {"heads": (), "head": bert.TagHead(4)},
        {"tag_logits": "logits"},
    ),
    "BertForQuestionAnswering": (
        {"heads": (), "head": bert.SpanHead()},
        {"start_logits": "start_logits", "end_logits": "end_logits"},
    ),
    "BertForMultipleChoice": (
        {"heads": (), "head": bert.ChoiceHead()},
        {"choice_logits": "logits"},
    ),
}
PIECES = [*SPECIALS, *"abcdefgh", *(f"##{c}" for c in "abcdefgh"), *".,()!?"]


@pytest.mark.parametrize("name", BERTS)
def test_transformers_gives_the_logits_and_token_ids_of_our_bert(name, tmp_path):
    fields, outputs_of = BERTS[name]
    model = bert.Bert(
        len(PIECES), width=24, depth=2, mlp_width=32, num_heads=3, max_positions=12,
        **fields,
    )  # fmt: skip
    shape = (2, 3, 12) if name == "BertForMultipleChoice" else (2, 12)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(PIECES), shape)
    segments, mask = (
        rng.integers(0, 2, shape),
        np.arange(12) < rng.integers(6, 13, (*shape[:-1], 1)),
    )
    variables = model.init(jax.random.key(0), jnp.asarray(ids))
    variables = jax.tree.map(
        lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(np.float32), variables
    )
    assets = {"vocab.txt": "\n".join(PIECES), "text.json": '{"lower_case": true}'}
    export(model, variables, tmp_path, "hf", vocabulary=assets)
    theirs = getattr(transformers, name).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted = theirs(
            input_ids=torch.from_numpy(ids),
            token_type_ids=torch.from_numpy(segments),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
        )
    found = jax.jit(model.apply)(variables, ids, segments, mask)
    for output, attribute in outputs_of.items():
        np.testing.assert_allclose(
            found[output], getattr(wanted, attribute).numpy(), rtol=0, atol=2e-5
        )
    text = "Bad cab, (fed) " + "ab" * 60 + " éa !"
    ours = make_tokenizer(PIECES).encode(text, add_special_tokens=False).ids
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(text)["input_ids"] == [2, *ours, 3]
    assert tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
