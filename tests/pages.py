"""The blocks of the pages in docs/ and of README.md."""

import importlib.util
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(\.venv/bin/)?python (train\.py|-m attn_jax) |attn-jax ")


def load_script(name):
    """docs/NAME.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_python(text):
    """The Python of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def find_files(text):
    """{name: content} of the blocks of Python that begin with `# NAME.py`."""
    found = (re.match(r"# (\w+\.py)\n", code) for code in find_python(text))
    return {match[1]: match.string for match in found if match}


def find_commands(text):
    """The commands of a page, as words without the program: `["train", "--config=..."]`."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"(?:^ {4,}.*\n?)+", FENCE.sub("", text), re.MULTILINE)
    for block in blocks:
        lines = iter(re.sub(r"\\\n\s*", "", block).splitlines())
        for line in lines:
            line = re.sub(r"^\s*(\$ )?", "", line)
            if found := COMMAND.match(line):
                line = re.sub(r"\s+# .*", "", line[found.end() :])
                while line.count("'") % 2:  # a quoted text of several lines
                    line += next(lines)
                words = shlex.split(line)
                yield ["train", *words] if found[2] == "train.py" else words


def split_training(words):
    """(recipe, settings) of the words behind `train`."""
    [recipe] = [word for word in words if word.startswith("--config=")]
    marked = [word for word in words if word.startswith("--config.")]
    settings = [word.removeprefix("--config.") for word in marked]
    return recipe.removeprefix("--config="), settings


def find_trees(text):
    """[(name, lines below it)] of the folders and files side by side in a page's blocks."""
    trees = []
    for block in re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        header, *lines = block.splitlines()
        starts = [match.start() for match in re.finditer(r"(?:^|(?<=  ))\S", header)]
        for first, last in zip(starts, [*starts[1:], None], strict=True):
            column = [line[first:last].rstrip() for line in lines]
            trees.append(
                (header[first:last].strip(), [line for line in column if line])
            )
    return trees


def list_files(lines):
    """The paths of a tree in which folders end with a slash and files are indented."""
    files, folders = [], []
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        name = re.split(r"\s{2,}", line.strip())[0]
        folders = [*folders[:depth], name]
        if not name.endswith("/"):
            files.append("".join(folders))
    return files
