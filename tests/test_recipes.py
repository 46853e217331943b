"""Recipes: found by name or file, listed, and explained key by key."""

import sys

import pytest

from attn_jax import config as config_lib
from attn_jax import recipe_help, recipes
from attn_jax.commands import recipes as command
from attn_jax.knobs import KNOBS


@pytest.fixture
def users_configs(tmp_path, monkeypatch):
    """A folder with a package `configs` of the user's, which is imported."""
    package = tmp_path / "configs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "own.py").write_text("SEED = 7\n")
    saved = recipes.pop_configs()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    recipes.pop_configs()
    sys.modules.update(saved)


def test_a_name_is_the_recipe_of_its_file():
    file = recipes.find_root() / "configs/vit/digits.py"
    assert recipes.find_recipe("vit/digits") == file
    assert config_lib.load("vit/digits:debug") == config_lib.load(f"{file}:debug")


def test_a_file_of_the_user_comes_before_a_recipe_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "digits").write_text("")
    assert recipes.find_recipe("vit/digits").resolve() == tmp_path / "vit/digits"


@pytest.mark.parametrize("name", ["vit/digit", "digits", "vit", ""])
def test_an_unknown_name_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match="vit/digits|is empty"):
        recipes.find_recipe(name)


def test_our_recipes_load_beside_a_package_configs_of_the_user(users_configs):
    import configs.own

    assert config_lib.load("vit/digits:debug").seed == 0
    assert sys.modules["configs.own"] is configs.own
    assert "configs.common" not in sys.modules


def test_a_recipe_of_the_user_imports_their_package_configs(users_configs):
    recipe = users_configs / "recipe.py"
    recipe.write_text(
        "from configs import own\nVARIANTS = ()\ndef get_config(): return own.SEED\n"
    )
    assert recipes.load_recipe(recipe).get_config() == 7


def test_a_recipe_of_the_user_may_import_our_common_keys(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from configs import common\nVARIANTS = ()\nget_config = common.get_config\n"
    )
    saved = recipes.pop_configs()
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if entry != str(recipes.find_root())]
    try:
        assert recipes.load_recipe(recipe).get_config().seed == 0
    finally:
        sys.path[:] = path
        sys.modules.update(saved)


def test_all_recipes_are_listed_with_a_title_and_their_variants(capsys):
    command.main([])
    out = capsys.readouterr().out
    for name in recipes.list_names():
        assert f"\n{name} " in f"\n{out}"
    found = {recipe.name: recipe for recipe in recipes.list_recipes()}
    assert found["vit/digits"].variants == ("base", "debug")
    assert found["vit/digits"].title.startswith("ViT on 1,797 real handwritten digits")
    assert all(recipe.title for recipe in found.values())


@pytest.mark.parametrize(
    "name",
    [
        "vit/finetune:debug",
        "bert/glue:debug",
        "hopfield/vit_pooling:debug",
        "slot_attention/tetrominoes:debug",
    ],
)
def test_every_key_of_a_recipe_is_explained_with_its_value(name):
    config = config_lib.load(name)
    text = recipe_help.describe(name, config)
    leaves = config_lib.to_plain(config)
    for section in ("model", "task", "optimizer", "schedule"):
        for key, value in leaves[section].items():
            if key in ("cls", "name"):
                assert str(value) in text
            elif isinstance(value, dict) and "cls" in value:
                assert f"{section}.{key}: {value['cls']}\n" in text
            else:
                assert f"  {section}.{key}={value!r}  (" in text
    for key in KNOBS.keys() - {"model", "task", "optimizer", "schedule", "evals"}:
        assert f"\n  {key}={leaves[key]!r}  (" in text


def test_every_top_level_key_has_a_meaning():
    meanings = recipe_help.read_comments()
    assert {key for key in KNOBS if not meanings.get(key)} == {"task"}  # as `model`
    assert meanings["seed"] == "of initialization, data order, augmentation, dropout"
    assert meanings["mesh"] == "Where: mesh axes in devices; -1 takes all that remain."


def test_fields_share_a_meaning_and_may_have_several_lines():
    text = """Title.

    Attributes:
        mean, std: of the pixels,
            one number: or several.
        other: as `mean`.

    Raises:
        ValueError: never.
    """
    assert recipe_help.parse_entries(text.replace("\n    ", "\n")) == {
        "mean": "of the pixels, one number: or several.",
        "std": "of the pixels, one number: or several.",
        "other": "as `mean`.",
    }
