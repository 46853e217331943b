"""The wheel: it has the recipes and the loop, and trains in a folder without a checkout."""

import json
import shutil

import processes
import pytest

SOURCES = (
    "attn_jax",
    "configs",
    "train.py",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the wheel is installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves files behind where it builds
    source.mkdir()
    for name in SOURCES:
        path = processes.ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / name, ignore=ignored)
        else:
            shutil.copy(path, source)
    process = processes.start("-c", BUILD, folder, folder=source)
    status, out, err = processes.finish(process)
    assert status == 0, err
    target = folder / "site"
    shutil.unpack_archive(folder / out.splitlines()[-1], target, "zip")
    return target


def test_the_wheel_trains_and_evaluates_in_an_empty_folder(installed, tmp_path):
    (tmp_path / "configs").mkdir()  # of the user: not ours
    (tmp_path / "configs" / "__init__.py").write_text("")
    train = processes.train(tmp_path / "run", "--config.duration=2 steps")
    train = [word.replace("configs/vit/digits.py", "vit/digits") for word in train]
    for command in (
        ["-m", "attn_jax", "train", *train[1:]],
        ["-m", "attn_jax", "evaluate", "--workdir=run"],
    ):
        process = processes.start(*command, folder=tmp_path, PYTHONPATH=str(installed))
        status, out, err = processes.finish(process)
        assert status == 0, err
    assert json.loads(out.splitlines()[-1])["step"] == 2


def test_an_error_of_the_wheel_is_one_line(installed, tmp_path):
    command = ["-m", "attn_jax", "train", "--config=vit/digts", "--workdir=run"]
    process = processes.start(*command, folder=tmp_path, PYTHONPATH=str(installed))
    status, out, err = processes.finish(process)
    assert (status, out) == (1, "")
    assert err.startswith("error: --config=vit/digts is not a recipe; did you mean")
    assert err.count("\n") == 1


def test_the_wheel_has_one_version_its_types_and_its_command(installed):
    [info] = installed.glob("attn_jax-*.dist-info")
    code = "import attn_jax; print(attn_jax.__version__, attn_jax.__file__)"
    process = processes.start("-c", code, PYTHONPATH=str(installed), folder=installed)
    version, file = processes.finish(process)[1].split()
    assert info.name == f"attn_jax-{version}.dist-info"
    assert file == str(installed / "attn_jax" / "__init__.py")
    assert (installed / "attn_jax" / "py.typed").is_file()
    scripts = (info / "entry_points.txt").read_text()
    assert "attn-jax = attn_jax.__main__:run" in scripts
    assert not list(installed.glob("configs")) + list(installed.glob("train.py"))
