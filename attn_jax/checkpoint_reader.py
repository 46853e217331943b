"""Checkpoints read back: which steps there are, their records, their arrays.

Every failed read is explained once, by `damage.explain_failure`, and is a failure on all
processes: every method is a collective that all of them call alike.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from attn_jax import agreement, paths
from attn_jax.damage import Damaged, Removed, explain_failure
from attn_jax.digests import digest_json, digest_leaves
from attn_jax.folder import resolve_folder
from attn_jax.retention import Ranking

FORMAT = 1  # of the record; those of earlier releases have no number

# Outcomes of a read; where processes differ, the last of these prevails.
KINDS: tuple[type, ...] = (type(None), Damaged, Removed, OSError)

T = TypeVar("T")


class CheckpointReader:
    """The checkpoints under DIR/checkpoints, of a run that may be in progress elsewhere.

    Args:
        keep_best: "max:name/metric" or "min:name/metric", by which `best_step` ranks.
    """

    def __init__(self, workdir: epath.PathLike, *, keep_best: str | None = None):
        self.directory = resolve_folder(workdir) / "checkpoints"
        self._ranking = Ranking(keep_best)
        self._unrankable: dict[int, Damaged] = {}
        self._rank(self.steps() if keep_best else [])

    @functools.cached_property
    def _reader(self) -> ocp.CheckpointManager:
        """Reads without waiting for other processes, so that it may fail on one."""
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # orbax warns of what read-only means
        try:
            return ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    read_only=True,
                    create=False,
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        primary_host=jax.process_index(),
                        active_processes={jax.process_index()},
                    ),
                ),
                item_handlers=make_handlers(),
            )
        finally:
            logging.set_verbosity(verbosity)

    def close(self) -> None:
        if reader := self.__dict__.pop("_reader", None):
            reader.close()

    def steps(self) -> list[int]:
        """Steps with a checkpoint on disk, newest first.

        Raises:
            OSError: the folder is there, but cannot be read.
        """
        error, found = None, []
        try:
            with contextlib.suppress(FileNotFoundError):
                list(self.directory.iterdir())  # orbax calls an unreadable folder empty
                self._reader.reload()
                found = sorted(self._reader.all_steps(), reverse=True)
        except OSError as caught:
            error = caught
        agreement.raise_together(error, f"another process cannot read {self.directory}")
        return agreement.from_first(found)

    def best_step(self) -> int | None:
        """The step with the best value of `keep_best`; the newest of equals.

        Raises:
            Damaged: a record is damaged, and its checkpoint may be the best one.
        """
        steps = self.steps()
        self._rank(steps)
        for step, error in self._unrankable.items():
            if step in steps and self._ranking.metric:
                raise Damaged(
                    step,
                    f"{error.why}. It may be the best one: choose another by its number, "
                    f"or remove {self.directory / str(step)}",
                )
        return self._ranking.best(steps)

    def _rank(self, steps: Collection[int]) -> None:
        self._unrankable = {}
        for step in steps:
            if step not in self._ranking:
                try:
                    self._ranking.add(step, self.record(step)["results"])
                except Damaged as error:
                    self._unrankable[step] = error
                except Removed:
                    continue

    def record(self, step: int) -> dict[str, Any]:
        """The JSON record of a checkpoint.

        Raises:
            Damaged, Removed, OSError: as `explain_failure` tells them apart.
            ValueError: a later release wrote it.
        """

        def read() -> dict[str, Any]:
            content = self._reader.restore(
                step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )["record"]
            if content.pop("digest", None) != digest_json(content):
                raise Damaged(step, "its record has changed")
            return content

        content = self._read(step, read)
        if content.get("format", 0) > FORMAT:
            raise ValueError(
                f"the checkpoint of step {step} has format {content['format']}, but this "
                f"release reads up to {FORMAT}; update attn_jax."
            )
        return content

    def newest_record(self) -> dict[str, Any] | None:
        """The record of the newest checkpoint whose record is whole; None: there is none."""
        for step in self.steps():
            with contextlib.suppress(Damaged, Removed):
                return self.record(step)
        return None

    def restore(self, step: int, like: Any) -> Any:
        """The leaves of `like`, arrays or ShapeDtypeStructs with shardings, from a step.

        `like` may be a part of the state, such as {"params": ...}.

        Raises:
            Damaged, Removed, OSError: as `explain_failure` tells them apart.
            ValueError: the checkpoint is whole, but holds other leaves.
        """
        saved = self.record(step)["leaves"]
        wanted = paths.named_leaves(like)
        check_same_leaves(saved, wanted, step)

        def read() -> Any:
            restored = self._reader.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        like,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                        partial_restore=True,
                    )
                ),
            )["state"]
            check_arrays(paths.named_leaves(restored), wanted, step)
            return restored

        restored = self._read(step, read)
        for name, digest in digest_leaves(restored).items():
            if digest != saved[name]["digest"]:
                raise Damaged(
                    step,
                    f"{name} has digest {digest}, saved was {saved[name]['digest']}",
                )
        return restored

    def _read(self, step: int, read: Callable[[], T]) -> T:
        """The result of `read`; where it fails on one process, the error on all."""
        failure: Exception | None = None
        try:
            result = read()
        except Exception as error:
            failure = explain_failure(error, step, self.directory / str(step))
            failure.__cause__ = error
        kind = KINDS[agreement.largest(KINDS.index(type(failure)))]
        if kind is type(None):
            return result
        if failure is not None and type(failure) is kind:
            raise failure
        elsewhere = "another process cannot read it, and says why"
        if kind is Damaged:
            raise Damaged(step, elsewhere)
        if kind is Removed:
            raise Removed(step)
        raise OSError(f"the checkpoint of step {step}: {elsewhere}")


def make_handlers() -> dict[str, Any]:
    return {
        "state": ocp.PyTreeCheckpointHandler(),
        "record": ocp.JsonCheckpointHandler(),
    }


def check_same_leaves(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], step: int
) -> None:
    """Raises one readable ValueError where orbax would print thousands of lines."""
    problems = []
    for name, leaf in wanted.items():
        if name not in saved:
            problems.append(f"{name} is not in the checkpoint")
            continue
        there = tuple(saved[name]["shape"]), saved[name]["dtype"]
        here = tuple(leaf.shape), str(leaf.dtype)
        if there[0] != here[0]:
            problems.append(f"{name} is {there[0]} there, {here[0]} here")
        elif there[1] != here[1]:
            problems.append(f"{name} is {there[1]} there, {here[1]} here")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"the checkpoint of step {step} is of another model: {'; '.join(problems[:3])}"
            f"{more}. Restore it with the config it was trained with."
        )


def check_arrays(
    restored: Mapping[str, Any], wanted: Mapping[str, Any], step: int
) -> None:
    """Raises Damaged where orbax gave no array, or another one than was asked for."""
    for name, leaf in wanted.items():
        found = restored.get(name)  # orbax has None for what it did not find
        if not isinstance(found, jax.Array):
            raise Damaged(step, f"{name} came back as {found!r}, not as an array")
        if (found.shape, found.dtype) != (tuple(leaf.shape), leaf.dtype):
            raise Damaged(
                step,
                f"{name} came back as {found.dtype}{list(found.shape)}, not as "
                f"{leaf.dtype}{list(leaf.shape)}",
            )
