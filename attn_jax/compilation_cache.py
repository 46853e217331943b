"""Compiled programs are kept between starts, so that a second run begins sooner."""

import contextlib
import hashlib
import os
import pathlib
import platform
import re
import time
import warnings
from typing import Any

import jax

CACHE_DAYS = 30  # compiled programs older than this are deleted


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, for the next start.

    JAX_COMPILATION_CACHE_DIR, or a folder set by the caller, takes precedence. A folder that
    cannot be used only costs the compilation.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None:
        return
    if not settings["jax_enable_compilation_cache"]:
        return
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    try:
        # Hosts that share a home may differ; code for another CPU ends with SIGILL.
        folder = pathlib.Path(root).expanduser() / "attn_jax" / "xla" / _hash_cpu()
        folder.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - CACHE_DAYS * 24 * 3600
        for file in folder.iterdir():
            if file.stat().st_mtime < oldest:
                file.unlink(missing_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        return
    _replace_torn_entries(folder)


def _replace_torn_entries(folder: pathlib.Path) -> None:
    """Deletes entries that JAX warns about: a killed process leaves half an entry.

    JAX compiles the program again, but never replaces an entry that exists.
    """
    show = warnings.showwarning

    def mend(message: Any, *rest: Any, **options: Any) -> None:
        found = re.match(r"Error (\w+) persistent compilation .*?'(.+?)'", str(message))
        if found is None:
            show(message, *rest, **options)
        elif found[1] == "reading":
            for file in folder.glob(f"{found[2]}-*"):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)

    warnings.showwarning = mend


def _hash_cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        features = {line for line in lines if line.startswith(("flags", "Features"))}
    except OSError:  # not Linux
        features = {platform.machine(), platform.processor()}
    return hashlib.sha256(repr(sorted(features)).encode()).hexdigest()[:8]
