"""Keeps compiled programs on disk, so that the next run starts sooner."""

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
    """Makes JAX keep compiled programs in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR, or a folder set by the caller, takes precedence. If the
    folder cannot be used, programs are compiled anew.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None:
        return
    if not settings["jax_enable_compilation_cache"]:
        return
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    try:
        # Hosts that share a home directory may have different CPUs, and code that was
        # compiled for another CPU dies with SIGILL.
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
    """Deletes cache entries that JAX cannot read, such as those of a killed process.

    JAX warns and compiles the program again, but never replaces the entry.
    """
    show = warnings.showwarning

    def delete_entry(message: Any, *rest: Any, **options: Any) -> None:
        found = re.match(r"Error (\w+) persistent compilation .*?'(.+?)'", str(message))
        if found is None:
            show(message, *rest, **options)
        elif found[1] == "reading":
            for file in folder.glob(f"{found[2]}-*"):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)

    warnings.showwarning = delete_entry


def _hash_cpu() -> str:
    """Eight hexadecimal digits that differ between CPUs with different instructions."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        features = {line for line in lines if line.startswith(("flags", "Features"))}
    except OSError:  # not Linux
        features = {platform.machine(), platform.processor()}
    return hashlib.sha256(repr(sorted(features)).encode()).hexdigest()[:8]
