"""The story of a run: prepare -> resume or start -> loop -> evaluate -> save.

    python train.py --config=configs/vit/digits.py --workdir=DIR [--config.key=value ...]

The same command resumes. Exit status 75: stopped by SIGTERM and saved; run it again.
"""

import sys
import time
from typing import Any

import jax
from absl import app, flags

from attn_jax import config as config_lib
from attn_jax import metrics, paths, runtime, workdir
from attn_jax.checkpoint import Checkpoints
from attn_jax.initialize import initialize_from
from attn_jax.logs import Log
from attn_jax.resume import restore_state
from attn_jax.run import Run, prepare
from attn_jax.step import TrainState
from attn_jax.step_metrics import StepMetrics


def train(config: config_lib.Section, directory: str) -> TrainState:
    """Trains from where the directory stands to the end of the config's duration.

    Args:
        config: what a recipe's `get_config` returns, or a resolved config.
        directory: the workdir, for config, checkpoints, metrics and curves.

    Raises:
        ValueError: a setting that cannot be honored; nothing has been trained then.
        FloatingPointError: too many updates were skipped; the state before them is saved.
        OSError: the final state could not be saved.
        runtime.Preempted: SIGTERM came; the state is saved (exit status 75).
    """
    run = prepare(config)
    config = run.config
    checkpoints = Checkpoints(
        directory,
        keep_latest=config.keep_latest,
        keep_best=config.keep_best,
        patience_seconds=config.save_patience_seconds,
    )
    checkpoints.check_ranked_by(run.evaluations.keys())
    state, notes = start(run, directory, checkpoints)
    first, total = int(state.step), run.total_steps
    workdir.save_config(directory, config)
    if hasattr(run.task, "assets"):
        workdir.save_assets(directory, run.task.assets(run.source))

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
        ) as log,
    ):
        operations = f"operations: {flops:.3g} FLOP a step (forward x 3, counted)"
        for line in [*run.describe(), operations, *notes]:
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
                        with log.pause(state):
                            found = evaluation.run(
                                averaged_params(state), watchdog.feed
                            )
                        log.write(step, found, training=False)
                        results |= found
                if preemption.requested(step) and not last:
                    checkpoints.finish(state, record, results, watchdog.feed)
                    log.say(f"stopped: saved step {step:,}; the same command goes on")
                    raise runtime.Preempted(step)
                if not last and (step % save_every == 0 or checkpoints.ranks(results)):
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


def start(
    run: Run, directory: str, checkpoints: Checkpoints
) -> tuple[TrainState, list[str]]:
    """The state to begin with, resumed or new, and the lines that say so."""
    if restored := restore_state(run, directory, checkpoints):
        state, notes = restored
        return state, [
            f"resumed from step {int(state.step):,}",
            *(f"  {note}" for note in notes),
        ]
    params, notes = initialize_from(run, run.init_params())
    return run.init_state(params), [
        "started from step 0",
        *(f"  {note}" for note in notes),
    ]


def averaged_params(state: TrainState) -> Any:
    """The parameters that evaluations use: averaged where an average is kept."""
    return paths.overlay(state.params, state.average or {})


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
