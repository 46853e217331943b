"""Saved configs of older releases: what they say now means what it meant then."""

import json
import pathlib
import zipfile

import pytest

from attn_jax import config as config_lib
from attn_jax import migrations, resume
from attn_jax.migrations import Migration, migrate

ROOT = pathlib.Path(__file__).parent.parent
WORKDIRS = ROOT / "tests" / "golden" / "workdirs"
OURS = ("attn_jax",)


@pytest.fixture
def first():
    """The config of a run of format 0."""
    with zipfile.ZipFile(WORKDIRS / "digits_first.zip") as archive:
        return json.loads(archive.read("config.json"))


def digits():
    return config_lib.load(f"{ROOT}/configs/vit/digits.py:debug")


def test_a_config_without_a_format_resolves_to_what_it_said(first):
    assert "format" not in first
    resolved = config_lib.to_plain(config_lib.resolve(first, OURS))
    assert resolved["format"] == migrations.current_format()
    flat = config_lib.flatten(resolved)
    assert {k: flat[k] for k in config_lib.flatten(first)} == config_lib.flatten(first)


def test_a_run_of_an_older_format_differs_in_nothing_from_its_own_recipe(first):
    settings = ["model.depth=1", "model.width=8", "model.mlp_width=8"]
    new = config_lib.load(
        f"{ROOT}/configs/vit/digits.py:debug", [*settings, 'log_every="1 steps"']
    )
    _, different = config_lib.differences(first, new)
    assert different == ["task.exif_rotation: False -> True"]  # as it was, and is now
    adopted, notes = resume.adopt_saved_fields(new, migrate(first))
    assert notes == ["task.exif_rotation=False, as when the run began"]
    assert config_lib.differences(first, adopted) == (
        ["recipe:  -> vit/digits:debug"],
        [],
    )


def test_migrating_twice_changes_nothing(first):
    once = migrate(first)
    assert migrate(once) == once


def test_a_moved_class_is_found_in_every_section(first):
    old = "attn_jax.models.hopfield:"
    first["model"] = {
        "cls": old + "BagClassifier",
        "encoder": {"cls": old + "ImageEncoder", "channels": [4], "width": 4},
        "pooling": {
            "cls": old + "HopfieldPooling",
            "hopfield": {"cls": old + "Hopfield"},
        },
    }
    model = config_lib.resolve(first, OURS).model
    assert model.cls == "attn_jax.models.bags:BagClassifier"
    assert model.encoder.cls == "attn_jax.models.bags:ImageEncoder"
    assert model.pooling.cls == old + "HopfieldPooling"  # stays where it was
    config_lib.build(model, OURS)


def test_a_recipe_that_names_a_moved_class_is_told_its_new_name():
    section = {"cls": "attn_jax.models.hopfield:MeanPooling"}
    with pytest.raises(
        ValueError, match="it is now 'attn_jax.models.bags:MeanPooling'"
    ):
        config_lib.build(section)


CLASSIFY = "attn_jax.tasks.classify:Classify"


@pytest.fixture
def later(monkeypatch):
    """A release that renamed, removed and added fields and knobs."""
    migration = Migration(
        knobs={"seed": 5},
        fields={CLASSIFY: {"erase": 0.25}},
        renamed={CLASSIFY: {"mirror": "flip"}},
        removed={CLASSIFY: {"cutout": "use 'erase', its share of the area."}},
    )
    monkeypatch.setattr(
        migrations, "MIGRATIONS", (*migrations.MIGRATIONS, migration), raising=True
    )


def test_missing_knobs_and_fields_get_the_value_that_meant_the_same(first, later):
    del first["seed"], first["task"]["erase"]
    config = config_lib.resolve(first, OURS)
    assert (config.seed, config.task.erase) == (5, 0.25)
    first["task"]["erase"] = 0.5  # what was saved counts
    assert config_lib.resolve(first, OURS).task.erase == 0.5
    assert digits().task.erase == 0.0  # a new run has the default


def test_a_renamed_field_is_moved_also_where_an_evaluation_overrides_it(first, later):
    del first["task"]["flip"]
    first["task"]["mirror"] = True
    first["evals"]["test"]["task"] = {"mirror": False}
    config = config_lib.resolve(first, OURS)
    assert config.task.flip is True and config.evals.test.task.flip is False
    assert set(config.evals.test.task) == {"flip"}  # and nothing is added there


def test_a_removed_field_names_its_successor(first, later):
    first["task"]["cutout"] = 1
    with pytest.raises(
        ValueError, match="config.task.cutout is no longer.*use 'erase'"
    ):
        config_lib.resolve(first, OURS)
    recipe = f"{ROOT}/configs/vit/digits.py:debug"
    with pytest.raises(ValueError, match="task.cutout: nothing reads .*use 'erase'"):
        config_lib.load(recipe, ["task.cutout=1"])
    with pytest.raises(ValueError, match="task.mirror: nothing .*called 'flip' now"):
        config_lib.load(recipe, ["task.mirror=true"])


def test_a_config_of_a_newer_release_is_refused(first):
    with pytest.raises(ValueError, match="format=99 was saved by a newer.*Update attn"):
        config_lib.resolve(first | {"format": 99}, OURS)
