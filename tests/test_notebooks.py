"""The notebooks run as they stand, print and draw."""

import copy
import json

import pytest
from pages import DOCS, load_script

pytestmark = pytest.mark.usefixtures("quick_compilation")

NAMES = ("vit", "bert", "hopfield", "slot_attention")


def read(name):
    return json.loads((DOCS / "notebooks" / f"{name}.ipynb").read_text())


def kinds(notebook):
    """What each cell of code has as outputs."""
    return [
        {output["output_type"] for output in cell["outputs"]}
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_has_the_outputs_of_its_cells(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = read(name)
    found = copy.deepcopy(stored)
    load_script("run_notebooks").run_notebook(found, name)
    assert kinds(found) == kinds(stored)
    assert any("display_data" in kind for kind in kinds(stored))


def test_every_notebook_is_run():
    assert {file.stem for file in (DOCS / "notebooks").glob("*.ipynb")} == set(NAMES)


def test_a_cell_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [{"cell_type": "code", "source": ["1 / 0"], "outputs": []}]
    with pytest.raises(ZeroDivisionError) as failure:
        load_script("run_notebooks").run_notebook({"cells": cells}, "mine")
    assert str(failure.traceback[-1].path).endswith("mine[1]")
