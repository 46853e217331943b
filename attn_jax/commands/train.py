"""`python -m attn_jax train`: train.py, wherever attn_jax is installed."""

import runpy
import sys
from collections.abc import Sequence

from attn_jax import recipes


def main(arguments: Sequence[str]) -> None:
    """Runs train.py with these arguments."""
    file = recipes.find_root() / "train.py"
    sys.argv = [str(file), *arguments]
    runpy.run_path(str(file), run_name="__main__")
