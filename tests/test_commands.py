"""The commands: what they take from a run's folder, and what they print."""

import json
import re
import subprocess

import jax
import numpy as np
import pytest
from runs import FROZEN, check_equal, differ, tiny, write_classes

import attn_jax
import train
from attn_jax.commands import export
from attn_jax.convert import label_names, load_pretrained, pixel_statistics
from attn_jax.convert.card import describe_training
from attn_jax.convert.checkpoints import name_classes
from attn_jax.restore import open_saved
from attn_jax.version import describe_code

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def insects(tmp_path_factory):
    """A run on images of three named classes, not square, with ImageNet's statistics."""
    folder = tmp_path_factory.mktemp("insects")
    changes = FROZEN | {
        "task.data": write_classes(
            folder / "abc.zip", ["ant", "bee", "cat"], {"train": 8}
        ),
        "task.num_classes": 3,
        "task.class_names": ["cat", "ant", "bee"],
        "task.channels": 3,
        "task.image_size": [8, 24],
        "task.holdout": 0,
        "task.mean": IMAGENET["mean"],
        "task.std": IMAGENET["std"],
        "model.num_classes": 3,
        "model.pool": "cls",
        "model.position": "learned",
        "batch_size": 8,
    }
    train.train(tiny(changes), str(folder / "run"))
    return str(folder / "run")


@pytest.mark.parametrize("git", [True, False])
def test_the_code_of_a_checkout_is_its_commit(git, tmp_path, monkeypatch):
    def run(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)

    file = tmp_path / "attn_jax" / "version.py"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr("attn_jax.version.__file__", str(file))
    if git:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        run("init", "--quiet")
        run("add", ".")
        run(*who, "commit", "--quiet", "-m", "a")
        assert re.fullmatch(r"[\d.]+, commit [0-9a-f]{7,}", describe_code())
        file.write_text("changed")
        assert describe_code().endswith(" with changes")
    else:
        assert describe_code() == attn_jax.__version__


def test_an_exported_run_keeps_its_class_names_size_and_statistics(
    insects, tmp_path, capsys
):
    folder = tmp_path / "hf"
    export.main([f"--workdir={insects}", "--to=hf", f"--out={folder}"])
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "ant", "2": "bee"}
    assert config["image_size"] == [8, 24]
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == IMAGENET["mean"]
    assert processor["image_std"] == IMAGENET["std"]
    assert processor["size"] == {"height": 8, "width": 24}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-class")
    assert "# run\n" in card and "| data | abc.zip |" in card
    assert f"| recipe | `vit/digits:debug` |\n| attn_jax | {describe_code()} |" in card
    assert "Metrics" not in card  # it was not evaluated

    images = jax.random.normal(jax.random.key(0), (2, 8, 24, 3))
    module, variables, _ = attn_jax.restore(insects)
    again, params = load_pretrained(folder)
    ours, theirs = (
        jax.jit(m.apply)(v, images)["logits"]
        for m, v in ((module, variables), (again, params))
    )
    # Written and read in float32 without arithmetic; only the order of sums may differ.
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_converted_checkpoint_keeps_what_the_first_one_said(insects, tmp_path):
    folder, file = tmp_path / "hf", tmp_path / "vit.safetensors"
    export.main([f"--workdir={insects}", "--to=hf", f"--out={folder}"])
    size = ["--image_size", "8", "24"]
    export.main([f"--from={folder}", "--to=timm", f"--out={file}", *size])
    assert label_names(file) == ("cat", "ant", "bee")
    assert pixel_statistics(file) == pixel_statistics(insects)


def test_the_card_of_a_model_has_the_metrics_of_its_checkpoint(finished):
    record = open_saved(finished[1]).record
    lines = describe_training(record)
    accuracy = record["results"]["validation/accuracy"]
    assert f"| validation/accuracy | {accuracy:.4g} |" in lines
    assert f"## Metrics at step {record['step']}" in lines
    assert f"| batch_size | {record['config']['batch_size']} |" in lines


def test_outputs_without_a_name_are_numbered(finished):
    names = name_classes(str(finished[1]), 12)
    assert names[8:] == ["8", "9", "LABEL_10", "LABEL_11"]
    assert name_classes(str(finished[1]), 0) is None


@pytest.mark.parametrize("params", ["ema", "raw"])
def test_an_earlier_step_or_the_raw_parameters_can_be_exported(
    finished, tmp_path, params
):
    out = tmp_path / "vit.safetensors"
    steps = sorted(int(p.name) for p in (finished[1] / "checkpoints").iterdir())
    flags = [f"--step={steps[0]}", f"--params={params}"]
    export.main([f"--workdir={finished[1]}", "--to=timm", f"--out={out}", *flags])
    _, expected, _ = attn_jax.restore(finished[1], step=steps[0], params=params)
    _, last, _ = attn_jax.restore(finished[1])
    found = load_pretrained(out)[1]["params"]["head"]
    check_equal(found, expected["params"]["head"])
    earlier_or_raw = steps[0] != steps[-1] or params == "raw"
    assert differ(found, last["params"]["head"]) == earlier_or_raw
