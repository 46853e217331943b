"""The pages of the site: what is made from the source, and what points from one to another."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from pages import DOCS, FENCE, ROOT, find_commands, load_script, split_training

from attn_jax import commands, recipes
from attn_jax import config as config_lib
from attn_jax.__main__ import main
from attn_jax.commands import plan
from attn_jax.knobs import KNOBS

LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def pages():
    """{path below docs/: Markdown} of all pages, also of those that are generated."""
    written = {
        path.relative_to(DOCS).as_posix(): path.read_text()
        for path in sorted(DOCS.rglob("*.md"))
    }
    generated = load_script("recipe_pages").make_pages()
    assert not written.keys() & generated.keys()
    return written | generated


def find_anchors(text):
    """The anchors of the headings of a page, as Python-Markdown makes them."""
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        if own := re.search(r"\{ #(\S+) \}", heading):
            anchors.add(own[1])
        words = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        anchors.add(re.sub(r"[-\s]+", "-", words))
    return anchors


def find_broken(pages):
    """(page, target) of each link to a page, figure or heading that does not exist."""
    broken = []
    for name, text in pages.items():
        for target in LINK.findall(FENCE.sub("", text)):
            path, _, anchor = target.partition("#")
            if "://" in path:
                continue
            file = (DOCS / name).parent / path if path else DOCS / name
            other = pathlib.Path(file.resolve()).relative_to(DOCS).as_posix()
            exists = other in pages or file.is_file()
            if not exists or anchor and anchor not in find_anchors(pages[other]):
                broken.append((name, target))
    return broken


def test_every_recipe_stands_on_its_page_with_its_variants_and_keys(pages):
    found = recipes.list_recipes()
    for recipe in found:
        architecture, _, name = recipe.name.partition("/")
        page = pages[f"recipes/{architecture}.md"]
        assert f"\n## {recipe.name} {{ #{name} }}\n" in page
        assert recipe.title in pages["recipes.md"]
        for variant in recipe.variants:
            assert f"`{variant}`" in page
    assert sum(page.count("??? info") for page in pages.values()) == len(found)
    assert "`model.patch_size=4`" in pages["recipes/vit.md"]
    for key in KNOBS:
        assert f"\n| `{key}=" in pages["keys.md"]


def test_signs_in_a_meaning_are_no_markup_and_code_stays_code():
    found = load_script("recipe_pages").escape("[B, T] of `a_b | c`, or d_e | f*")
    assert found == "\\[B, T\\] of `a_b | c`, or d\\_e \\| f\\*"


def test_links_between_pages_lead_somewhere(pages):
    assert not find_broken(pages)
    readme = LINK.findall(FENCE.sub("", (ROOT / "README.md").read_text()))
    assert all(
        "://" in target or (ROOT / target.partition("#")[0]).is_file()
        for target in readme
    )


@pytest.mark.parametrize("target", ["no.md", "vit.md#no", "figures/no.png", "#no"])
def test_a_link_that_leads_nowhere_is_found(target):
    pages = {"vit.md": "# ViT\n", "a.md": f"# A\n[text]({target})\n"}
    assert find_broken(pages) == [("a.md", target)]


def test_the_menu_has_every_page(pages):
    menu = re.findall(r"- (?:[\w ]+: )?(\S+\.md)", (ROOT / "mkdocs.yml").read_text())
    assert sorted(menu) == sorted(pages)


def test_the_reference_names_what_exists(pages):
    names = [
        name
        for page, text in pages.items()
        if page.startswith("reference/")
        for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    ]
    assert len(names) > 20
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:  # a function or class
            module, _, member = name.rpartition(".")
            assert hasattr(importlib.import_module(module), member), name


def test_commands_of_the_pages_name_recipes_keys_and_flags_that_exist(monkeypatch):
    monkeypatch.setattr(
        commands, "parse_and_run", lambda parser, _, words: parser.parse_args(words)
    )

    def check_plan(options, settings):
        config_lib.load(options.config, settings)
        return []

    monkeypatch.setattr(plan, "run", check_plan)
    count = 0
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        if page.name == "extend.md":  # tests/test_docs.py runs it
            continue
        for words in find_commands(page.read_text()):
            if re.search(r"\.\.\.|\$A", " ".join(words)):
                continue  # shortened, or with a variable of the shell
            count += 1
            if words[0] != "train":
                main(words)
            elif (recipe := split_training(words)[0]) != "my_recipe.py":
                config_lib.load(recipe, split_training(words)[1])
    assert count > 30


def test_the_readme_has_120_lines_at_most():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_site_is_built_without_a_warning():
    pytest.importorskip(
        "zensical", reason="`make docs` installs zensical and builds the site"
    )
    command = [sys.executable, "docs/build_site.py"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    page = (ROOT / "build" / "site" / "recipes" / "vit.html").read_text()
    assert not re.search(r'(?:src|href)="https?://(?!zensical\.org/")', page)
