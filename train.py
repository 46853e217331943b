"""The story of a run: devices -> data -> model -> state -> resume -> loop -> evaluate -> save.

    python train.py --config=configs/vit/digits.py --workdir=DIR [--config.key=value ...]

The same command resumes. Exit status 75: stopped by SIGTERM and saved; run it again.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from attn_jax import config as config_lib
from attn_jax import (
    metrics,
    optim,
    paths,
    runtime,
    schedules,
    sharding,
    step,
    workdir,
)
from attn_jax.checkpoint import Checkpoints
from attn_jax.convert import load_parameters
from attn_jax.data import pipeline
from attn_jax.evaluation import Evaluation
from attn_jax.logs import Log


def train(config: config_lib.Section, directory: str) -> step.TrainState:
    """Trains from where the directory stands to the end of the config's duration.

    Args:
        config: what a recipe's `get_config` returns, or a resolved config.
        directory: the workdir, for config, checkpoints, metrics and curves.

    Raises:
        ValueError: a setting that cannot be honoured; nothing has been trained then.
        FloatingPointError: gradients stayed non-finite; the state before them is saved.
        OSError: the final state could not be saved.
        runtime.Preempted: SIGTERM came; the state is saved (exit status 75).
    """
    config = config_lib.resolve(config)
    runtime.check_determinism(config.deterministic)

    # Devices.
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(config.batch_size, mesh, config.micro_batches)
    placement = sharding.batch_sharding(mesh)
    rows = pipeline.rows_of_process(placement, config.batch_size)

    # Data.
    task = config_lib.build(config.task)
    source = task.source("train")
    shapes = pipeline.batch_shapes(source, task, config.batch_size)
    reading = {
        "threads": config.data_threads,
        "prefetch": config.data_prefetch,
        "workers": config.data_workers,
    }
    to_steps = functools.partial(
        config_lib.to_steps,
        batch_size=config.batch_size,
        epoch_rows=pipeline.rows_per_epoch(source),
    )
    total_steps = to_steps(config.duration)

    # Model, and what trains it.
    model = config_lib.build(config.model)
    key = jax.random.key(config.seed)
    init = functools.partial(step.init_params, model, task)
    one_row = {name: np.zeros((1, *s.shape[1:]), s.dtype) for name, s in shapes.items()}
    abstract = jax.eval_shape(init, one_row, key)
    layout = sharding.param_shardings(
        mesh, abstract, config.sharding_rules, config.fsdp_min_elements
    )
    schedule = schedules.make_schedule(
        config.schedule, total_steps=total_steps, to_steps=to_steps
    )
    optimizer = optim.make_optimizer(config, abstract, schedule)
    averaged = None
    if config.ema_decay is not None:
        names = paths.named_leaves(abstract).keys()
        trained = names - paths.matching(config.freeze, names, key="freeze")
        averaged = functools.partial(paths.pick, names=trained)
    start = functools.partial(
        step.init_state, optimizer=optimizer, key=key, averaged=averaged
    )
    blank = jax.eval_shape(start, abstract)
    state_layout = sharding.state_shardings(mesh, blank, abstract, layout)
    evaluations = {
        name: Evaluation(
            name,
            model,
            config_lib.build(config_lib.evaluation_task(config, name)),
            section.split,
            mesh=mesh,
            batch_size=section.batch_size or config.batch_size,
            key=workdir.evaluation_key(config.seed),
            reading=reading,
        )
        for name, section in config.evals.items()
        if section.every is not None
    }

    # State: resumed, or new.
    checkpoints = Checkpoints(
        directory,
        keep_latest=config.keep_latest,
        keep_best=config.keep_best,
        patience_seconds=config.save_patience_seconds,
    )
    record = {
        "config": config_lib.plain(config),
        "data": source.fingerprint(),
        "row": workdir.row_shapes(shapes),
    }
    checkpoints.check_ranked_by(evaluations.keys())
    changes = check_resume(directory, checkpoints, record["config"])
    restored = checkpoints.restore_latest(sharding.placed(blank, state_layout))
    if restored is not None:
        state, saved = restored
        if saved["data"] != record["data"]:
            raise ValueError(
                f"the training data is not what the run in {directory} began with "
                f"(fingerprint {record['data']}, was {saved['data']}). Bring that data "
                "back, or use a new --workdir."
            )
        changes += moved_schedule(saved["config"], int(state.step), schedule, to_steps)
    else:
        params = jax.jit(init, out_shardings=layout)(one_row, key)
        params, notes = initialised_from(config.init_from, model, params)
        changes += notes
        state = jax.jit(start, out_shardings=state_layout)(params)
    first = int(state.step)
    workdir.save_config(directory, config)
    if hasattr(task, "assets"):
        workdir.save_assets(directory, task.assets(source))

    # Loop.
    update = jax.jit(
        functools.partial(
            step.train_step,
            model=model,
            task=task,
            optimizer=optimizer,
            micro_batches=config.micro_batches,
            ema_decay=config.ema_decay,
            averaged=averaged,
        ),
        out_shardings=(state_layout, None),
        donate_argnums=0,
    )
    forward = functools.partial(step.eval_step, model=model, task=task)
    flops = 3 * metrics.count_flops(jax.make_jaxpr(forward)(abstract, shapes, key))
    peak = metrics.peak_flops(jax.devices()[0].device_kind)
    peak_rate = config.optimizer.learning_rate
    log_every = to_steps(config.log_every)
    save_every = to_steps(config.checkpoint_every)
    eval_every = {name: to_steps(config.evals[name].every) for name in evaluations}

    with (
        runtime.Preemption() as preemption,
        runtime.Watchdog(config.watchdog_seconds) as watchdog,
        Log(
            directory,
            start_step=first,
            total_steps=total_steps,
            batch_size=config.batch_size,
            flops_per_step=flops,
            peak_flops=peak and peak * mesh.size,
            lead=jax.process_index() == 0,
            profile=config.profile,
        ) as log,
    ):
        axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        for line in [
            f"devices: {mesh.size} x {jax.devices()[0].device_kind} of "
            f"{jax.process_count()} process(es), mesh {axes}",
            f"parameters: {count(abstract):,}",
            *(
                f"  {line}"
                for line in sharding.table(abstract, layout)
                if mesh.size > 1
            ),
            f"data: {len(source):,} records{left_out(source)}, {total_steps:,} steps of "
            f"{config.batch_size} ({config.duration})",
            f"operations: {flops:.3g} FLOP a step (forward x 3, counted)",
            f"resumed from step {first:,}" if restored else "started from step 0",
            *(f"  {line}" for line in changes),
        ]:
            log.say(line)
        checkpoints.say = log.say
        batches = pipeline.training_batches(
            source,
            task,
            seed=config.seed,
            batch_size=config.batch_size,
            rows=rows,
            start_step=first,
            **reading,
        )
        recent = Recent(config.max_skipped, log.say)
        results: dict[str, float] = {}
        try:
            for at in range(first + 1, total_steps + 1):
                began = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - began
                state, sums = update(
                    state, pipeline.place(batch, placement, config.batch_size, rows)
                )
                recent.add(at, batch["index"], sums)
                log.step(at, seconds_waiting=waited)
                watchdog.feed()

                last = at == total_steps
                if last or at % log_every == 0:
                    factor = schedule(at - 1 - recent.skipped)
                    rate = {"train/learning_rate": peak_rate * float(factor)}
                    log.write(at, recent.means() | rate, training=True)
                results = {}
                for name, evaluation in evaluations.items():
                    if last or at % eval_every[name] == 0:
                        with log.pause(state):
                            found = evaluation.run(evaluated(state), watchdog.feed)
                        log.write(at, found, training=False)
                        results |= found
                if preemption.requested(at) and not last:
                    checkpoints.finish(state, record, results, watchdog.feed)
                    log.say(f"SIGTERM: saved step {at:,}; the same command goes on")
                    raise runtime.Preempted(at)
                if not last and (at % save_every == 0 or checkpoints.ranks(results)):
                    with log.pause(state):
                        checkpoints.save(state, record, results)
        except FloatingPointError:
            checkpoints.finish(state, record, {}, watchdog.feed)
            raise
        checkpoints.finish(state, record, results, watchdog.feed)
        best = " --step=best" if config.keep_best else ""
        log.say(f"evaluate: python -m attn_jax evaluate --workdir={directory}{best}")
    checkpoints.close()
    return state


class Recent:
    """The metrics of the steps since the last report, and whether they are healthy.

    Numbers are fetched one step behind, so that the device never waits for Python.
    """

    def __init__(self, max_skipped: int, say: Callable[[str], None]):
        self.max_skipped, self.say = max_skipped, say
        self.pending: list[tuple[int, np.ndarray, Any]] = []
        self.total: dict[str, tuple[Any, Any]] = {}
        self.skipped = 0  # since the run began

    def add(self, at: int, index: np.ndarray, sums: Any) -> None:
        self.pending.append((at, index, sums))
        if len(self.pending) > 1:
            self.fetch()

    def means(self) -> dict[str, float]:
        """{"train/metric": mean} since the last call."""
        while self.pending:
            self.fetch()
        means = metrics.ratio(self.total) | {"skipped": float(self.skipped)}
        self.total = {}
        return {f"train/{name}": value for name, value in means.items()}

    def fetch(self) -> None:
        """Takes in the oldest step; raises FloatingPointError after too many skips."""
        at, index, sums = self.pending.pop(0)
        sums = jax.tree.map(float, jax.device_get(sums))  # added up in float64
        self.skipped = int(sums.pop("skipped")[0])
        in_a_row = int(sums.pop("skipped_in_a_row")[0])
        if in_a_row:
            shown = ", ".join(map(str, index[:8]))
            batch = f"step {at:,}, examples {shown}{', ...' if len(index) > 8 else ''}"
            self.say(f"gradient not finite, update skipped: {batch}")
            if in_a_row >= self.max_skipped:
                raise FloatingPointError(
                    f"the gradient was not finite {in_a_row} times in a row, last at {batch} "
                    f"(config.max_skipped={self.max_skipped}). The state before them is "
                    "saved; lower the learning rate or look at these examples."
                )
            return  # its sums would spoil the mean
        self.total = metrics.add(self.total, sums) if self.total else sums


def evaluated(state: step.TrainState) -> Any:
    """The parameters that evaluations use: averaged where an average is kept."""
    return paths.overlay(state.params, state.average or {})


def count(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def left_out(source: Any) -> str:
    skipped = getattr(source, "skipped", 0)
    return f" ({skipped:,} corrupt ones left out)" if skipped else ""


def check_resume(
    directory: str, checkpoints: Checkpoints, config: config_lib.Section
) -> list[str]:
    """What changed since the run was last saved, as lines.

    Raises:
        ValueError: a key changed that would make it another run.
    """
    before = workdir.load_config(directory)
    if before is None or not checkpoints.steps():
        return []
    allowed, forbidden = config_lib.differences(before, config)
    if forbidden:
        raise ValueError(
            f"{directory} holds a run with another config; these keys may not change on "
            f"resume: {'; '.join(forbidden)}. Change them back, or use a new --workdir."
        )
    return [f"changed {line}" for line in allowed]


def moved_schedule(
    before: dict[str, Any], at: int, schedule: Any, to_steps: Callable[[str], int]
) -> list[str]:
    """A warning where another duration changes the learning rate from here on."""
    old = schedules.make_schedule(
        before["schedule"], total_steps=to_steps(before["duration"]), to_steps=to_steps
    )
    was, now = float(old(at)), float(schedule(at))
    if was == now:
        return []
    return [
        f"WARNING: the new duration moves the schedule: its factor at step {at:,} is "
        f"{now:.4g}, was {was:.4g}"
    ]


def initialised_from(sources: Any, model: Any, params: Any) -> tuple[Any, list[str]]:
    """The parameters with those of `config.init_from` in their place, and what to tell: a
    checkpoint's model may differ where no shape does, as in its activation.

    Raises:
        ValueError: parameters of the checkpoint have no place, or another shape.
    """
    ours, notes = paths.named_leaves(params), []
    for path, prefix, skip in sources:
        inside = f"{prefix}/" if prefix else ""
        shapes = {
            name.removeprefix(inside): leaf.shape
            for name, leaf in ours.items()
            if name.startswith(inside)
        }
        if not shapes:
            raise ValueError(
                f"config.init_from: the model has no part {prefix!r}; "
                f"{config_lib.suggest(prefix, params)}"
            )
        module, theirs = load_parameters(path, shapes, skip)
        if different := [
            f"  {name} {leaf.shape}, here {shapes.get(name, 'absent')}"
            for name, leaf in theirs.items()
            if shapes.get(name) != leaf.shape
        ]:
            raise ValueError(
                f"config.init_from: parameters of {path} have no place in the model. Match "
                "them by the skip regex to leave them out:\n" + "\n".join(different)
            )
        found = {
            inside + name: jax.device_put(leaf, ours[inside + name].sharding)
            for name, leaf in theirs.items()
        }
        params = paths.overlay(params, found)
        notes.append(f"init_from {path}: {len(found)} of {len(ours)} parameters")
        if type(module) is type(model):
            notes[-1] += "".join(
                f"; {field.name} was {getattr(module, field.name)!r}"
                for field in dataclasses.fields(module)
                if field.name not in ("parent", "name")
                and getattr(module, field.name) != getattr(model, field.name)
            )
    return params, notes


def main(arguments: list[str]) -> None:
    """The command; `run_command` reports errors and sets the exit status."""
    options = flags.FLAGS

    def command() -> None:
        if len(arguments) > 1:
            raise ValueError(
                f"{arguments[1]!r} is no flag; settings are --config.key=value"
            )
        config = config_lib.load(options.config, [text[9:] for text in overrides])
        if config.deterministic:
            runtime.ask_for_determinism()
        runtime.start_distributed(
            options.coordinator, options.num_processes, options.process_id
        )
        train(config, options.workdir)

    runtime.run_command(command, traceback=options.traceback)


if __name__ == "__main__":
    flags.DEFINE_string(
        "config", None, "Recipe: path/to/file.py[:variant].", required=True
    )
    flags.DEFINE_string("workdir", None, "Where the run lives.", required=True)
    flags.DEFINE_string("coordinator", None, "host:port of process 0, if not found.")
    flags.DEFINE_integer("num_processes", None, "With --coordinator: how many.")
    flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is.")
    flags.DEFINE_bool("traceback", False, "Show where an error was raised.")
    words = flags.FLAGS.read_flags_from_files(sys.argv)  # expands --flagfile=FILE
    # Read by attn_jax.config, once the model's fields are known.
    overrides = [text for text in words[1:] if text.startswith("--config.")]
    app.run(main, [text for text in words if text not in overrides])
