"""Reads checkpoints: which steps there are, their records, their arrays.

`damage.explain_failure` decides what a failed read means. Every method is a collective:
all processes call it, and if it fails on one, it fails on all.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

# As in orbax's own handler of arrays, which cannot be given MIN_PART_BYTES.
from orbax.checkpoint._src.metadata.array_metadata_store import Store

from attn_jax import agreement, paths
from attn_jax.damage import Damaged, Removed, explain_failure
from attn_jax.digests import digest_json, digest_leaves
from attn_jax.folder import resolve_folder
from attn_jax.retention import Ranking

MIN_PART_BYTES = 2**20  # of an array, for a device that holds a copy of it
FORMAT = 1  # of the record; records of earlier releases have no number

# Outcomes of a read; if processes differ, the one that is last here prevails.
KINDS: tuple[type, ...] = (type(None), Damaged, Removed, OSError)

T = TypeVar("T")


class CheckpointReader:
    """The checkpoints under DIR/checkpoints, of a run that may be in progress elsewhere.

    Args:
        keep_best: "max:name/metric" or "min:name/metric": how `best_step` ranks.
    """

    def __init__(self, workdir: epath.PathLike, *, keep_best: str | None = None):
        self.directory = resolve_folder(workdir) / "checkpoints"
        self._ranking = Ranking(keep_best)
        self._unrankable: dict[int, Damaged] = {}
        self._rank(self.steps() if keep_best else [])

    @functools.cached_property
    def _reader(self) -> ocp.CheckpointManager:
        """Reads without waiting for other processes, so it may fail on one of them."""
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # orbax warns about read-only mode
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
            OSError: the folder exists but cannot be read.
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
        return agreement.broadcast_from_first(found)

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
            Damaged, Removed, OSError: it cannot be read; see `damage.explain_failure`.
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
        """The newest record that is intact; None if there is none."""
        for step in self.steps():
            with contextlib.suppress(Damaged, Removed):
                return self.record(step)
        return None

    def restore(self, step: int, like: Any) -> Any:
        """The saved state of a step, or the part of it that `like` describes.

        Args:
            like: a tree of arrays, or of ShapeDtypeStructs with shardings. It may be a part
                of the state, such as {"params": ...}.

        Raises:
            Damaged, Removed, OSError: it cannot be read; see `damage.explain_failure`.
            ValueError: the checkpoint is intact, but lacks leaves of `like` or holds them
                with another shape or dtype.
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
                    f"{name} has digest {digest}, but {saved[name]['digest']} was saved",
                )
        return restored

    def _read(self, step: int, read: Callable[[], T]) -> T:
        """The result of `read`; if it fails on one process, all of them raise."""
        failure: Exception | None = None
        try:
            result = read()
        except Exception as error:
            failure = explain_failure(error, step, self.directory / str(step))
            failure.__cause__ = error
        kind = KINDS[agreement.max_over_processes(KINDS.index(type(failure)))]
        if kind is type(None):
            return result
        if failure is not None and type(failure) is kind:
            raise failure
        elsewhere = "another process cannot read it; see its error"
        if kind is Damaged:
            raise Damaged(step, elsewhere)
        if kind is Removed:
            raise Removed(step)
        raise OSError(f"the checkpoint of step {step}: {elsewhere}")


def make_handlers() -> dict[str, Any]:
    """How orbax reads and writes the items of a checkpoint.

    Devices with the same array write a part of it each only where that pays: each part is
    cut by a program of its own, and a hundred small ones take seconds to compile.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=MIN_PART_BYTES,
        array_metadata_store=Store(),
    )
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "record": ocp.JsonCheckpointHandler(),
    }


def check_same_leaves(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], step: int
) -> None:
    """Raises ValueError, with one line instead of the thousands that orbax would print."""
    problems = []
    for name, leaf in wanted.items():
        if name not in saved:
            problems.append(f"{name} is not in the checkpoint")
            continue
        there = tuple(saved[name]["shape"]), saved[name]["dtype"]
        here = tuple(leaf.shape), str(leaf.dtype)
        for old, new in zip(there, here, strict=True):
            if old != new:
                problems.append(f"{name} is {old} there, {new} here")
                break
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"the checkpoint of step {step} is of another model: {'; '.join(problems[:3])}"
            f"{more}. Restore it with the config it was trained with."
        )


def check_arrays(
    restored: Mapping[str, Any], wanted: Mapping[str, Any], step: int
) -> None:
    """Raises Damaged if orbax returned something other than the requested arrays."""
    for name, leaf in wanted.items():
        found = restored.get(name)  # None if orbax did not find it
        if not isinstance(found, jax.Array):
            raise Damaged(step, f"{name} came back as {found!r}, not as an array")
        if (found.shape, found.dtype) != (tuple(leaf.shape), leaf.dtype):
            raise Damaged(
                step,
                f"{name} came back as {found.dtype}{list(found.shape)}, not as "
                f"{leaf.dtype}{list(leaf.shape)}",
            )
