"""Who may import whom: the table of docs/architecture.md, enforced by reading the source."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FREE = {*sys.stdlib_module_names, "numpy", "jaxtyping", "absl"}

# What every task may import besides FREE.
TASK = {
    "attn_jax.bounds",
    "attn_jax.data",
    "attn_jax.metrics",
    "attn_jax.probes",
    "attn_jax.scores",
    "attn_jax.segmentation",
    "attn_jax.sets",
    "optax",
    "jax",
}

# {file or folder: what it may import besides FREE}; the longest match holds. A name covers
# what lies below it; "*" is every package of others, "attn_jax" all of ours but APART.
ALLOWED = {
    "configs": {"ml_collections", "configs.common"},  # and _sizes, see is_allowed
    "train.py": {
        "jax",
        *(
            f"attn_jax.{room}"
            for room in (
                "config run resume initialize step step_metrics checkpoint workdir "
                "launch runtime agreement logs metrics"
            ).split()
        ),
    },
    "attn_jax/models": {
        "attn_jax.attention",
        "attn_jax.bounds",
        "attn_jax.convolution",
        "attn_jax.layers",
        "flax",
        "jax",
    },
    "attn_jax/tasks": TASK,
    # A kind of classification.
    "attn_jax/tasks/classify_sets.py": {*TASK, "attn_jax.tasks.classify"},
    "attn_jax/step.py": {"flax.struct", "attn_jax.paths", "optax", "jax"},
    "attn_jax": {"attn_jax", "*"},
    "attn_jax/convert": {"attn_jax", "attn_jax.models", "*"},
    "attn_jax/analysis": {"attn_jax", "attn_jax.models", "attn_jax.analysis", "*"},
    "attn_jax/commands": {"attn_jax", "attn_jax.analysis", "attn_jax.commands", "*"},
    "attn_jax/__main__.py": {"attn_jax", "attn_jax.commands", "*"},
}
# What "attn_jax" does not cover: a rule must name it.
APART = {
    "attn_jax.models",
    "attn_jax.analysis",
    "attn_jax.commands",
    "attn_jax.__main__",
}
NEVER = {"tensorflow", "torch"}

FILES = [
    ROOT / "train.py",
    *ROOT.glob("configs/**/*.py"),
    *ROOT.glob("attn_jax/**/*.py"),
]


def imported_names(source):
    """Every name that the source imports, also inside functions, as "package.module"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def covers(allowed, name):
    return name == allowed or name.startswith(allowed + ".")


def is_allowed(path, name):
    if any(covers(package, name) for package in NEVER):
        return False
    if any(covers(package, name) for package in FREE):
        return True
    rules = [rule for rule in ALLOWED if path == rule or path.startswith(rule + "/")]
    allowed = set(ALLOWED[max(rules, key=len)])
    if path.startswith("attn_jax/models/") and path.count("/") > 2:
        # A model that is a folder is one model: its files may import each other.
        allowed.add(".".join(pathlib.PurePath(path).parts[:3]))
    if path.startswith("configs/"):
        allowed.add(".".join(pathlib.PurePath(path).parts[:2]) + "._sizes")
    apart = any(covers(module, name) for module in APART)
    if any(covers(a, name) for a in allowed if not (apart and a == "attn_jax")):
        return True
    ours = name.split(".")[0] in ("attn_jax", "configs", "train", "tests", "")
    return "*" in allowed and not ours


@pytest.mark.parametrize("path", [str(file.relative_to(ROOT)) for file in FILES])
def test_every_file_imports_only_what_the_table_allows(path):
    names = imported_names((ROOT / path).read_text())
    refused = [name for name in names if not is_allowed(path, name)]
    assert not refused, (
        f"{path} imports {refused}; see ALLOWED in this test. Pass what it needs as an "
        "argument, name it as a string in the config, or move the code."
    )


