"""Attention as arrays and as figures, of all four architectures."""

import inspect
import json
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import save_untrained

from attn_jax import config as config_lib
from attn_jax.__main__ import main
from attn_jax.analysis import attention_maps, figures
from attn_jax.analysis import bert as bert_figures
from attn_jax.data.vocabulary import SPECIALS
from attn_jax.models import bags, bert, hopfield, resnet, slot_attention, vit
from attn_jax.tasks.classify import Classify
from attn_jax.tasks.masked_lm import MaskedLM

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_maps_of_a_vit_are_in_the_order_of_its_blocks_and_sum_to_one():
    module = vit.ViT(
        num_classes=3, patch_size=2, width=4, depth=11, mlp_width=4, num_heads=2
    )
    images = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    rng = np.random.default_rng(0)  # the program of `init` takes seconds to compile
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
        jax.eval_shape(module.init, jax.random.key(1), images),
    )
    maps = attention_maps(module, variables, images=images)
    assert list(maps) == [f"block_{i}/attention" for i in range(11)]
    for weights in maps.values():
        assert weights.shape == (2, 2, 7, 7)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_maps_of_bert_leave_out_padding():
    module = bert.Bert(vocab_size=9, width=8, depth=2, mlp_width=8, num_heads=2)
    inputs = {
        "token_ids": jnp.arange(10).reshape(2, 5) % 9,
        "mask": jnp.arange(5)[None] < jnp.array([[5], [3]]),
    }
    variables = module.init(jax.random.key(0), **inputs)
    maps = attention_maps(module, variables, **inputs)
    assert list(maps) == ["block_0/attention", "block_1/attention"]
    assert maps["block_0/attention"][1, :, :, 3:].max() == 0


def test_maps_of_a_hopfield_network_are_its_last_association():
    module = hopfield.HopfieldPooling(hopfield.Hopfield(num_heads=2, max_updates=2))
    stored = jax.random.normal(jax.random.key(0), (3, 5, 8))
    variables = module.init(jax.random.key(1), stored)
    maps = attention_maps(module, variables, stored=stored)
    assert {path: w.shape for path, w in maps.items()} == {"hopfield": (3, 2, 1, 5)}


def test_maps_of_slot_attention_come_by_iteration_and_sum_over_slots():
    module = slot_attention.SlotAttention(
        num_slots=3, width=8, mlp_width=8, iterations=2
    )
    inputs = {
        "inputs": jax.random.normal(jax.random.key(0), (2, 6, 5)),
        "sample_keys": jax.random.split(jax.random.key(1), 2),
    }
    variables = module.init(jax.random.key(2), **inputs)
    maps = attention_maps(module, variables, **inputs)
    assert list(maps) == ["iteration_0", "iteration_1"]
    for weights in maps.values():
        assert weights.shape == (2, 1, 3, 6)
        np.testing.assert_allclose(weights.sum(-2), 1, rtol=1e-6)


def test_a_module_that_attends_to_nothing_is_named():
    module = bags.MeanPooling()
    with pytest.raises(ValueError, match="MeanPooling sows no `attention`"):
        attention_maps(module, {}, stored=jnp.ones((1, 2, 3)))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (vit.ViT(3, 2, 4, 1, 4, 2), "vit"),
        (bert.Bert(9, 8, 1, 8, 2), "bert"),
        (bags.BagClassifier(nn.Dense(3), bags.MeanPooling()), "bags"),
        (slot_attention.SlotAttentionAutoEncoder(3), "slot_attention"),
    ],
)
def test_figures_are_in_the_file_named_like_the_model_and_drawn_by_one_call(
    module, name
):
    drawing = figures.find_drawing(module)
    assert drawing.__name__ == f"attn_jax.analysis.{name}"
    assert list(inspect.signature(drawing.draw).parameters) == [
        *("module", "variables", "inputs"),
        *("batch", "assets", "folder"),
    ]


def test_a_fifth_architecture_needs_only_a_file(tmp_path, monkeypatch):
    (tmp_path / "perceiver.py").write_text("draw = 'drawn'")
    monkeypatch.setattr("attn_jax.analysis.__path__", [str(tmp_path)])
    perceiver = type("Perceiver", (nn.Module,), {})
    perceiver.__module__ = "attn_jax.models.perceiver.model"
    with monkeypatch.context() as context:
        context.delitem(sys.modules, "attn_jax.analysis.perceiver", raising=False)
        assert figures.find_drawing(perceiver()).draw == "drawn"
    del sys.modules["attn_jax.analysis.perceiver"]


TINY_VIT = {"width": 4, "depth": 1, "num_heads": 1, "mlp_width": 4, "num_classes": 0}
ENCODERS = {
    "strides that round up": {
        "encoder_channels": (4, 4),
        "encoder_kernels": (3, 3),
        "encoder_strides": (2, 2),
    },
    "patches of a ViT": {"backbone": vit.ViT(patch_size=(7, 1), **TINY_VIT)},
}


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_slots_are_drawn_on_the_grid_of_their_encoder(tmp_path, encoder):
    module = slot_attention.SlotAttentionAutoEncoder(
        num_slots=2,
        iterations=2,
        width=4,
        mlp_width=4,
        **encoder,
        decoder_initial_size=(7, 2),
        decoder_channels=(4,),
        decoder_kernels=(3, 3),
        decoder_strides=(1, 1),
    )
    inputs = {
        "images": jnp.zeros((1, 7, 2, 3)),
        "sample_keys": jax.random.split(jax.random.key(0), 1),
    }
    variables = jax.jit(module.init)(jax.random.key(1), **inputs)
    draw = figures.find_drawing(module).draw
    files = draw(module, variables, inputs, batch={}, assets={}, folder=tmp_path)
    assert [file.name for file in files] == OF_SLOTS
    with Image.open(tmp_path / "routing.png") as animation:
        assert animation.n_frames == 2


