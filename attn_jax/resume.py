"""Whether a run may go on from what its folder holds, and what changed since."""

from typing import Any

from etils import epath

from attn_jax import config as config_lib
from attn_jax import schedules, workdir
from attn_jax.checkpoint import Checkpoints
from attn_jax.data import pipeline
from attn_jax.run import Run
from attn_jax.step import TrainState


def restore_state(
    run: Run, directory: epath.PathLike, checkpoints: Checkpoints
) -> tuple[TrainState, list[str]] | None:
    """(state of the newest whole checkpoint, lines to print); None: there is none.

    Raises:
        ValueError: the config or the data is that of another run.
    """
    notes = compare_configs(run, directory, checkpoints)
    restored = checkpoints.restore_latest(run.state_shapes)
    if restored is None:
        return None
    state, record = restored
    now = pipeline.read_fingerprint(run.source)
    if record["data"] != now:
        raise ValueError(
            f"the training data is not what the run in {directory} began with "
            f"(fingerprint {now}, was {record['data']}). Bring that data back, or use a "
            "new --workdir."
        )
    return state, notes + compare_schedules(run, record["config"], int(state.step))


def compare_configs(
    run: Run, directory: epath.PathLike, checkpoints: Checkpoints
) -> list[str]:
    """A line for each key that changed since the run was last saved.

    Raises:
        ValueError: a key changed that would make it another run.
    """
    before = workdir.load_config(directory)
    if before is None or not checkpoints.steps():
        return []
    allowed, forbidden = config_lib.differences(before, config_lib.plain(run.config))
    if forbidden:
        raise ValueError(
            f"{directory} holds a run with another config; these keys may not change on "
            f"resume: {'; '.join(forbidden)}. Change them back, or use a new --workdir "
            "(config.init_from starts it from this run's parameters)."
        )
    return [f"changed {line}" for line in allowed]


def compare_schedules(run: Run, before: dict[str, Any], step: int) -> list[str]:
    """A warning where another duration changes the learning rate from here on."""
    old = schedules.make_schedule(
        before["schedule"],
        total_steps=run.to_steps(before["duration"]),
        to_steps=run.to_steps,
    )
    was, now = float(old(step)), float(run.schedule(step))
    if was == now:
        return []
    return [
        f"WARNING: the new duration moves the schedule: its factor at step {step:,} is "
        f"{now:.4g}, was {was:.4g}"
    ]
