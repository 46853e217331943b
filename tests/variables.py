"""Parameters for tests."""

import jax
import jax.numpy as jnp
import numpy as np


def perturb(variables, *, scale, seed=0):
    """Every parameter plus scale * normal, so that no two are alike and none is zero."""
    draws = np.random.default_rng(seed)  # JAX would compile a program for every shape

    def move(leaf):
        noise = draws.normal(scale=scale, size=leaf.shape)
        return jnp.asarray((np.asarray(leaf) + noise).astype(leaf.dtype))

    return jax.tree.map(move, variables)
