"""A run read back from its folder: restore its model, evaluate it.

The folder alone is enough, and no code of its author runs: a config may only name
classes of this package.
"""

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from attn_jax import config, evaluation, paths, sharding
from attn_jax.checkpoint_reader import CheckpointReader, check_same_leaves
from attn_jax.data import pipeline
from attn_jax.step import init_params
from attn_jax.workdir import (
    check_assets,
    check_same_assets,
    evaluation_key,
    load_config,
    row_shapes,
)

TRUSTED = ("attn_jax",)


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
        params: "ema" or "raw"; None takes the average where the run keeps one.
        overrides: {"model.dtype": "bfloat16", ...}: `model.*`, `task.*` and `evals.*` keys
            that leave the parameter tree as it is.
        trust: packages beside this one whose classes the config may name.
        mesh: where the parameters go, replicated; None: the first local device.

    Raises:
        ValueError: no run, no such step, an override that changes the parameters.
        damage.Damaged: the checkpoint asked for is damaged.
    """
    settings = load_settings(workdir, overrides or {}, trust)
    module, variables, task, _ = open_run(workdir, settings, step, params, trust, mesh)
    return module, variables, task


def evaluate(
    workdir: epath.PathLike,
    step: int | str = "latest",
    params: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """{"name/metric": value} of every evaluation in the run's config, and `step`.

    Runs on all devices, every example exactly once. Arguments as of `restore`.
    """
    settings = load_settings(workdir, overrides or {}, trust)
    if not settings.evals:
        raise ValueError(
            f"{workdir}: config.evals is empty, so there is nothing to evaluate; add one "
            "with --set evals.test='{}', keys as in a recipe."
        )
    check_assets(workdir)
    mesh = sharding.make_mesh({"data": -1})
    module, variables, _, record = open_run(
        workdir, settings, step, params, trust, mesh
    )
    at, saved = record["step"], record["leaves"]
    results: dict[str, Any] = {"step": at}
    for name, section in settings.evals.items():
        task = config.build(config.evaluation_task(settings, name), trusted(trust))
        one = evaluation.Evaluation(
            name,
            module,
            task,
            section.split,
            mesh=mesh,
            batch_size=section.batch_size or settings.batch_size,
            key=evaluation_key(settings.seed),
        )
        # An evaluation with data of its own may name things otherwise.
        if hasattr(task, "assets") and not {"cls", "data"} & set(section.task):
            check_same_assets(workdir, task.assets(one.source))
        row = row_shapes(pipeline.batch_shapes(one.source, task, 1))
        check_parameters(parameters_of(module, task, row), saved, at)
        results |= one.run(variables["params"])
    return results


def load_settings(
    workdir: epath.PathLike, overrides: Mapping[str, Any], trust: Sequence[str]
) -> Any:
    saved = load_config(workdir)
    if saved is None:
        raise ValueError(f"{workdir} holds no run: there is no config.json in it.")
    for key in overrides:
        if key.split(".")[0] not in ("model", "task", "evals"):
            raise ValueError(
                f"{key} cannot be set on a finished run; only model.*, task.* and evals.* "
                "keys can."
            )
    texts = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return config.override(saved, texts, trusted(trust))


def open_run(
    workdir: epath.PathLike,
    settings: Any,
    at: int | str,
    which: str | None,
    trust: Sequence[str],
    mesh: Mesh | None,
) -> tuple[nn.Module, dict[str, Any], Any, dict[str, Any]]:
    """(module, variables, task, the checkpoint's record)."""
    if mesh is None:
        mesh = sharding.make_mesh({}, jax.local_devices()[:1])
    module = config.build(settings.model, trusted(trust))
    task = config.build(settings.task, trusted(trust))
    found = CheckpointReader(workdir, keep_best=settings.keep_best)
    at = choose_step(found, at, workdir)
    record = found.record(at)
    saved = record["leaves"]
    placed = sharding.replicated(mesh)

    def like(prefix: str) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name.removeprefix(prefix): jax.ShapeDtypeStruct(
                tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]), sharding=placed
            )
            for name, leaf in saved.items()
            if name.startswith(prefix)
        }

    # The shapes of a training row stand in the record: no data is needed to restore.
    expected = parameters_of(module, task, record["row"])
    check_parameters(expected, saved, at)
    target = {"params": paths.overlay(expected, like("params/"))}
    average = like("average/")
    if which not in (None, "ema", "raw"):
        raise ValueError(f"params={which!r} must be 'ema' or 'raw'.")
    if which == "ema" and not average:
        raise ValueError(
            f"{workdir} keeps no average (config.ema_decay is None); use params='raw'."
        )
    if which != "raw" and average:
        target["average"] = average
    restored = found.restore(at, target)
    found.close()
    params = paths.overlay(restored["params"], restored.get("average", {}))
    return module, {"params": params}, task, record


def parameters_of(module: nn.Module, task: Any, row: Mapping[str, Any]) -> Any:
    """The parameter tree in shapes, for inputs like this row."""
    batch = {
        name: jax.ShapeDtypeStruct((1, *shape), jnp.dtype(dtype))
        for name, (shape, dtype) in row.items()
    }
    init = functools.partial(init_params, module, task)
    return jax.eval_shape(init, batch, jax.random.key(0))


def check_parameters(expected: Any, saved: Mapping[str, Any], at: int) -> None:
    """Raises ValueError where the saved parameters are not those that are expected."""
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
            f"{workdir}: step {at} is none of the saved {steps}; it may also be 'latest' "
            "or 'best'."
        )
    return int(at)


def trusted(trust: Sequence[str]) -> tuple[str, ...]:
    return (*TRUSTED, *trust)


def evaluate_command(arguments: Sequence[str]) -> None:
    """`python -m attn_jax evaluate`: prints the results, last line one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m attn_jax evaluate",
        description="Evaluate a run from its folder.",
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--step", default="latest", help="a number, latest or best")
    parser.add_argument("--params", choices=("ema", "raw"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE")
    options = parser.parse_args(arguments)
    overrides = {}
    for setting in options.set:
        key, _, text = setting.partition("=")
        overrides[key.removeprefix("config.")] = config.parse(text)
    try:
        results = evaluate(
            options.workdir,
            options.step,
            options.params,
            overrides,
            trust=options.trust,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(results))
