"""Restores and evaluates a run from its folder.

Nothing but the folder is needed, and none of its author's code runs: a config may only
name classes of this package. The run may still be in progress.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from jax.sharding import Mesh

from attn_jax import config, evaluation, limits, paths, sharding
from attn_jax import workdir as workdir_lib
from attn_jax.checkpoint_reader import CheckpointReader, check_same_leaves
from attn_jax.damage import Damaged, Removed
from attn_jax.data import pipeline
from attn_jax.step import init_params

TRUSTED = ("attn_jax",)
REMOVAL_SECONDS = 1.0  # more than it takes to remove a checkpoint


def restore(
    workdir: epath.PathLike,
    step: int | str = "latest",
    params: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    trust: Sequence[str] = (),
    mesh: Mesh | None = None,
) -> tuple[nn.Module, dict[str, Any], Any]:
    """(module, variables, task) of a run, from its folder alone.

    Args:
        step: a step number, "latest", or "best" by the run's `keep_best`.
        params: "ema" or "raw"; None uses the average if the run keeps one.
        overrides: {"model.dtype": "bfloat16", ...}: `model.*`, `task.*` and `evals.*` keys
            that do not change the parameter tree.
        trust: other packages whose classes the config may name.
        mesh: devices to shard the parameters over, by the run's own rules; None: the
            first local device holds all of them.

    Raises:
        ValueError: the folder holds no run, or no checkpoint of that step; an override
            changes the parameter tree; config.json, an asset or the checkpoint is damaged.
        OSError: the folder cannot be read.
    """
    run = open_saved(workdir, step, params, overrides, trust=trust, mesh=mesh)
    return run.module, {"params": run.params}, run.task


def open_saved(
    workdir: epath.PathLike,
    step: int | str = "latest",
    params: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    trust: Sequence[str] = (),
    mesh: Mesh | None = None,
) -> "Opened":
    """Like `restore`, but also returns the assets and the checkpoint's record."""
    loaded = load_settings(workdir, overrides, trust)
    return open_run(workdir, loaded, step, params, trust, mesh)


