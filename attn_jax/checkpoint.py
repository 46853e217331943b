"""Checkpoints: the training state, what must agree with it, and proof that it is intact.

A checkpoint is the state and a JSON record: step, shape, dtype and digest of every leaf,
the resolved config, the data's fingerprint, metrics. Orbax writes both asynchronously and
atomically, and restores them onto any mesh.

With several processes every method is a collective: all processes call it, and if it
fails on one, it fails on all.
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
        keep_latest: how many of the newest checkpoints are kept.
        keep_best: "max:name/metric" or "min:name/metric": the best one is kept too.
        patience_seconds: how long `finish` keeps trying if the disk cannot be written.
        say: called with one line of text per event for the user.
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
        """Opened by the first save, and again by the first save after a failed one."""
        return ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=Retention(self._choose_kept),
                cleanup_tmp_directories=True,
                async_options=ocp.options.AsyncOptions(
                    barrier_sync_fn=self._barrier.wait,
                    # Otherwise, if a folder cannot be made, threads wait for it for 5
                    # minutes and keep the process from ending.
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
        """Starts to write the state; if that fails, says why and returns False.

        A failure does not end the run: the state is still in memory, earlier checkpoints
        are untouched, and the next save tries again.
        """
        step = int(state.step)
        # The previous save ran in the background: report its failure first.
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
        """Saves and waits until the state is on disk; tries again for `patience_seconds`.

        `tick` is called before every attempt.

        Raises:
            OSError: the state could not be written.
        """
        give_up = time.monotonic() + self._patience
        while True:
            tick()
            if self.save(state, record, results) and self._wait(state):
                return
            # All give up together: a process that tried again alone would hang.
            late = time.monotonic() + RETRY_SECONDS > give_up
            if agreement.max_over_processes(int(late)):
                raise OSError(
                    errno.EIO,
                    f"step {int(state.step)} could not be saved in {self.directory} within "
                    f"{self._patience:.0f} s: {size_in_bytes(state):,} bytes are needed. "
                    "Earlier checkpoints are untouched; free space there and run the same "
                    "command.",
                )
            self.say(
                f"trying again every {RETRY_SECONDS:.0f} s: free space, or stop the run"
            )
            time.sleep(RETRY_SECONDS)

    def _wait(self, state: Any) -> bool:
        """Waits for the save in progress, if any; whether it succeeded."""
        writer = self.__dict__.get("_writer")
        return self._try(state, writer.wait_until_finished if writer else lambda: None)

    def _try(self, state: Any, action: Callable[..., Any], *arguments: Any) -> bool:
        """Runs one part of a save; whether it succeeded on every process. Says why not."""
        error = None
        try:
            action(*arguments)
        except Exception as caught:
            # Orbax passes on whatever its storage layer raises; here it all means the same.
            error = caught
            self._barrier.break_up()
        if agreement.all_succeeded(error is None):
            return True
        why = shorten(error) if error else "another process could not write its part"
        self.say(
            f"step {int(state.step)} was NOT saved in {self.directory}: {why}. "
            f"{size_in_bytes(state):,} bytes are needed. Training continues, and the next "
            "checkpoint tries again; free space or repair the folder."
        )
        try:
            # The next save opens a new writer: this one counts the failed save as kept.
            self._close_writer()
        except Exception as caught:
            self.say(f"closing the failed save: {shorten(caught)}")
        return False

    def _check_folder(self, state: Any) -> None:
        """Raises OSError if the folder cannot be written or has too little space.

        Orbax would notice too, but on one process while the others wait for it.
        """
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
        if "://" in str(self.directory):
            return  # a cloud bucket has no free space to ask for
        free = shutil.disk_usage(self.directory.parent).free
        if size_in_bytes(state) > free:
            raise OSError(errno.ENOSPC, f"only {free:,} bytes are free")
        trial = self.directory.parent / f".trial-{jax.process_index()}"
        trial.write_bytes(b"x")
        trial.unlink()

    # --- retention ------------------------------------------------------------------

    def ranks(self, results: Mapping[str, float]) -> bool:
        """Whether these results contain the metric of `keep_best`; see `Ranking.is_in`."""
        return self._ranking.is_in(results)

    def check_ranked_by(
        self, evaluations: Mapping[str, Collection[str] | None]
    ) -> None:
        """Raises ValueError if `keep_best` names an unknown evaluation or metric.

        Args:
            evaluations: {name: `Evaluation.metric_names`}.
        """
        self._ranking.check(evaluations)

    def _choose_kept(self, steps: Collection[int]) -> set[int | None]:
        newest = sorted(steps)[-self._keep_latest :]
        # What is damaged is never deleted; one whose record is may be the best, too.
        return {*newest, self._ranking.best(steps), *self._unrankable}

    # --- restoring ------------------------------------------------------------------

    def restore_latest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, record) of the newest intact checkpoint; None if there are none.

        Damaged newer ones are reported and moved to DIR/damaged, so that their steps can
        be saved again. Nothing is deleted, and nothing is moved before an intact one is
        found.

        Raises:
            ValueError: there are checkpoints, but all of them are damaged.
            OSError: the storage cannot be read.
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
        self._close_writer()  # this one still counts the step as saved


def size_in_bytes(tree: Any) -> int:
    """Total bytes of all leaves except random keys."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
