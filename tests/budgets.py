"""What a training step of each recipe costs, without a clock: budgets.json.

    WRITE_BUDGETS=1 python -m pytest -n 0 tests/test_contract.py tests/test_contract_meshes.py -k budget

writes what is measured instead of checking it. Look at the difference before you commit it.
"""

import json
import os
import pathlib

import jax

FILE = pathlib.Path(__file__).parent / "budgets.json"


def check_budget(part, recipe, found, slack=0.0):
    """Fails if a cost is larger than its budget, or smaller: then lower the budget.

    Args:
        found: {name of a cost: number}.
        slack: share by which a cost may differ, as between versions of a compiler.
    """
    budgets = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("WRITE_BUDGETS"):
        budgets.setdefault(part, {})[recipe] = found
        FILE.write_text(json.dumps(budgets, indent=1, sort_keys=True) + "\n")
    budget = budgets[part][recipe]
    moved = {
        name: (found.get(name, 0), budget.get(name, 0))
        for name in found.keys() | budget.keys()
        if abs(found.get(name, 0) - budget.get(name, 0)) > slack * budget.get(name, 0)
    }
    assert not moved, f"{recipe}: (measured, budget) of {part}: {moved}"


def count_bytes(tree):
    """Bytes of all arrays and shapes in a tree but random keys."""
    return sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
