"""The pages of the site that are made from the source: recipes and their keys.

docs/build_site.py writes them where the site is built, so they are not in the repository.
"""

import re
from collections.abc import Iterator
from typing import Any

from attn_jax import config as config_lib
from attn_jax import recipe_help, recipes
from attn_jax.knobs import CHANGEABLE_KNOBS, KNOBS
from attn_jax.values import describe as describe_type
from attn_jax.values import show, to_plain

ARCHITECTURES = {
    "vit": "Vision Transformer",
    "bert": "BERT",
    "hopfield": "Hopfield networks",
    "slot_attention": "Slot Attention",
}


def make_pages() -> dict[str, str]:
    """{path below docs/: Markdown} of recipes.md, recipes/ARCHITECTURE.md and keys.md."""
    found = recipes.list_recipes()
    pages = {"recipes.md": draw_list(found), "keys.md": draw_knobs()}
    for architecture, title in ARCHITECTURES.items():
        lines = [f"# Recipes: {title}", ""]
        for recipe in found:
            if recipe.name.startswith(f"{architecture}/"):
                lines += draw_recipe(recipe)
        pages[f"recipes/{architecture}.md"] = "\n".join(lines) + "\n"
    return pages


def draw_list(found: list[recipes.Recipe]) -> str:
    lines = [
        "# Recipes",
        "",
        "A recipe is a Python file below `configs/` that returns all settings of one",
        "experiment. `:VARIANT` behind its name picks one of its variants; `:debug` is",
        "tiny and runs in seconds. `attn-jax recipes` prints this list.",
        "",
        "    python train.py --config=configs/vit/digits.py --workdir=runs/digits",
        "    attn-jax train --config=vit/digits --workdir=runs/digits     # the same",
        "",
        "Any key can be set on the same line, such as `--config.model.depth=6`. `--help`",
        "behind a recipe prints all of its keys with value, type and meaning.",
        "[The keys of every run](keys.md) are those that no recipe brings itself.",
    ]
    for architecture, title in ARCHITECTURES.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| recipe | what, and its variants |",
            "|---|---|",
        ]
        for recipe in found:
            if recipe.name.startswith(f"{architecture}/"):
                link = f"recipes/{architecture}.md#{anchor(recipe.name)}"
                lines.append(
                    f"| [`{recipe.name}`]({link}) | {recipe.title}<br>{draw_variants(recipe)} |"
                )
    return "\n".join(lines) + "\n"


def draw_recipe(recipe: recipes.Recipe) -> Iterator[str]:
    """The docstring of a recipe, and the keys that it sets or that its classes have."""
    file = recipes.find_recipe(recipe.name)
    docstring = (recipes.load_recipe(file).__doc__ or "").strip()
    config = config_lib.load(recipe.name)
    yield from (f"## {recipe.name} {{ #{anchor(recipe.name)} }}", "")
    yield from ("```text", *docstring.splitlines(), "```", "")
    yield from (f"Variants: {draw_variants(recipe)}", "")
    yield from (f'??? info "Keys of `{recipe.name}`"', "")
    for line in draw_groups(config):
        yield f"    {line}" if line else ""
    yield ""


def draw_groups(config: config_lib.Section) -> Iterator[str]:
    """Tables of keys; of the top-level keys only those that differ from the defaults."""
    defaults = read_defaults()
    rest = []
    for group in recipe_help.list_groups(config):
        if group.title:
            name, _, what = group.title.partition(": ")
            title = f"**{name}**" + (f": `{what}`" if what else "")
            yield from (title.replace(":**", "**"), "")
            yield from (*draw_keys(group.keys), "")
        else:
            rest += [key for key in group.keys if key.value != defaults[key.name]]
    yield from ("**Others** that differ from [their defaults](../keys.md)", "")
    yield from (*draw_keys(rest), "")


def draw_keys(keys: list[recipe_help.Key]) -> Iterator[str]:
    yield from ("| key and value | type | meaning |", "|---|---|---|")
    for key in keys:
        value = code(f"{key.name}={show(key.value)}")
        kind = code(describe_type(key.annotation))
        yield f"| {value} | {kind} | {escape(key.meaning)} |"


def draw_knobs() -> str:
    """The top-level keys: default, type, meaning, and whether a resumed run may change them."""
    defaults = read_defaults()
    comments = recipe_help.read_comments()
    lines = [
        "# Keys of every run",
        "",
        "The top-level keys of a config, in the order of `configs/common.py`. Those marked",
        "with a star may differ when a run is resumed; to change another one, start a new",
        "run. The fields of `model` and `task` are those of the classes that they name; they",
        "stand [with each recipe](recipes.md).",
        "",
        "| key and default | type | meaning |",
        "|---|---|---|",
    ]
    for name, knob in KNOBS.items():
        star = " \\*" if name in CHANGEABLE_KNOBS else ""
        example = f" For example {code(knob.example)}." if knob.example else ""
        lines.append(
            f"| {code(f'{name}={show(defaults[name])}')}{star} | "
            f"{code(describe_type(knob.type))} | {escape(comments.get(name, ''))}{example} |"
        )
    return "\n".join(lines) + "\n"


def read_defaults() -> dict[str, Any]:
    """{top-level key: value} of configs/common.py."""
    file = recipes.find_root() / "configs" / "common.py"
    with recipes.importable_configs(file):
        from configs import common
    return to_plain(common.get_config())


def draw_variants(recipe: recipes.Recipe) -> str:
    return ", ".join(f"`{variant}`" for variant in recipe.variants)


def anchor(name: str) -> str:
    return name.rpartition("/")[2]


def code(text: str) -> str:
    """Text in a cell of a table, as code; there a vertical line ends no cell."""
    return f"``{text}``" if "`" in text else f"`{text}`"


def escape(text: str) -> str:
    """Text in a cell of a table: outside of code, signs are no markup."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([\\|\[\]<*_])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)
