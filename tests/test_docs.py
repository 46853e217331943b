"""The code of the pages runs as it stands, and prints what stands below it."""

import contextlib
import io
import re
import textwrap

import numpy as np
import pytest
from pages import (
    DOCS,
    ROOT,
    find_commands,
    find_files,
    find_python,
    find_trees,
    list_files,
    split_training,
)
from PIL import Image

import train
from attn_jax import config as config_lib
from attn_jax.__main__ import main
from attn_jax.data import bag_tables, feature_rows, labeled_texts, sources

PAGE = DOCS / "hopfield.md"
NUMBER = r"-?\d+\.?\d*(?:e[+-]\d+)?"


pytestmark = pytest.mark.usefixtures("quick_compilation")


def read_examples(page):
    """(code, printed text or "") of every example, in order."""
    found = re.findall(r"```python\n(.*?)```\n((?:\n?    [^\n]*\n)*)", page, re.DOTALL)
    return [(code, textwrap.dedent(printed).strip("\n")) for code, printed in found]


def check_printed(found, expected):
    """The words are equal; numbers may differ in rounding on another processor."""
    assert re.sub(NUMBER, "#", found).split() == re.sub(NUMBER, "#", expected).split()
    pair = [[float(x) for x in re.findall(NUMBER, text)] for text in (found, expected)]
    np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-6)


def test_examples_print_what_the_page_says():
    names = {}
    examples = read_examples(PAGE.read_text())
    for code, expected in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, PAGE.name, "exec"), names)
        check_printed(printed.getvalue(), expected)
    assert any("HopfieldPooling(" in code for code, _ in examples)


def test_other_output_is_noticed():
    [(code, expected)] = read_examples("```python\nprint(1.5)\n```\n\n    1.5 of\n")
    assert (code, expected) == ("print(1.5)\n", "1.5 of")
    for other in ("1.5 in", "1.6 of", "1.5"):
        with pytest.raises(AssertionError):
            check_printed(other, expected)


def test_the_model_task_source_and_recipe_of_a_user_train_evaluate_and_predict(
    tmp_path, monkeypatch, capsys
):
    page = (DOCS / "extend.md").read_text()
    for name, code in find_files(page).items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    done = []
    for words in find_commands(page):
        done.append(words[0])
        if words[0] == "train":
            [workdir] = [w.split("=")[1] for w in words if w.startswith("--workdir")]
            recipe, settings = split_training(words)
            if recipe.startswith("vit/"):  # less to compile
                settings += ["model.depth=1", "evals={}", "keep_best=null"]
            assert train.train(config_lib.load(recipe, settings), workdir).step > 0
        else:
            main(words)
    assert done == ["train", "evaluate", "predict", "train"]
    out = capsys.readouterr().out
    assert '"test/squared_error": ' in out and '{"next": ' in out


@pytest.mark.parametrize("page", ["README.md", "docs/evaluate.md"])
def test_python_about_a_run_works_on_a_run(page, copied, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    copied.rename(tmp_path / "runs" / "digits")
    for name in ("photo.png", "digit.png"):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(
            tmp_path / name
        )
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in find_python((ROOT / page).read_text()):
        exec(compile(code, page, "exec"), names)
    assert names["variables"]["params"]


def test_the_trees_of_the_page_on_data_are_read(tmp_path):
    trees = find_trees((DOCS / "data.md").read_text())
    folders = [lines for name, lines in trees if name == "photos/"]
    for number, lines in enumerate(folders):
        for file in list_files(lines):
            path = tmp_path / str(number) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(path)
        source = sources.open_split(str(tmp_path / str(number)), "train")
        assert source.labels == ("cat", "dog") and not source.left_out
    assert sources.list_splits(str(tmp_path / "1")) == ["train", "validation", "test"]

    for name, lines in trees:
        if name.endswith((".csv", ".jsonl")):
            (tmp_path / name).write_text(textwrap.dedent("\n".join(lines)) + "\n")
    reading = labeled_texts.Reading(("text", "label"), None, False, 0, False)
    for name in ("reviews.csv", "reviews.jsonl"):
        found = labeled_texts.read_split(str(tmp_path / name), "train", reading)
        assert found.classes == ("no", "yes") and len(found.examples) == 2
    bags = bag_tables.read_bags(str(tmp_path / "bags.csv"), bag_tables.Columns())
    assert [(bag.name, bag.label, bag.instances.shape) for bag in bags] == [
        ("b1", "yes", (2, 2)),
        ("b2", "no", (1, 2)),
    ]
    rows = feature_rows.read_rows(str(tmp_path / "rows.csv"), "label")
    assert len(rows.features) == 2
