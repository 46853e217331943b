"""Checkpoints: training state, what must agree with it, and proof that it is whole.

A checkpoint is the state and a JSON record: step, shape, dtype and digest of every leaf,
the resolved config, the data's fingerprint, metrics. Orbax writes both,
asynchronously and atomically, and restores them onto any mesh. It does not
notice a flipped bit; the digests do.
"""

import contextlib
import errno
import functools
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from attn_jax import paths
from attn_jax.digests import describe_leaves, digest_json, digest_leaves
from attn_jax.retention import Ranking, Retention

RETRY_SECONDS = 10.0


class Checkpoints:
    """The checkpoints of one run, under DIR/checkpoints.

    Args:
        keep_latest: how many of the newest stay.
        keep_best: "max:name/metric" or "min:name/metric": the best one stays too.
        patience_seconds: how long `finish` waits for a disk that cannot be written.
        say: where events worth a person's notice go.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        keep_latest: int = 2,
        keep_best: str | None = None,
        patience_seconds: float = 0.0,
        say: Callable[[str], None] = print,
        read_only: bool = False,
    ):
        # Orbax refuses a relative path, but only once it saves.
        self.directory = epath.Path(workdir).resolve() / "checkpoints"
        self._keep_latest, self._patience = keep_latest, patience_seconds
        self.say = say
        self._ranking = Ranking(keep_best)
        self._read_only = read_only
        for step in self.steps() if keep_best else []:
            with contextlib.suppress(Damaged):  # said when it is to be restored
                self._ranking.add(step, self.record(step)["results"])

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Opened at its first use, and at the next one after a save that failed."""
        if self._read_only:
            verbosity = logging.get_verbosity()
            logging.set_verbosity(logging.ERROR)  # orbax warns of what read-only means
            try:
                return ocp.CheckpointManager(
                    self.directory,
                    options=ocp.CheckpointManagerOptions(read_only=True, create=False),
                    item_handlers=handlers(),
                )
            finally:
                logging.set_verbosity(verbosity)
        return ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=Retention(self._kept),
                cleanup_tmp_directories=True,
                # Else a folder that cannot be made leaves threads that wait 5 minutes
                # for it, and the process does not end before.
                async_options=ocp.options.AsyncOptions(
                    create_directories_asynchronously=False
                ),
            ),
            item_handlers=handlers(),
        )

    def close(self) -> None:
        if manager := self.__dict__.pop("_manager", None):
            manager.close()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    # --- saving -------------------------------------------------------------------

    def save(
        self, state: Any, record: Mapping[str, Any], results: Mapping[str, float]
    ) -> bool:
        """Starts to write the state; False, and a line that says why, where it cannot.

        A failure here does not end the run: the state is still in memory, the
        previous checkpoints are untouched, and the next save tries again.
        """
        step = int(state.step)
        try:
            self._manager.check_for_errors()  # of the save before, which ran on meanwhile
            if step in self._manager.all_steps():
                return True
            self._check_space(state)
            content = {
                **record,
                "step": step,
                "leaves": describe_leaves(state),
                "results": dict(results),
            }
            arguments = {
                "state": ocp.args.PyTreeSave(state),
                "record": ocp.args.JsonSave(
                    {**content, "digest": digest_json(content)}
                ),
            }
            self._ranking.add(step, results)
            self._manager.save(step, args=ocp.args.Composite(**arguments))
        except Exception as error:
            # Orbax passes on whatever its storage layer raised; all of it means the same
            # here. A manager whose write has failed is not to be trusted with another.
            self.say(self._failure(state, step, error))
            self._give_up()
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
            if time.monotonic() + RETRY_SECONDS > give_up:
                raise OSError(
                    errno.EIO,
                    f"step {int(state.step)} could not be saved in {self.directory} within "
                    f"{self._patience:.0f} s: {size_of(state):,} bytes are needed. Earlier "
                    "checkpoints are untouched; free space there and run the same command.",
                )
            self.say(
                f"trying again every {RETRY_SECONDS:.0f} s: free space, or stop me"
            )
            time.sleep(RETRY_SECONDS)

    def _wait(self, state: Any) -> bool:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self.say(self._failure(state, int(state.step), error))
            self._give_up()
            return False
        return True

    def _give_up(self) -> None:
        """Lets go of a manager that counts a failed save as a checkpoint to keep."""
        try:
            self.close()
        except Exception as error:
            self.say(f"closing the failed save: {short(error)}")

    def _check_space(self, state: Any) -> None:
        if "://" in str(self.directory):
            return  # a cloud bucket has no free space to ask for
        needed, free = size_of(state), shutil.disk_usage(self.directory).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"only {free:,} bytes are free")

    def _failure(self, state: Any, step: int, error: Exception) -> str:
        return (
            f"step {step} was NOT saved in {self.directory}: {short(error)}. "
            f"{size_of(state):,} bytes are needed; the run goes on, nothing is lost while "
            "it does, and the next checkpoint tries again. Free space or mend the folder."
        )

    def ranks(self, results: Mapping[str, float]) -> bool:
        """Whether these results have the metric of `keep_best`; see `Ranking.is_in`."""
        return self._ranking.is_in(results)

    def check_ranked_by(self, evaluations: Collection[str]) -> None:
        """Raises ValueError where `keep_best` names none of the run's evaluations."""
        self._ranking.check(evaluations)

    def _kept(self, steps: Collection[int]) -> set[int | None]:
        return {*sorted(steps)[-self._keep_latest :], self._ranking.best(steps)}

    # --- restoring ------------------------------------------------------------------

    def record(self, step: int) -> dict[str, Any]:
        """The JSON record of a checkpoint.

        Raises:
            Damaged: it cannot be read, or has changed.
        """
        try:
            content = self._manager.restore(
                step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )["record"]
        except Exception as error:
            raise Damaged(step, short(error)) from error
        if content.pop("digest", None) != digest_json(content):
            raise Damaged(step, "its record has changed")
        return content

    def restore(self, step: int, like: Any) -> Any:
        """The leaves of `like`, arrays or ShapeDtypeStructs with shardings, from a step.

        `like` may be a part of the state, such as {"params": ...}.

        Raises:
            Damaged: the checkpoint cannot be read, or its content has changed.
            ValueError: it is whole, but holds other leaves.
        """
        saved = self.record(step)["leaves"]
        wanted = paths.named_leaves(like)
        check_same_leaves(saved, wanted, step)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        like,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                        partial_restore=True,
                    )
                ),
            )["state"]
        except Exception as error:
            raise Damaged(step, short(error)) from error
        for name, digest in digest_leaves(restored).items():
            if digest != saved[name]["digest"]:
                raise Damaged(
                    step,
                    f"{name} has digest {digest}, saved was {saved[name]['digest']}",
                )
        return restored

    def restore_latest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, record) of the newest whole checkpoint, None where there is none.

        Damaged newer ones are named and moved to DIR/damaged, so that their steps can be
        saved again; nothing is deleted.

        Raises:
            ValueError: there are checkpoints, and every one is damaged.
        """
        found = self.steps()
        for step in found:
            try:
                return self.restore(step, like), self.record(step)
            except Damaged as error:
                self.say(f"{error}. Trying the one before it.")
                self._set_aside(step)
        if found:
            raise ValueError(
                f"every checkpoint under {self.directory} is damaged (steps {found}); they "
                f"now lie in {self.directory.parent / 'damaged'}. Start in a new --workdir, "
                "or run again to start this one from step 0."
            )
        return None

    def best_step(self) -> int | None:
        """The step with the best value of `keep_best`; the newest of equals."""
        return self._ranking.best(self.steps())

    def _set_aside(self, step: int) -> None:
        aside = self.directory.parent / "damaged"
        if jax.process_index() == 0:
            aside.mkdir(parents=True, exist_ok=True)
            (self.directory / str(step)).rename(aside / f"{step}-{int(time.time())}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged checkpoint {step}")
        self._ranking.remove(step)
        self._manager.reload()


class Damaged(Exception):
    """A checkpoint that cannot be trusted."""

    def __init__(self, step: int, why: str):
        super().__init__(f"the checkpoint of step {step} is damaged: {why}")


def handlers() -> dict[str, Any]:
    return {
        "state": ocp.PyTreeCheckpointHandler(),
        "record": ocp.JsonCheckpointHandler(),
    }


def check_same_leaves(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], step: int
) -> None:
    """Raises one readable error where orbax would print thousands of lines."""
    problems = []
    for name, leaf in wanted.items():
        if name not in saved:
            problems.append(f"{name} is not in the checkpoint")
        elif tuple(saved[name]["shape"]) != tuple(leaf.shape):
            problems.append(
                f"{name} is {tuple(saved[name]['shape'])} there, {tuple(leaf.shape)} here"
            )
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"the checkpoint of step {step} is of another model: {'; '.join(problems[:3])}"
            f"{more}. Restore it with the config it was trained with."
        )


def size_of(tree: Any) -> int:
    """Bytes of every leaf."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def short(error: BaseException) -> str:
    """The first line of an error: orbax and tensorstore append pages to it."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"\s+", " ", text.splitlines()[0])[:200].rstrip(".")
