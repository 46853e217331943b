"""Puts train.py and configs/ into the wheel, as attn_jax/bundled; the rest is in pyproject.toml."""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent


class BuildWithRecipes(build_py):
    """An editable installation finds both in the checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = pathlib.Path(self.build_lib, "attn_jax", "bundled")
        shutil.rmtree(target, ignore_errors=True)
        recipes = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "configs", target / "configs", ignore=recipes)
        shutil.copy(ROOT / "train.py", target)


setup(cmdclass={"build_py": BuildWithRecipes})
