"""Parameters for tests."""

import jax


def perturb(variables, *, scale, seed=0):
    """Every parameter plus scale * normal, so that no two are alike and none is zero."""
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        x + scale * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)
