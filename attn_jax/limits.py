"""Checks on shapes alone whether parameters and a batch can fit into memory."""

import math
import pathlib
from typing import Any

import jax
import numpy as np

from attn_jax.paths import named_leaves

CGROUP = pathlib.Path("/sys/fs/cgroup")


def check_size(
    params: Any, batch: Any = None, *, copies: int = 1, memory: int | None = None
) -> None:
    """Raises ValueError if parameters or a batch need more memory than there is.

    What passes may still not fit: activations are not counted, and parameters are counted
    as if fully sharded, once over all devices.

    Args:
        params, batch: trees of arrays or of their shapes, global over all devices.
        copies: how many arrays of a parameter's size are held. AdamW with an average: 5
            (parameter, gradient, two moments, average).
        memory: bytes; None: `find_memory()`.
    """
    memory = find_memory() if memory is None else memory
    if memory is None:
        return
    times = f", {copies} times in training," if copies > 1 else ""
    for what, tree, factor, remedy in (
        (f"the parameters{times}", params, copies, "reduce config.model"),
        ("one batch", batch, 1, "reduce config.batch_size or the sizes in config.task"),
    ):
        sizes = {name: count_bytes(leaf) for name, leaf in named_leaves(tree).items()}
        needed = factor * sum(sizes.values())
        if needed > memory:
            largest = max(sizes, key=lambda name: sizes[name])
            shape = list(named_leaves(tree)[largest].shape)
            raise ValueError(
                f"{what} would need {show_bytes(needed)}, but {show_bytes(memory)} are "
                f"available (largest array: {largest} {shape}); {remedy}."
            )


def find_memory() -> int | None:
    """Available bytes over all devices (for a CPU, of the host); None if unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        limit = (device.memory_stats() or {}).get("bytes_limit")
        return None if limit is None else limit * jax.device_count()
    found = [_read_meminfo(), _read_cgroup()]
    return min((size for size in found if size is not None), default=None)


def count_bytes(leaf: Any) -> int:
    # Python integers, because a product of NumPy's would overflow.
    return math.prod(map(int, leaf.shape)) * np.dtype(leaf.dtype).itemsize


def show_bytes(size: int) -> str:
    return f"{size / 2**30:,.3g} GiB" if size < 2**50 else f"{size // 2**40:,} TiB"


def _read_meminfo() -> int | None:
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _read_cgroup() -> int | None:
    """The bytes that a container's limit (cgroup v2) leaves; None without a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = (CGROUP / "memory.current").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else max(int(limit) - int(used), 0)
