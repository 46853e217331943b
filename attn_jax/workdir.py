"""A finished or running run read back from its folder: restore it, evaluate it.

DIR/config.json holds the resolved config, DIR/checkpoints the states, DIR/assets what
the run learned from its data (label names, a vocabulary). Nothing else is needed, and no code of
the folder's author runs: a config may only name classes of this package.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from attn_jax import checkpoint, config, evaluation, limits, paths, sharding
from attn_jax.data import pipeline
from attn_jax.step import init_params

TRUSTED = ("attn_jax",)


def save_config(workdir: epath.PathLike, settings: config.Section) -> None:
    """Writes DIR/config.json; by rename, so that a reader never sees half of it."""
    write(epath.Path(workdir) / "config.json", as_json(settings))


def load_config(workdir: epath.PathLike) -> dict[str, Any] | None:
    """The resolved config of a run, None where the folder holds no run yet.

    Raises:
        ValueError: the file is damaged, or another program's.
    """
    file = epath.Path(workdir) / "config.json"
    if not file.exists():
        return None
    return config.from_json(file.read_text(), str(file))


def save_assets(workdir: epath.PathLike, assets: Mapping[str, str]) -> None:
    """Writes DIR/assets, with digests; a resumed run must bring the same ones.

    Raises:
        ValueError: an asset of the run so far differs.
    """
    check_same_assets(workdir, assets)
    folder = epath.Path(workdir) / "assets"
    for name, text in assets.items():
        write(folder / name, text)
    digests = {n: hashlib.sha256(t.encode()).hexdigest() for n, t in assets.items()}
    write(folder / "digests.json", json.dumps(digests, indent=1))


def check_same_assets(workdir: epath.PathLike, assets: Mapping[str, str]) -> None:
    """Raises ValueError where an asset of the run is not what the data says now."""
    for name, text in assets.items():
        file = epath.Path(workdir) / "assets" / name
        if file.exists() and file.read_text() != text:
            raise ValueError(
                f"{file} differs from what the data says now: label names, a vocabulary or "
                "the like have changed (embedded text changes with the version of "
                "Python). Use the data of the first run, or start in a new --workdir."
            )


def check_assets(workdir: epath.PathLike) -> None:
    """Raises ValueError where a file of DIR/assets is not as it was written."""
    folder = epath.Path(workdir) / "assets"
    if not (folder / "digests.json").exists():
        return
    for name, digest in json.loads((folder / "digests.json").read_text()).items():
        file = folder / name
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise ValueError(
                f"{file} is missing or has changed since it was written; bring back the "
                "original, predictions would be named wrongly."
            )


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
        checkpoint.Damaged: the checkpoint asked for is damaged.
    """
    settings = settings_of(workdir, overrides or {}, trust)
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
    settings = settings_of(workdir, overrides or {}, trust)
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


def evaluation_key(seed: int) -> jax.Array:
    """What evaluations that sample draw from: apart from every key of training."""
    return jax.random.fold_in(jax.random.key(seed), 0xE7A1)


def settings_of(
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
    found = checkpoint.Checkpoints(
        workdir, keep_best=settings.keep_best, read_only=True
    )
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
    limits.check_size(expected)
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


def row_shapes(batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, list]:
    """{name: [shape without the batch dimension, dtype]}, as JSON."""
    return {name: [list(s.shape[1:]), str(s.dtype)] for name, s in batch.items()}


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
    checkpoint.check_same_leaves(params, wanted, at)
    if unused := sorted(params.keys() - wanted.keys()):
        raise ValueError(
            f"the checkpoint of step {at} has parameters that this model lacks: "
            f"{', '.join(unused[:3])}. Leave out the override that removes them."
        )


def choose_step(
    found: checkpoint.Checkpoints, at: int | str, workdir: epath.PathLike
) -> int:
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


def as_json(settings: config.Section) -> str:
    return json.dumps(config.plain(settings), indent=1) + "\n"


def write(file: epath.Path, text: str) -> None:
    """Process 0 writes beside the target and renames."""
    if jax.process_index() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_text(text)
        temporary.replace(file)
