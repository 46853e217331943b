"""The story of a run: prepare -> resume or start -> loop -> evaluate -> save.

    python train.py --config=configs/vit/digits.py --workdir=DIR [--config.key=value ...]

The same command resumes. Exit status 75: the run was stopped by SIGTERM and saved; run the command again.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from attn_jax import agreement, launch, metrics, runtime, workdir
from attn_jax import config as config_lib
from attn_jax.checkpoint import Checkpoints
from attn_jax.initialize import initialize_from
from attn_jax.logs import Log
from attn_jax.resume import adopt_saved_fields, restore_state
from attn_jax.run import Run, prepare
from attn_jax.step import TrainState
from attn_jax.step_metrics import StepMetrics


def train(config: config_lib.Section, directory: str) -> TrainState:
    """Trains from the newest checkpoint, or from step 0, to the end of `config.duration`.

    Args:
        config: what a recipe's `get_config` returns, or a resolved config.
        directory: the workdir, for config, checkpoints, metrics and curves.

    Raises:
        ValueError: a setting cannot be honored; no step has been taken.
        FloatingPointError: too many updates were skipped; the state before them is saved.
        OSError: the final state could not be saved.
        runtime.Preempted: SIGTERM arrived; the state is saved (exit status 75).
    """
    with workdir.lock(directory) as folder:
        run, checkpoints, state, notes = begin(config, folder)
        return take_steps(run, folder, checkpoints, state, notes)


def begin(
    config: config_lib.Section, directory: str
) -> tuple[Run, Checkpoints, TrainState, list[str]]:
    """Prepares the run: (run, checkpoints, initial or restored state, log lines).

    Nothing is written to the directory before all of this has succeeded.
    """
    config = config_lib.resolve(config)
    agreement.require_same("config", config_lib.flatten(config))
    checkpoints = Checkpoints(
        directory,
        keep_latest=config.keep_latest,
        keep_best=config.keep_best,
        patience_seconds=config.save_patience_seconds,
    )
    resumed = bool(checkpoints.steps())
    saved = workdir.recover_config(directory, checkpoints) if resumed else None
    notes: list[str] = []
    if saved:
        config, notes = adopt_saved_fields(config, saved)
    run = prepare(config, assets=workdir.load_assets(directory) if resumed else None)
    checkpoints.check_ranked_by(
        {
            name: evaluation.metric_names(run.param_shapes)
            for name, evaluation in run.evaluations.items()
        }
    )
    if restored := restore_state(run, directory, saved, checkpoints):
        state, more = restored
        title = f"resumed from step {int(state.step):,}"
    else:
        params, more = initialize_from(run, run.init_params())
        state, title = run.init_state(params), "started from step 0"
    workdir.save_config(directory, run.config)
    workdir.save_assets(directory, run.assets, resumed=resumed)
    return run, checkpoints, state, [title, *(f"  {line}" for line in notes + more)]


def take_steps(
    run: Run,
    directory: str,
    checkpoints: Checkpoints,
    state: TrainState,
    notes: list[str],
) -> TrainState:
    """The loop: batch -> step -> log -> evaluate -> save, to the end of the run."""
    config, first, total = run.config, int(state.step), run.total_steps
    record = run.make_record()
    update = run.make_update()
    flops = run.count_flops()
    peak = metrics.peak_flops(jax.devices()[0].device_kind)
    log_every = run.to_steps(config.log_every)
    save_every = run.to_steps(config.checkpoint_every)
    eval_every = {
        name: run.to_steps(config.evals[name].every) for name in run.evaluations
    }

    with (
        runtime.Preemption() as preemption,
        runtime.Watchdog(config.watchdog_seconds) as watchdog,
        Log(
            directory,
            start_step=first,
            total_steps=total,
            batch_size=config.batch_size,
            flops_per_step=flops,
            peak_flops=peak and peak * run.mesh.size,
            lead=jax.process_index() == 0,
            profile=config.profile,
            tick=watchdog.feed,
        ) as log,
    ):
        for line in [*run.describe(flops), *notes]:
            log.say(line)
        checkpoints.say = log.say
        batches = run.read_batches(first)
        recent = StepMetrics(config.max_skipped, log.say)
        results: dict[str, float] = {}
        try:
            for step in range(first + 1, total + 1):
                began = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - began
                state, sums = update(state, run.place(batch))
                recent.add(step, batch["index"], sums)
                log.step(step, seconds_waiting=waited)
                watchdog.feed()

                last = step == total
                if last or step % log_every == 0:
                    factor = run.schedule(step - 1 - recent.skipped)
                    rate = config.optimizer.learning_rate * float(factor)
                    means = recent.pop_means() | {"train/learning_rate": rate}
                    log.write(step, means, training=True)
                results = {}
                for name, evaluation in run.evaluations.items():
                    if last or step % eval_every[name] == 0:
                        doing = f"evaluating {name}"
                        with log.pause(state, doing, evaluation.num_batches):
                            found = evaluation.run(state.averaged_params, log.tick)
                        log.write(step, found, training=False)
                        results |= found
                if preemption.requested(step) and not last:
                    checkpoints.finish(state, record, results, watchdog.feed)
                    log.say(f"stopped: saved step {step:,}; the same command resumes")
                    raise runtime.Preempted(step)
                if not last and (step % save_every == 0 or checkpoints.ranks(results)):
                    with log.pause(state, f"saving step {step:,}"):
                        checkpoints.save(state, record, results)
        except Exception as error:
            save_after_error(error, state, record, checkpoints, watchdog.feed)
            raise
        with log.pause(state, f"saving step {total:,}"):
            checkpoints.finish(state, record, results, watchdog.feed)
        command = workdir.format_evaluate_command(
            directory,
            best=config.keep_best is not None,
            trust=config_lib.foreign_packages(config),
        )
        log.say(f"evaluate: {command}" if config.evals else f"finished: {directory}")
    checkpoints.close()
    return state


def save_after_error(
    error: Exception,
    state: TrainState,
    record: dict[str, Any],
    checkpoints: Checkpoints,
    tick: Callable[[], None],
) -> None:
    """Saves the last complete state, if possible, before the error is raised."""
    if jax.process_count() > 1 and not isinstance(error, FloatingPointError):
        return  # saving needs all processes, and the others may not have failed
    if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
        checkpoints.say("the error came within a step, so the state cannot be saved")
        return
    try:
        checkpoints.finish(state, record, {}, tick)
        checkpoints.say(f"saved step {int(state.step):,} before the error")
    except Exception as failure:
        checkpoints.say(f"the state could not be saved: {failure}")


if __name__ == "__main__":
    launch.run_from_flags(train, sys.argv)
