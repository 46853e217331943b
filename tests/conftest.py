"""Every test runs on 8 virtual CPU devices, so sharding is real and needs no hardware."""

import os
import pathlib
import shutil

os.environ["JAX_PLATFORMS"] = "cpu"  # also for the processes that tests start

import invented
import jax
import pytest
import runs
from absl import flags

import train

ROOT = pathlib.Path(__file__).parent.parent

# Programs compile with a third of the work when they are not split for parallel compilation,
# and in half the time with the older kernels, which later releases do not know. Started
# processes inherit the variable.
xla = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    xla.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *xla]).strip()

jax.config.update("jax_platforms", "cpu")  # a plugin may have imported jax before us
jax.config.update("jax_num_cpu_devices", 8)
# [B, D] + [D] is fine when written out; done silently it has hidden many a wrong axis.
jax.config.update("jax_numpy_rank_promotion", "raise")

# A second run of the suite finds its programs compiled. Only for this process: those that
# tests kill would leave a torn entry.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# grain's worker processes read an absl flag, which only absl.app.run would parse.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def quick_compilation():
    """Programs that XLA hardly optimises: for modules that compile many and run them
    for a few steps. It halves their time and changes no number that they compare."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of data and reference numbers too large for this repository."""
    path = pathlib.Path(os.environ.get("ATTN_JAX_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"{path} is absent: set ATTN_JAX_SHARED to where it lies.")
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(final state, workdir) of a run of 8 steps; do not write there."""
    folder = tmp_path_factory.mktemp("run")
    return train.train(runs.tiny(), str(folder)), folder


@pytest.fixture
def copied(finished, tmp_path):
    """The run's folder at another place, with nothing beside it."""
    return pathlib.Path(shutil.copytree(finished[1], tmp_path / "copy"))


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    return invented.write(
        tmp_path_factory.mktemp("corpus") / "corpus.txt", invented.documents()
    )


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """A folder of the test run's own, instead of the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
