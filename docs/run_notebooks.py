"""Runs the notebooks of docs/notebooks, and writes what their cells print and draw.

    python docs/run_notebooks.py                # all of them
    python docs/run_notebooks.py vit            # docs/notebooks/vit.ipynb

Without Jupyter: a cell is Python, and the figures that it leaves open belong to it. So the suite
runs them, too (tests/test_notebooks.py).
"""

import base64
import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402, once the backend is chosen

FOLDER = pathlib.Path(__file__).parent / "notebooks"
DOTS = 80  # per inch


def run_notebook(notebook: dict[str, Any], name: str) -> None:
    """Runs the cells in order, in the present folder, and replaces their outputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        cell["execution_count"], cell["outputs"] = count, []
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"{name}[{count}]", "exec"), names)
        # Without the names of this machine's folders.
        text = printed.getvalue().replace(sys.executable, "python")
        text = text.replace(f"{os.getcwd()}{os.sep}", "")
        if text:
            lines = text.splitlines(keepends=True)
            cell["outputs"].append(
                {"output_type": "stream", "name": "stdout", "text": lines}
            )
        cell["outputs"] += [describe_figure(number) for number in plt.get_fignums()]
        plt.close("all")


def describe_figure(number: int) -> dict[str, Any]:
    """The output of a cell that shows a figure, as a PNG."""
    file = io.BytesIO()
    plt.figure(number).savefig(file, format="png", dpi=DOTS, bbox_inches="tight")
    data = base64.b64encode(file.getvalue()).decode()
    return {"output_type": "display_data", "metadata": {}, "data": {"image/png": data}}


def main() -> None:
    for name in sys.argv[1:] or sorted(file.stem for file in FOLDER.glob("*.ipynb")):
        file = FOLDER / f"{name}.ipynb"
        notebook = json.loads(file.read_text())
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            run_notebook(notebook, name)
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
