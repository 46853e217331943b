"""Every test runs on 8 virtual CPU devices, so sharding is real and needs no hardware."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"  # also for the processes that tests start

import jax
import pytest
from absl import flags

jax.config.update("jax_platforms", "cpu")  # a plugin may have imported jax before us
jax.config.update("jax_num_cpu_devices", 8)
# [B, D] + [D] is fine when written out; done silently it has hidden many a wrong axis.
jax.config.update("jax_numpy_rank_promotion", "raise")

# grain's worker processes read an absl flag, which only absl.app.run would parse.
flags.FLAGS.mark_as_parsed()

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of data and reference numbers too large for this repository."""
    path = pathlib.Path(os.environ.get("ATTN_JAX_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"{path} is absent: set ATTN_JAX_SHARED to where it lies.")
    return path
