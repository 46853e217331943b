"""The compilation cache of the commands: torn entries, and folders that cannot be used."""

import processes

COMPILE = """
import jax, jax.numpy as jnp
from attn_jax import compilation_cache
compilation_cache.use_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: jnp.sin(x) + 1)(jnp.ones(3))[0])
"""


def compile_in(folder):
    process = processes.start("-c", COMPILE, XDG_CACHE_HOME=str(folder))
    assert processes.finish(process) == (0, "1.841471\n", "")


def test_a_torn_entry_of_the_compilation_cache_is_compiled_again(tmp_path):
    compile_in(tmp_path)
    entries = list(tmp_path.glob("attn_jax/xla/*/*"))
    whole = {entry: entry.read_bytes() for entry in entries}
    assert whole
    for entry in entries:
        entry.write_bytes(whole[entry][: len(whole[entry]) // 2])
    compile_in(tmp_path)
    for entry in entries:
        assert len(entry.read_bytes()) > len(whole[entry]) * 0.9, "still torn"


def test_a_cache_folder_that_cannot_be_used_is_no_error(tmp_path):
    (tmp_path / "attn_jax").write_text("a file where the folder should be")
    compile_in(tmp_path)
