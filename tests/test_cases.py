"""Inputs that were once read wrongly without a word, from their file to their result."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from runs import (
    COLOURS,
    FROZEN,
    ROOT,
    check_equal,
    encode,
    records,
    save_untrained,
    tell_colours,
    tiny_bert,
    toy,
    write_classes,
    write_text,
)

import attn_jax
import train
from attn_jax import config as config_lib
from attn_jax.convert import export, load_pretrained
from attn_jax.models.bert import Bert

pytestmark = pytest.mark.usefixtures("quick_compilation")


# --- classes are matched by name ----------------------------------------------------------


@pytest.fixture(scope="module")
def insects(tmp_path_factory):
    """(workdir, data) of a run that tells three classes apart without an error."""
    folder = tmp_path_factory.mktemp("insects")
    data = write_classes(folder / "abc.zip", COLOURS, {"train": 16, "test": 6})
    train.train(tell_colours(data), str(folder / "run"))
    return folder / "run", data


def test_other_data_is_evaluated_by_the_class_names_of_the_run(insects, tmp_path):
    run, _ = insects
    assert attn_jax.evaluate(run, trust=["runs"])["test/accuracy"] == 1
    some = write_classes(tmp_path / "bc.zip", ["bee", "cat"], {"test": 6})
    results = attn_jax.evaluate(run, overrides={"task.data": some}, trust=["runs"])
    assert results["test/accuracy"] == 1


def test_a_class_that_the_run_does_not_know_is_refused(insects, tmp_path):
    other = write_classes(tmp_path / "other.zip", ["bee", "wasp"], {"test": 6})
    with pytest.raises(ValueError, match="'?wasp") as refused:
        attn_jax.evaluate(insects[0], overrides={"task.data": other}, trust=["runs"])
    assert "\n" not in str(refused.value)


# --- text is read with the vocabulary of the run ------------------------------------------


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """(workdir, data) of a run on text."""
    folder = tmp_path_factory.mktemp("reader")
    data = write_text(folder / "a.txt")
    train.train(tiny_bert(data), str(folder / "run"))
    return folder / "run", data


def masked_word_loss(folder):
    [*_, last] = [line for line in records(folder) if "validation/mlm_loss" in line]
    return last["validation/mlm_loss"]


def test_a_renamed_copy_of_the_text_gives_the_same_loss(reader, tmp_path):
    run, data = reader
    copy = str(shutil.copy(data, tmp_path / "renamed.txt"))
    results = attn_jax.evaluate(run, overrides={"task.data": copy})
    assert results == attn_jax.evaluate(run)
    assert results["validation/mlm_loss"] == masked_word_loss(run)


@pytest.mark.parametrize("exported", [False, True])
def test_going_on_from_a_checkpoint_starts_at_its_loss(reader, tmp_path, exported):
    run, data = reader
    start = run
    if exported:
        module, variables, _ = attn_jax.restore(run)
        start = tmp_path / "exported"
        words = {"vocab.txt": (run / "assets/vocab.txt").read_text()}
        export(module, variables, start, "hf", vocabulary=words)
    changes = FROZEN | {
        "init_from": [[str(start), "", ""]],
        "task.vocabulary": str(start),
    }
    del changes["evals"]
    train.train(tiny_bert(data, changes), str(tmp_path / "on"))
    # The same parameters and rows; other parameters are 0.1 and more away.
    assert abs(masked_word_loss(tmp_path / "on") - masked_word_loss(run)) < 1e-4


def test_a_run_from_another_reads_other_text_with_its_vocabulary(reader, tmp_path):
    run, _ = reader
    data = write_text(tmp_path / "b.txt", {"watched": "described"})
    changes = FROZEN | {"init_from": [[str(run), "", ""]], "duration": "1 steps"}
    del changes["evals"]
    train.train(tiny_bert(data, changes), str(tmp_path / "on"))
    words = (run / "assets/vocab.txt").read_text()
    assert (tmp_path / "on/assets/vocab.txt").read_text() == words
    assert masked_word_loss(tmp_path / "on") < masked_word_loss(run) + 0.5

    # What it guards against: a vocabulary of the new text's own would be another.
    save_untrained(tiny_bert(data), tmp_path / "new")
    own = (tmp_path / "new/assets/vocab.txt").read_text()
    assert own != words
    changes["task.vocabulary"] = str(tmp_path / "new")
    with pytest.raises(ValueError, match="two different vocabularies for one task"):
        train.train(tiny_bert(data, changes), str(tmp_path / "refused"))


def test_text_of_single_sentences_is_refused_for_next_sentences(tmp_path):
    data = write_text(tmp_path / "text.txt", {".\n": ".\n\n"})
    with pytest.raises(ValueError, match="sentence") as refused:
        train.train(tiny_bert(data), str(tmp_path / "run"))
    assert "\n" not in str(refused.value)
    assert data in str(refused.value)


# --- images -------------------------------------------------------------------------------


def image_run(data, **changes):
    return toy(
        {
            "task.data": str(data),
            "task.image_size": 6,
            "task.channels": 3,
            "task.holdout": 0,
            "task.crop": "none",
            "task.num_classes": 2,
            "model.num_classes": 2,
            "batch_size": 8,
            "duration": "2 steps",
            **changes,
        }
    )


@pytest.mark.parametrize("packed", [True, False])
def test_every_image_of_a_class_is_read_and_all_others_are_named(
    packed, tmp_path, capsys
):
    names = ["cat/a.png", "cat/b.png", "cat/2020/c.png", "cat/d.jfif", "dog/a.png"]
    names += ["dog/b.png", "loose.png", "dog/notes.txt", ".DS_Store"]
    for name in names:
        file = tmp_path / "data/train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode((200, 90, 40)))
    data = tmp_path / "data"
    if packed:
        data = shutil.make_archive(str(tmp_path / "packed"), "zip", data)
    train.train(image_run(data), str(tmp_path / "run"))
    [line] = re.findall("^data: .*", capsys.readouterr().out, re.MULTILINE)
    assert line.startswith("data: 6 records (left out: ")
    assert "1 beside the class folders: train/loose.png" in line
    assert "1 of another suffix: train/dog/notes.txt" in line
    assert "1 hidden: train/.DS_Store" in line


def write_two_classes(folder, name, data):
    for label in "ab":
        (folder / "train" / label).mkdir(parents=True)
        (folder / "train" / label / name).write_bytes(data)
    return folder


def read_image(config):
    task = config_lib.build(config.task)
    return task.example(task.source("train")[0], None)["images"]


def test_a_photograph_is_turned_upright_unless_the_config_says_no(tmp_path):
    pixels = np.zeros((12, 16, 3), np.uint8)
    pixels[:6, :8] = 255  # the upper left quarter
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right: the quarter comes to the upper right
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif)
    data = write_two_classes(tmp_path / "data", "photo.jpg", file.getvalue())
    size = {"task.image_size": [16, 12]}
    turned = read_image(image_run(data, **size))
    assert turned.shape == (16, 12, 3)
    assert turned[:7, 7:].min() > 200 > 50 > turned[9:].max()
    left = read_image(
        image_run(data, **{"task.image_size": [12, 16], "task.exif_rotation": False})
    )
    assert left[:5, :7].min() > 200 > 50 > left[:, 9:].max()


def test_a_black_logo_shows_on_a_background_and_is_warned_of_without(tmp_path, caplog):
    pixels = np.zeros((6, 6, 4), np.uint8)
    pixels[2:4, 2:4, 3] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = write_two_classes(tmp_path / "data", "logo.png", file.getvalue())
    assert not read_image(image_run(data)).any()
    assert "of 2 images looked at, 2 have transparency" in caplog.text
    caplog.clear()
    image = read_image(image_run(data, **{"task.background": [255, 255, 255]}))
    assert (image == np.where(pixels[..., 3:] > 0, 0, 255)).all()
    assert "transparency" not in caplog.text


# --- checkpoints of others ----------------------------------------------------------------


def test_a_config_of_an_early_bert_is_read_by_what_the_arrays_are(tmp_path):
    """Without `model_type`, `layer_norm_eps`, ...; values of google-research/bert."""
    theirs = ROOT / "tests/golden/bert/hf/pretraining"
    shutil.copytree(theirs, tmp_path / "new")
    shutil.copytree(theirs, tmp_path / "old")
    file = tmp_path / "old/config.json"
    whole = json.loads(file.read_text())
    sizes = {
        key: whole[key]
        for key in (
            "hidden_size",
            "intermediate_size",
            "max_position_embeddings",
            "num_attention_heads",
            "num_hidden_layers",
            "vocab_size",
        )
    }
    file.write_text(json.dumps(sizes))
    module, variables = load_pretrained(tmp_path / "old")
    assert isinstance(module, Bert)
    assert (module.norm_epsilon, module.num_segments) == (1e-12, 2)
    assert (module.dropout, module.attention_dropout) == (0.1, 0.1)
    before, expected = load_pretrained(tmp_path / "new")
    assert module == before
    check_equal(variables, expected)


def test_the_files_that_showed_these_faults_are_read_rightly(shared, tmp_path, capsys):
    cases = shared / "cases"
    if not cases.is_dir():
        pytest.skip(f"{cases} is absent")
    train.train(image_run(cases / "nested.zip"), str(tmp_path / "nested"))
    assert "data: 6 records (left out: 1 beside" in capsys.readouterr().out
    with pytest.raises(ValueError, match="sentence"):
        train.train(
            tiny_bert(str(cases / "one_sentence_documents.txt")), str(tmp_path / "text")
        )
    for name, size in (
        ("photo_exif6.jpg", [16, 12]),
        ("logo_black_on_transparent.png", 6),
    ):
        data = (cases / name).read_bytes()
        folder = write_two_classes(tmp_path / name, name, data)
        changes = {"task.image_size": size, "task.background": [255, 255, 255]}
        assert read_image(image_run(folder, **changes)).any()
