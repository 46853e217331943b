"""Decides whether a run may resume from its folder, and reports what has changed."""

from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from attn_jax import config as config_lib
from attn_jax import migrations, schedules, sections
from attn_jax.checkpoint import Checkpoints
from attn_jax.data import pipeline
from attn_jax.run import Run
from attn_jax.step import TrainState

# Data may move: its fingerprint shows whether it is the same.
PATHS = ("task.data", "task.real_labels", "task.vocabulary")


def adopt_saved_fields(
    config: ConfigDict, saved: Mapping[str, Any]
) -> tuple[ConfigDict, list[str]]:
    """The config with the behavior of older releases where the saved run relies on it.

    If the default of a newer field differs from what an older release did, the field keeps
    the saved value unless the user sets it. Fields that are "auto" get the saved values, too.

    Args:
        saved: the run's config, in the current format.

    Returns: the config, and a log line for each such field.
    """
    notes: list[str] = []
    filled: list[str] = []

    def adopt(ours: Any, theirs: Any, where: str) -> Any:
        if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
            return ours
        merged = {k: adopt(v, theirs.get(k), f"{where}{k}.") for k, v in ours.items()}
        known = {k: theirs[k] for k in sections.find_open(ours) if k in theirs}
        merged |= known
        filled.extend(known)
        for field in migrations.younger_fields(ours.get("cls")):
            default = sections.default_value(ours["cls"], field)
            if field in theirs and ours[field] == default != theirs[field]:
                merged[field] = theirs[field]
                notes.append(f"{where}{field}={theirs[field]}, as when the run began")
        return merged

    adopted = adopt(config_lib.to_plain(config), saved, "")
    return (config_lib.resolve(adopted) if notes or filled else config), notes


def restore_state(
    run: Run,
    directory: epath.PathLike,
    saved: Mapping[str, Any] | None,
    checkpoints: Checkpoints,
) -> tuple[TrainState, list[str]] | None:
    """(state of the newest intact checkpoint, log lines); None if there is none.

    Args:
        saved: the run's config as it was saved last, if there is one.

    Raises:
        ValueError: the folder's run has another config or other data, or every checkpoint
            is damaged.
    """
    if not checkpoints.steps():
        return None
    notes = compare_configs(run, directory, saved) if saved else []
    restored = checkpoints.restore_latest(run.state_shapes)
    if restored is None:
        return None
    state, record = restored
    now = pipeline.read_fingerprint(run.source)
    if record["data"] != now:
        raise ValueError(
            f"the training data is not what the run in {directory} began with "
            f"(fingerprint {now}, was {record['data']}). Restore that data, or use a "
            "new --workdir."
        )
    return state, notes + compare_schedules(run, record["config"], int(state.step))


def compare_configs(
    run: Run, directory: epath.PathLike, saved: Mapping[str, Any]
) -> list[str]:
    """One line for each key that changed since the run was last saved.

    Raises:
        ValueError: a key changed that may not change on resume.
    """
    allowed, forbidden = config_lib.differences(saved, run.config)
    moved = [line for line in forbidden if line.partition(":")[0] in PATHS]
    if others := [line for line in forbidden if line not in moved]:
        raise ValueError(config_lib.explain_forbidden(str(directory), others))
    return [f"changed {line}" for line in [*moved, *allowed]]


def compare_schedules(run: Run, before: dict[str, Any], step: int) -> list[str]:
    """A warning if a new duration changes the learning rate at this step."""
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