def evaluate(
    workdir: epath.PathLike,
    step: int | str = "latest",
    params: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """{"name/metric": value} of every evaluation in the run's config, and `step`.

    Runs on all devices of all processes, with parameters sharded as in training. Every
    example counts exactly once. Arguments and errors are those of `restore`.
    """
    loaded = load_settings(workdir, overrides, trust)
    settings = loaded[0]
    if not settings.evals:
        raise ValueError(
            f"{workdir}: config.evals is empty, so there is nothing to evaluate; add an "
            "evaluation with --set evals.test='{}', with keys as in a recipe."
        )
    mesh = make_saved_mesh(settings.mesh)
    run = open_run(workdir, loaded, step, params, trust, mesh)
    saved = run.record["leaves"]
    results: dict[str, Any] = {"step": run.record["step"]}
    for name, section in settings.evals.items():
        task = build_task(config.evaluation_task(settings, name), run.assets, trust)
        one = evaluation.open_evaluation(settings, name, task, run.module, mesh)
        # A bound task uses the run's names for any data. Without `bind`, only an
        # evaluation with data of its own may have other names.
        own_data = {"cls", "data"} & set(section.task)
        if hasattr(task, "assets") and not hasattr(task, "bind") and not own_data:
            workdir_lib.check_same_assets(workdir, task.assets(one.source))
        limits.check_size({}, pipeline.batch_shapes(one.source, task, one.batch_size))
        row = workdir_lib.describe_row(pipeline.batch_shapes(one.source, task, 1))
        check_parameters(
            shape_parameters(run.module, task, row), saved, results["step"]
        )
        results |= one.run(run.params)
    return results


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run as it was saved at one step; `task` is bound to `assets`."""

    module: nn.Module
    params: Any
    task: Any
    assets: Mapping[str, str]
    record: Mapping[str, Any]


def open_run(
    workdir: epath.PathLike,
    loaded: tuple[Any, Mapping[str, Any]],
    step: int | str,
    params: str | None,
    trust: Sequence[str],
    mesh: Mesh | None,
) -> Opened:
    """What `restore` and `evaluate` need of a run; arguments as in `restore`.

    Args:
        loaded: (config with overrides, config as saved), from `load_settings`.
    """
    if params not in (None, "ema", "raw"):
        raise ValueError(f"params={params!r} must be 'ema' or 'raw'.")
    if mesh is None:
        mesh = sharding.make_mesh({}, jax.local_devices()[:1])
    settings, saved = loaded
    assets = workdir_lib.load_assets(workdir)
    module = config.build(settings.model, list_trusted(trust))
    task = build_task(settings.task, assets, trust)
    checkpoints = CheckpointReader(workdir, keep_best=settings.keep_best)
    try:
        while True:
            at = choose_step(checkpoints, step, workdir)
            try:
                record = checkpoints.record(at)
                check_same_config(workdir, saved, record, trust)
                like = plan_restore(record, settings, module, task, params, mesh)
                restored = checkpoints.restore(at, like)
                break
            except (Damaged, Removed) as error:
                # A run in progress removes old checkpoints once a newer one is there.
                time.sleep(REMOVAL_SECONDS)
                if error.step in checkpoints.steps():
                    raise
                if str(step) == str(error.step):
                    raise Removed(error.step) from None
    finally:
        checkpoints.close()
    merged = paths.replace_leaves(restored["params"], restored.get("average", {}))
    return Opened(module, merged, task, assets, record)


def load_settings(
    workdir: epath.PathLike,
    overrides: Mapping[str, Any] | None,
    trust: Sequence[str],
) -> tuple[Any, dict[str, Any]]:
    """(resolved config with the overrides, config as saved).

    If config.json is damaged or missing, the config of the newest checkpoint is used.
    """
    for key in overrides or {}:
        if key.split(".")[0] not in ("model", "task", "evals"):
            raise ValueError(
                f"{key} cannot be changed after training; only model.*, task.* and evals.* "
                "keys can."
            )
    checkpoints = CheckpointReader(workdir)
    try:
        saved = workdir_lib.recover_config(workdir, checkpoints, warn)
    finally:
        checkpoints.close()
    if saved is None:
        raise ValueError(f"{workdir} holds no run: it has no config.json.")
    texts = [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
    return config.override(saved, texts, list_trusted(trust)), saved


def check_same_config(
    workdir: epath.PathLike,
    saved: config.Section,
    record: Mapping[str, Any],
    trust: Sequence[str],
) -> None:
    """Compares config.json with the config in a checkpoint's record.

    Keys that may change on resume may differ, since the checkpoint may be older than the
    file. A warning is logged if that affects evaluations.

    Raises:
        ValueError: keys differ that cannot change during a run.
    """
    there, here = (
        config.resolve(c, list_trusted(trust)) for c in (record["config"], saved)
    )
    allowed, forbidden = config.differences(there, here)
    file = f"{workdir}/config.json"
    if forbidden:
        raise ValueError(
            f"{file} is not the config of the checkpoint of step {record['step']}: "
            f"{'; '.join(forbidden)}. Restore the original, or remove the file: the "
            "checkpoint's config is then used."
        )
    if changed := [line for line in allowed if line.startswith(("evals", "keep_best"))]:
        warn(
            f"WARNING: {file} has changed since the checkpoint of step "
            f"{record['step']}: {'; '.join(changed)}"
        )


def plan_restore(
    record: Mapping[str, Any],
    settings: Any,
    module: nn.Module,
    task: Any,
    params: str | None,
    mesh: Mesh,
) -> dict[str, Any]:
    """What to read: {"params": shapes with shardings, and "average" if it is used}.

    Raises:
        ValueError: the checkpoint's parameters do not fit the model, or an average is
            requested but the checkpoint has none.
    """
    saved, at = record["leaves"], record["step"]
    # The record holds the shapes of a training row, so restoring needs no data.
    expected = shape_parameters(module, task, record["row"])
    limits.check_size(expected)
    check_parameters(expected, saved, at)
    layout = paths.named_leaves(choose_shardings(expected, settings, mesh))

    def shapes_below(prefix: str) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name.removeprefix(prefix): jax.ShapeDtypeStruct(
                tuple(leaf["shape"]),
                jnp.dtype(leaf["dtype"]),
                sharding=layout[name.removeprefix(prefix)],
            )
            for name, leaf in saved.items()
            if name.startswith(prefix)
        }

    like = {"params": paths.replace_leaves(expected, shapes_below("params/"))}
    average = shapes_below("average/")
    if params == "ema" and not average:
        raise ValueError(
            f"the checkpoint of step {at} has no average (config.ema_decay is None); use "
            "params='raw'."
        )
    if params != "raw" and average:
        like["average"] = average
    return like


def make_saved_mesh(sizes: config.Section) -> Mesh:
    """The run's mesh; if it does not fit the devices here, one with `fsdp` over all."""
    try:
        return sharding.make_mesh(sizes)
    except ValueError:
        return sharding.make_mesh({"fsdp": -1})


def choose_shardings(params: Any, settings: Any, mesh: Mesh) -> Any:
    """Shardings by the run's rules, or without rules if one does not fit this mesh."""
    smallest = settings.fsdp_min_elements
    try:
        rules = settings.sharding_rules
        return sharding.param_shardings(mesh, params, rules, smallest)
    except ValueError:
        return sharding.param_shardings(mesh, params, [], smallest)


def build_task(
    section: config.Section, assets: Mapping[str, str], trust: Sequence[str]
) -> Any:
    """The task, bound to what the run learned from its training data if it has `bind`."""
    task = config.build(section, list_trusted(trust))
    return task.bind(assets) if assets and hasattr(task, "bind") else task


def shape_parameters(module: nn.Module, task: Any, row: Mapping[str, Any]) -> Any:
    """The shapes of the parameter tree, for inputs like this row."""
    batch = {
        name: jax.ShapeDtypeStruct((1, *shape), jnp.dtype(dtype))
        for name, (shape, dtype) in row.items()
    }
    init = functools.partial(init_params, module, task)
    return jax.eval_shape(init, batch, jax.random.key(0))


def check_parameters(expected: Any, saved: Mapping[str, Any], at: int) -> None:
    """Raises ValueError if the saved parameters are not those that the model expects."""
    params = {
        name.removeprefix("params/"): leaf
        for name, leaf in saved.items()
        if name.startswith("params/")
    }
    wanted = paths.named_leaves(expected)
    check_same_leaves(params, wanted, at)
    if unused := sorted(params.keys() - wanted.keys()):
        raise ValueError(
            f"the checkpoint of step {at} has parameters that this model lacks: "
            f"{', '.join(unused[:3])}. Leave out the override that removes them."
        )


def choose_step(found: CheckpointReader, at: int | str, workdir: epath.PathLike) -> int:
    steps = found.steps()
    if not steps:
        raise ValueError(f"{workdir} holds no checkpoint yet.")
    if at == "latest":
        return steps[0]
    if at == "best":
        best = found.best_step()
        if best is None:
            raise ValueError(
                f"{workdir}: no checkpoint is ranked (config.keep_best); use one of "
                f"--step={', '.join(map(str, steps))} or latest."
            )
        return best
    if str(at) not in map(str, steps):
        raise ValueError(
            f"{workdir} has no checkpoint of step {at}; choose one of {steps}, 'latest' or "
            "'best'."
        )
    return int(at)


def warn(text: str) -> None:
    logging.warning("%s", text)


def list_trusted(trust: Sequence[str]) -> tuple[str, ...]:
    return (*TRUSTED, *trust)
