"""One of several processes that save and restore while the last one has faults.

    python tests/faulty_processes.py WORKDIR ADDRESS COUNT NUMBER

Prints what happened, one JSON object a line; tests/test_agreement.py compares.
"""

import contextlib
import json
import pathlib
import resource
import shutil
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from attn_jax import sharding, step
from attn_jax.checkpoint import Checkpoints
from attn_jax.damage import Damaged, Removed


@contextlib.contextmanager
def full_disk():
    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: types.SimpleNamespace(free=10)
    yield
    shutil.disk_usage = usage


@contextlib.contextmanager
def small_files():
    """A write fails in orbax's background thread, as on a disk that becomes full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def failing_reads(error, only=""):
    restore = ocp.PyTreeCheckpointHandler.restore

    def fail(self, directory, *arguments, **options):
        if only in str(directory):
            raise error
        return restore(self, directory, *arguments, **options)

    ocp.PyTreeCheckpointHandler.restore = fail
    yield
    ocp.PyTreeCheckpointHandler.restore = restore


def main(workdir, address, count, number):
    jax.distributed.initialize(address, int(count), int(number))
    faulty = int(number) == int(count) - 1
    mesh = sharding.make_mesh({"fsdp": -1})
    rng = np.random.default_rng(0)
    params = {"kernel": rng.integers(2**32, size=(64, 64), dtype=np.uint32)}
    layout = sharding.param_shardings(mesh, params, [], fsdp_min_elements=1)
    params = {
        name: jax.make_array_from_callback(
            value.shape, layout[name], lambda index, value=value: value[index]
        )
        for name, value in params.items()
    }
    one = sharding.replicated(mesh)
    scalar = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=one)

    def state_of(at):
        at = jax.jit(lambda: jnp.full((), at, jnp.int32), out_shardings=one)()
        key = jax.jit(lambda: jax.random.key(0), out_shardings=one)()
        return step.TrainState(at, params, (), key, scalar(), scalar())

    said = []
    checkpoints = Checkpoints(workdir, keep_latest=9, say=said.append)

    def attempt(what, action, fault=None):
        began = time.monotonic()
        said.clear()
        with fault if faulty and fault is not None else contextlib.nullcontext():
            try:
                outcome = action()
            except (OSError, Damaged, Removed) as error:
                outcome = f"{type(error).__name__}: {error}"
        report = {
            "what": what,
            "outcome": outcome,
            "said": list(said),
            "seconds": time.monotonic() - began,
            "steps": checkpoints.steps(),
        }
        print(json.dumps(report), flush=True)

    def finish(at):
        return lambda: checkpoints.finish(state_of(at), {}, {})

    def restore():
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=leaf.sharding
            ),
            state_of(0),
        )
        state, _ = checkpoints.restore_latest(like)
        return int(state.step)

    attempt("save", finish(1))
    attempt("full disk", finish(2), full_disk())
    attempt("save after it", finish(3))
    attempt("failing write", finish(4), small_files())
    attempt("save after it", finish(5))
    attempt("restore", restore)
    error = ValueError("DATA_LOSS: checksum [os_error_code='5']")
    attempt("I/O error", restore, failing_reads(error))
    attempt("damage", restore, failing_reads(ValueError("DATA_LOSS: checksum"), "/5/"))
    attempt("save the step again", finish(5))
    checkpoints.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
