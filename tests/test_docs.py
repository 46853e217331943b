"""The Python of docs/hopfield.md runs as it stands, and prints what stands below it."""

import contextlib
import io
import pathlib
import re
import textwrap

import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "hopfield.md"
NUMBER = r"-?\d+\.?\d*(?:e[+-]\d+)?"


def read_examples(page):
    """(code, printed text or "") of every example, in order."""
    found = re.findall(r"```python\n(.*?)```\n((?:\n?    [^\n]*\n)*)", page, re.DOTALL)
    return [(code, textwrap.dedent(printed).strip("\n")) for code, printed in found]


def check_printed(found, expected):
    """The words are equal; numbers may differ in rounding on another processor."""
    assert re.sub(NUMBER, "#", found).split() == re.sub(NUMBER, "#", expected).split()
    pair = [[float(x) for x in re.findall(NUMBER, text)] for text in (found, expected)]
    np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("quick_compilation")
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
