"""Checkpoints: training state, what must agree with it, and proof that it is whole.

A checkpoint is the state and a JSON record: step, shape, dtype and digest of every leaf,
the resolved config, the data's fingerprint, metrics. Orbax writes both,
asynchronously and atomically, and restores them onto any mesh.

With several processes every method is a collective: all call it alike, and a failure of
one is a failure on all.
"""

import errno
import functools
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from attn_jax import agreement
from attn_jax.checkpoint_reader import FORMAT, CheckpointReader, make_handlers
from attn_jax.damage import Damaged, shorten
from attn_jax.digests import describe_leaves, digest_json
from attn_jax.retention import Retention

RETRY_SECONDS = 10.0


class Checkpoints(CheckpointReader):
    """The checkpoints of one run, under DIR/checkpoints.

    Args:
        keep_latest: how many of the newest stay.
        keep_best: "max:name/metric" or "min:name/metric": the best one stays too.
        patience_seconds: how long `finish` waits for a disk that cannot be written.
        say: called with a line for each event that a person should see.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        keep_latest: int = 2,
        keep_best: str | None = None,
        patience_seconds: float = 0.0,
        say: Callable[[str], None] = print,
    ):
        super().__init__(workdir, keep_best=keep_best)
        self._keep_latest, self._patience, self.say = keep_latest, patience_seconds, say

    @functools.cached_property
    def _barrier(self) -> agreement.Barrier:
        return agreement.Barrier()

    @functools.cached_property
    def _writer(self) -> ocp.CheckpointManager:
        """Opened at the first save, and at the next one after a save that failed."""
        return ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=Retention(self._choose_kept),
                cleanup_tmp_directories=True,
                async_options=ocp.options.AsyncOptions(
                    barrier_sync_fn=self._barrier.wait,
                    # Otherwise a folder that cannot be made leaves threads that wait
                    # 5 minutes for it, and the process does not end before.
                    create_directories_asynchronously=False,
                ),
            ),
            item_handlers=make_handlers(),
        )

    def close(self) -> None:
        super().close()
        self._close_writer()

    def _close_writer(self) -> None:
        self.__dict__.pop("_barrier", None)
        if writer := self.__dict__.pop("_writer", None):
            writer.close()

    # --- saving -------------------------------------------------------------------

    def save(
        self, state: Any, record: Mapping[str, Any], results: Mapping[str, float]
    ) -> bool:
        """Starts to write the state; False, and a line that says why, where it cannot.

        A failure here does not end the run: the state is still in memory, the
        previous checkpoints are untouched, and the next save tries again.
        """
        step = int(state.step)
        # Success of the save before, which went on meanwhile, is known first.
        if not self._wait(state) or not self._try(state, self._check_folder, state):
            return False
        if step in self.steps():
            return True
        content = {
            **record,
            "format": FORMAT,
            "step": step,
            "leaves": describe_leaves(state),
            "results": dict(results),
        }
        content["digest"] = digest_json(content)
        self._ranking.add(step, results)
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(content)
        )
        if not self._try(state, lambda: self._writer.save(step, args=arguments)):
            self._ranking.remove(step)
            return False
        return True

    def finish(
        self,
        state: Any,
        record: Mapping[str, Any],
        results: Mapping[str, float],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Saves and waits until it is on disk, for as long as patience lasts.

        `tick` is called at every try.

        Raises:
            OSError: the state could not be written; what was needed, and where.
        """
        give_up = time.monotonic() + self._patience
        while True:
            tick()
            if self.save(state, record, results) and self._wait(state):
                return
            # One clock decides, or one process might try again alone.
            if agreement.largest(int(time.monotonic() + RETRY_SECONDS > give_up)):
                raise OSError(
                    errno.EIO,
                    f"step {int(state.step)} could not be saved in {self.directory} within "
                    f"{self._patience:.0f} s: {size_in_bytes(state):,} bytes are needed. "
                    "Earlier checkpoints are untouched; free space there and run the same "
                    "command.",
                )
            self.say(
                f"trying again every {RETRY_SECONDS:.0f} s: free space, or stop me"
            )
            time.sleep(RETRY_SECONDS)

    def _wait(self, state: Any) -> bool:
        """Whether the save under way, if any, has come to a good end."""
        writer = self.__dict__.get("_writer")
        return self._try(state, writer.wait_until_finished if writer else lambda: None)

    def _try(self, state: Any, action: Callable[..., Any], *arguments: Any) -> bool:
        """Whether a part of saving succeeded on every process; says why where not."""
        error = None
        try:
            action(*arguments)
        except Exception as caught:
            # Orbax passes on whatever its storage layer raised; all of it means the same
            # here. A manager whose write has failed is not to be trusted with another.
            error = caught
            self._barrier.break_up()
        if agreement.all_succeeded(error is None):
            return True
        why = shorten(error) if error else "another process could not write its part"
        self.say(
            f"step {int(state.step)} was NOT saved in {self.directory}: {why}. "
            f"{size_in_bytes(state):,} bytes are needed; the run goes on, nothing is lost "
            "while it does, and the next checkpoint tries again. Free space or mend the "
            "folder."
        )
        try:
            # Orbax counts the failed save as a checkpoint to keep.
            self._close_writer()
        except Exception as caught:
            self.say(f"closing the failed save: {shorten(caught)}")
        return False

    def _check_folder(self, state: Any) -> None:
        """Raises OSError where the folder cannot be written or has too little space.

        Orbax would find out too, but on one process while others wait for it.
        """
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
        if "://" in str(self.directory):
            return  # a cloud bucket has no free space to ask for
        needed, free = (
            size_in_bytes(state),
            shutil.disk_usage(self.directory.parent).free,
        )
        if needed > free:
            raise OSError(errno.ENOSPC, f"only {free:,} bytes are free")
        trial = self.directory.parent / f".trial-{jax.process_index()}"
        trial.write_bytes(b"x")
        trial.unlink()

    # --- which stay -----------------------------------------------------------------

    def ranks(self, results: Mapping[str, float]) -> bool:
        """Whether these results have the metric of `keep_best`; see `Ranking.is_in`."""
        return self._ranking.is_in(results)

    def check_ranked_by(
        self, evaluations: Mapping[str, Collection[str] | None] | Collection[str]
    ) -> None:
        """Raises ValueError where `keep_best` names no evaluation or no metric of it.

        Args:
            evaluations: {name: `Evaluation.metric_names`}, or only the names.
        """
        known = (
            evaluations
            if isinstance(evaluations, Mapping)
            else dict.fromkeys(evaluations)
        )
        self._ranking.check(known)

    def _choose_kept(self, steps: Collection[int]) -> set[int | None]:
        newest = sorted(steps)[-self._keep_latest :]
        # What is damaged is never deleted; one whose record is may be the best, too.
        return {*newest, self._ranking.best(steps), *self._unrankable}

    # --- restoring ------------------------------------------------------------------

    def restore_latest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, record) of the newest whole checkpoint, None where there is none.

        Damaged newer ones are named and moved to DIR/damaged, so that their steps can be
        saved again; nothing is deleted, and nothing is moved before a whole one is found.

        Raises:
            ValueError: there are checkpoints, and every one is damaged.
            OSError: the storage is in trouble.
        """
        damaged = []
        for step in self.steps():
            try:
                found = self.restore(step, like), self.record(step)
            except Damaged as error:
                self.say(f"{error}. Trying the one before it.")
                damaged.append(step)
                continue
            for each in damaged:
                self._set_aside(each)
            for unranked in self._unrankable.values():
                self.say(
                    f"WARNING: {unranked}. It stays, and keep_best passes over it."
                )
            return found
        if damaged:
            raise ValueError(
                f"every checkpoint under {self.directory} is damaged (steps {damaged}). "
                "Nothing was moved: bring back a copy, or move that folder away to start "
                "from step 0."
            )
        return None

    def _set_aside(self, step: int) -> None:
        aside, error = self.directory.parent / "damaged", None
        try:
            if jax.process_index() == 0:
                aside.mkdir(parents=True, exist_ok=True)
                name = f"{step}-{int(time.time())}"
                (self.directory / str(step)).rename(aside / name)
        except OSError as caught:
            error = caught
        agreement.raise_together(error, f"process 0 cannot move files to {aside}")
        self._ranking.remove(step)
        self._unrankable.pop(step, None)
        self._close_writer()  # it remembers the step as saved


def size_in_bytes(tree: Any) -> int:
    """Bytes of every leaf but random keys."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
