"""Finds and loads recipes: files of a user, and those that come with attn_jax.

In a checkout the latter are `configs/`; a wheel has them, and train.py, in `attn_jax/bundled`.
"""

import contextlib
import importlib.util
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

from attn_jax.folder import expand_local
from attn_jax.values import suggest

PACKAGE = pathlib.Path(__file__).resolve().parent


class Recipe(NamedTuple):
    """A recipe that comes with attn_jax."""

    name: str  # such as "vit/digits"
    title: str  # the first sentence of its docstring
    variants: tuple[str, ...]


def find_root() -> pathlib.Path:
    """The folder that holds `configs` and train.py."""
    bundled = PACKAGE / "bundled"
    return bundled if bundled.is_dir() else PACKAGE.parent


def list_recipes() -> list[Recipe]:
    """All recipes that come with attn_jax, sorted by name."""
    recipes = []
    for name in list_names():
        module = load_recipe(find_recipe(name))
        title = (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        recipes.append(Recipe(name, title, tuple(module.VARIANTS)))
    return recipes


def list_names() -> list[str]:
    folder = find_root() / "configs"
    return sorted(
        file.relative_to(folder).with_suffix("").as_posix()
        for file in folder.glob("*/*.py")
        if not file.name.startswith("_")
    )


def find_recipe(name: str) -> pathlib.Path:
    """The file of `path/to/recipe.py`, or of a name such as "vit/digits".

    Raises:
        ValueError: there is none.
    """
    file = expand_local(name)
    if file.is_file():
        return file
    known = list_names()
    if name in known:
        return find_root() / "configs" / f"{name}.py"
    if name.endswith(".py"):
        raise ValueError(
            f"--config={name}: there is no file {name}; name a recipe such as "
            "configs/vit/digits.py or vit/digits, with :variant behind it if it is not the "
            "default."
        )
    raise ValueError(f"--config={name} is not a recipe; {suggest(name, known)}")


def load_recipe(file: pathlib.Path) -> ModuleType:
    """Runs the file of a recipe.

    Raises:
        ValueError: the file is not Python, or has no `VARIANTS` and `get_config`.
    """
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(
            f"--config={file} is not a Python file. To resume a run, name the recipe that "
            "it was started with."
        )
    module = importlib.util.module_from_spec(spec)
    with importable_configs(file):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config") or not hasattr(module, "VARIANTS"):
        raise ValueError(
            f"--config={file} is not a recipe: it needs VARIANTS and get_config."
        )
    return module


@contextlib.contextmanager
def importable_configs(file: pathlib.Path) -> Iterator[None]:
    """Lets a recipe import `configs.common`.

    Our recipes import our `configs`, even where the user has a package of that name; any
    other recipe imports the user's, if there is one.
    """
    root = find_root()
    ours = file.resolve().is_relative_to(root)
    hidden = {} if not ours or has_our_configs(root) else pop_configs()
    sys.path.insert(0 if ours else len(sys.path), str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        if hidden:
            pop_configs()
            sys.modules.update(hidden)


def has_our_configs(root: pathlib.Path) -> bool:
    imported = sys.modules.get("configs")
    paths = [] if imported is None else list(imported.__path__)
    return imported is None or str(root / "configs") in paths


def pop_configs() -> dict[str, ModuleType]:
    """Removes the package `configs` and its modules from those that are imported."""
    names = [name for name in sys.modules if name.partition(".")[0] == "configs"]
    return {name: sys.modules.pop(name) for name in names}
