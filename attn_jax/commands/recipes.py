"""`python -m attn_jax recipes`: what comes with attn_jax, one line each."""

import argparse
from collections.abc import Sequence

from attn_jax import recipes


def main(arguments: Sequence[str]) -> None:
    """Prints the name of each recipe, its title, and its variants."""
    parser = argparse.ArgumentParser(
        prog="python -m attn_jax recipes",
        description="List the recipes that come with attn_jax. Train one with: "
        "python -m attn_jax train --config=NAME --workdir=DIR",
    )
    parser.parse_args(arguments)
    found = recipes.list_recipes()
    width = max(len(recipe.name) for recipe in found)
    for recipe in found:
        print(f"{recipe.name:{width}}  {recipe.title}")
        print(f"{'':{width}}  variants: {', '.join(recipe.variants)}")