@pytest.mark.parametrize("module", [resnet.ResNet(3), nn.Dense(3)])
def test_a_model_without_a_file_of_figures_says_what_to_use_instead(module):
    name = type(module).__name__
    with pytest.raises(ValueError, match=f"{name} has no figure yet.*attention_maps"):
        figures.find_drawing(module)


OF_A_VIT = [
    "attention.png",
    "heads.png",
    "rollout.png",
    "distance.png",
    "position.png",
    "filters.png",
    "analysis.npz",
]
OF_SLOTS = ["slots.png", "iterations.png", "routing.png"]
FIGURES = {
    "configs/vit/digits.py": OF_A_VIT,
    "configs/bert/pretrain_stdlib.py": ["attention.png", "filled_masks.png"],
    "configs/hopfield/digit_bags.py": ["association.png", "completion.png"],
    "configs/hopfield/vit_pooling.py": OF_A_VIT,
    "configs/slot_attention/tetrominoes.py": OF_SLOTS,
}


@pytest.mark.parametrize("recipe", FIGURES)
def test_analyze_draws_the_figures_of_a_run(recipe, tmp_path, capsys):
    settings = ["evals={}", "keep_best=null"]
    config = config_lib.load(f"{ROOT / recipe}:debug", settings)
    save_untrained(config, tmp_path / "run")
    capsys.readouterr()
    main(["analyze", f"--workdir={tmp_path / 'run'}", "--examples=2"])
    files = [pathlib.Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in files] == FIGURES[recipe]
    for file in files:
        assert file.parent == tmp_path / "run" / "analysis"
        if file.suffix == ".png":
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("L"))
            assert pixels.std() > 5, "an empty page"


def test_bert_is_drawn_over_the_sentence_of_the_user(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        bert_figures, "draw_heads", lambda *given: drawn.append(given) or given[2]
    )
    pieces = (*SPECIALS, "a", "list", ".")
    task = MaskedLM(data="none", vocab_size=8, sequence_length=8, next_sentence=False)
    vocabulary = {"vocab.txt": "".join(f"{piece}\n" for piece in pieces)}
    batch = figures.make_text_batch(task.bind(vocabulary), "A [MASK] .")
    module = bert.Bert(8, width=8, depth=1, mlp_width=8, num_heads=2, heads=())
    inputs = {k: v for k, v in task.inputs(batch).items() if k != "mlm_positions"}
    variables = module.init(jax.random.key(0), **inputs)
    bert_figures.draw(
        module, variables, inputs, batch=batch, assets=vocabulary, folder=tmp_path
    )
    ((_, tokens, _),) = drawn
    assert tokens == ["[CLS]", "a", "[MASK]", ".", "[SEP]"]


def test_true_words_of_masks_are_those_that_count():
    batch = {
        "mlm_positions": np.array([[1, 2, 0], [4, 7, 0]]),
        "mlm_labels": np.array([[8, 9, 0], [5, 6, 0]]),
        "mlm_valid": np.array([[True, True, False], [True, False, False]]),
    }
    assert bert_figures.read_true_words(batch, 0) == {1: 8, 2: 9}
    assert bert_figures.read_true_words(batch, 1) == {4: 5}
    assert bert_figures.read_true_words({}, 0) == {}  # a sentence of the user


class Sure(nn.Module):
    """Is sure of class 1 of three."""

    @nn.compact
    def __call__(self, images):
        return {"logits": jnp.tile(jnp.array([0.0, 20.0, 0.0]), (len(images), 1))}


@pytest.mark.parametrize(
    ("labeled", "caption"),
    [
        (True, "cat, 100 % (true: dog)\n...ry_long_name_of_a.png"),
        (False, "cat, 100 %\n...ry_long_name_of_a.png"),  # images of the user
    ],
)
def test_a_caption_tells_prediction_truth_and_file(labeled, caption):
    task = Classify(
        data="none", num_classes=3, class_names=("owl", "cat", "dog"), image_size=2
    )
    images = jnp.zeros((1, 2, 2, 3))
    batch = {"images": images, "labels": jnp.array([2])}
    source = [{"name": "folder/a_very_very_long_name_of_a.png"}]
    found = figures.caption_rows(Sure(), {}, task, batch, source, labeled=labeled)
    assert found == [caption]


def test_a_sentence_for_images_is_refused(copied):
    with pytest.raises(ValueError, match="the task Classify reads no text"):
        main(["analyze", f"--workdir={copied}", "--text=a list ."])


def test_analyze_of_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        main(["analyze", f"--workdir={tmp_path}"])


def test_a_saved_config_draws_only_classes_of_ours(tmp_path):
    config = config_lib.load(
        f"{ROOT}/configs/vit/digits.py:debug", ["duration=1 steps"]
    )
    saved = config_lib.to_plain(config)
    saved["model"]["cls"] = "subprocess:Popen"
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="may only name classes below attn_jax"):
        main(["analyze", f"--workdir={tmp_path}"])