@pytest.mark.parametrize(
    ("path", "statement"),
    [
        ("configs/vit/digits.py", "from attn_jax.models.vit import ViT"),
        ("configs/vit/digits.py", "from configs.bert import _sizes"),
        ("configs/vit/digits.py", "from configs.vit import b16"),
        ("configs/vit/digits.py", "import jax"),
        ("train.py", "from attn_jax.models.vit import ViT"),
        ("train.py", "from attn_jax.tasks import classify"),
        ("train.py", "from attn_jax.convert import vit"),
        ("train.py", "import attn_jax"),
        ("attn_jax/models/vit.py", "from attn_jax.models.resnet import ResNet"),
        ("attn_jax/models/vit.py", "def f(): from attn_jax import step"),
        ("attn_jax/models/vit.py", "from . import resnet"),
        ("attn_jax/models/hopfield/layers.py", "from attn_jax.models import bags"),
        ("attn_jax/tasks/classify.py", "from attn_jax.models import vit"),
        ("attn_jax/tasks/classify.py", "from attn_jax.tasks import bags"),
        ("attn_jax/step.py", "from flax import linen"),
        ("attn_jax/step.py", "from attn_jax import tasks"),
        ("attn_jax/config.py", "from attn_jax.models.vit import ViT"),
        ("attn_jax/config.py", "from attn_jax import models"),
        ("attn_jax/config.py", "import attn_jax.analysis"),
        ("attn_jax/config.py", "from configs import common"),
        ("attn_jax/config.py", "import train"),
        ("attn_jax/convert/vit.py", "from attn_jax import analysis"),
        ("attn_jax/convert/vit.py", "import torch"),
        ("attn_jax/analysis/maps.py", "import attn_jax.__main__"),
        ("attn_jax/config.py", "from attn_jax.commands import evaluate"),
        ("attn_jax/commands/evaluate.py", "from attn_jax.models import vit"),
        ("attn_jax/commands/evaluate.py", "import attn_jax.__main__"),
        ("attn_jax/__main__.py", "import tensorflow.io"),
    ],
)
def test_the_table_refuses(path, statement):
    assert not all(is_allowed(path, name) for name in imported_names(statement))


@pytest.mark.parametrize(
    ("path", "statement"),
    [
        ("configs/vit/digits.py", "from configs.vit._sizes import SIZES"),
        ("configs/vit/digits.py", "from configs import common"),
        ("train.py", "from attn_jax.run import prepare"),
        ("train.py", "from attn_jax import checkpoint, step"),
        ("attn_jax/models/vit.py", "from attn_jax.attention import attend"),
        (
            "attn_jax/models/hopfield/layers.py",
            "from attn_jax.models.hopfield.equations import retrieve",
        ),
        ("attn_jax/step.py", "from flax import struct"),
        ("attn_jax/evaluation.py", "from attn_jax import step, tasks"),
        ("attn_jax/convert/vit.py", "from attn_jax.models.vit import ViT"),
        ("attn_jax/__main__.py", "from attn_jax import commands"),
        ("attn_jax/commands/analyze.py", "from attn_jax.analysis import maps"),
    ],
)
def test_the_table_allows(path, statement):
    assert all(is_allowed(path, name) for name in imported_names(statement))


IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "torch"):
            raise ImportError(f"{name} is refused in this test")

sys.meta_path.insert(0, Refuse())
import attn_jax, train
for module in pkgutil.walk_packages(attn_jax.__path__, "attn_jax."):
    importlib.import_module(module.name)
assert not {"tensorflow", "torch"} & set(sys.modules)
print(sum(name.startswith("attn_jax") for name in sys.modules))
"""


def test_everything_imports_where_tensorflow_and_torch_cannot():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_EVERYTHING],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 1


def test_the_picture_of_imports_is_up_to_date_and_has_no_cycle():
    command = [sys.executable, str(ROOT / "docs" / "draw_imports.py"), "--check"]
    check = subprocess.run(command, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
