"""Agreement between processes, so that none waits for another that has failed.

Every function here is a collective: all processes call it at the same point, including
one that has failed. With a single process they cost nothing.
"""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

POLL_SECONDS = 0.2
WAIT_MS = 300_000  # for process 0, which may still import
NUMBERS = itertools.count()  # of barriers; the same on every process


def max_over_processes(value: int) -> int:
    """The maximum of the value over all processes."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.array(value, np.int32))))


def all_succeeded(ok: bool) -> bool:
    """Whether every process succeeded."""
    return not max_over_processes(int(not ok))


def broadcast_from_first(values: Sequence[int]) -> list[int]:
    """The values of process 0, because others may see changes of a shared disk later."""
    if jax.process_count() == 1:
        return list(values)
    length = int(multihost_utils.broadcast_one_to_all(np.array(len(values), np.int32)))
    padded = np.resize(np.array([*values, 0], np.int32), length + 1)
    return multihost_utils.broadcast_one_to_all(padded)[:length].tolist()


def raise_together(error: Exception | None, elsewhere: str) -> None:
    """Raises the error here, and OSError(elsewhere) on processes that have none."""
    if not all_succeeded(error is None):
        raise error or OSError(elsewhere)


def require_same(what: str, values: Mapping[str, Any]) -> None:
    """Raises ValueError on every process unless all have the values of process 0.

    Args:
        what: name of the values in messages; each name is used once in a run.
        values: must be representable in JSON.
    """
    if jax.process_count() == 1:
        return
    key, text = f"attn_jax/same/{what}", json.dumps(values)
    if jax.process_index() == 0:
        get_client().key_value_set(key, text)
    first = json.loads(get_client().blocking_key_value_get(key, WAIT_MS))
    ours = json.loads(text)
    differing = [
        f"{name}={ours.get(name)!r}, not {first.get(name)!r}"
        for name in sorted(first.keys() | ours.keys())
        if ours.get(name) != first.get(name)
    ]
    if not all_succeeded(not differing):
        where = f"the {what} of process {jax.process_index()} is not that of process 0"
        raise ValueError(
            f"{where}: {'; '.join(differing)}. Start all processes with one command."
            if differing
            else f"the {what} of another process is not the same; it reports the difference."
        )


class Barrier:
    """Waits until every process has arrived, or one that has failed breaks it.

    JAX's own barrier can only time out, after 20 minutes in orbax: long enough for a slow
    disk, but far too long to wait for a process that never arrives. This one uses no
    device, so a background thread may wait while another computes.
    """

    def __init__(self) -> None:
        self._name = f"attn_jax/barrier/{next(NUMBERS)}"

    def wait(self, key: str, timeout_ms: int) -> None:
        """Raises OSError once the barrier is broken, TimeoutError after the timeout."""
        if jax.process_count() == 1:
            return
        arrived = f"{self._name}/{key}"
        get_client().key_value_increment(arrived, 1)
        end = time.monotonic() + timeout_ms / 1000
        # Adding 0 reads a counter even if it has not been set yet.
        while get_client().key_value_increment(arrived, 0) < jax.process_count():
            if get_client().key_value_increment(f"{self._name}/broken", 0):
                raise OSError("another process could not write its part")
            if time.monotonic() > end:
                raise TimeoutError(f"other processes did not arrive at {key!r} in time")
            time.sleep(POLL_SECONDS)

    def break_up(self) -> None:
        """Makes every current and later `wait` raise OSError."""
        if jax.process_count() > 1:
            get_client().key_value_increment(f"{self._name}/broken", 1)


def get_client() -> Any:
    """JAX's client of the coordinator; it has no public name, but orbax uses it as well."""
    return distributed.global_state.client
