"""Small states, and workdirs with checkpoints of them, for several test files."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_jax import paths, sharding, step
from attn_jax.checkpoint import Checkpoints

BEST = "max:validation/accuracy"
RECORD = {"config": {"seed": 0}, "data": "fingerprint"}
# Small leaves lie in an index that has checksums; this one lies in a file of its own.
LARGE = (64, 64)


@functools.cache
def start(at, large=LARGE):
    """A small state of step `at`, with every kind of leaf that a run has."""
    rng = np.random.default_rng(at)
    # Any bit pattern, not-a-numbers too: the disk holds these bytes, uncompressed.
    kernel = rng.integers(2**32, size=large, dtype=np.uint32).view(np.float32)
    params = {
        "dense": {
            "kernel": jnp.asarray(kernel),
            "bias": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        }
    }
    state = step.init_state(
        params,
        optax.adam(0.1),
        jax.random.key(at),
        averaged={"dense/kernel"},
    )
    return state.replace(step=jnp.asarray(at, jnp.int32))


def blank(state):
    """Where a state is restored into: a single device."""
    where = sharding.replicated(sharding.make_mesh({}, jax.devices()[:1]))
    return sharding.add_shardings(state, jax.tree.map(lambda _: where, state))


def bits(tree):
    """{name: bytes} of a tree; a random key is shown by its numbers."""

    def data(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    return {name: data(leaf) for name, leaf in paths.named_leaves(tree).items()}


def accuracy(value):
    return {"validation/accuracy": value}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A workdir with the checkpoints of steps 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("original")
    checkpoints = Checkpoints(workdir, keep_latest=3, keep_best=BEST)
    for at, value in ((1, 0.5), (2, 0.75), (3, 0.25)):
        checkpoints.finish(start(at), RECORD, accuracy(value))
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture
def opened():
    """Opens checkpoints that say what they say into the list `said`."""
    made = []

    def open_(workdir, **options):
        said = []
        made.append(Checkpoints(workdir, say=said.append, **options))
        made[-1].said = said
        return made[-1]

    yield open_
    for checkpoints in made:
        checkpoints.close()
