"""Prepares all parts of a run from its config, before the first step."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from attn_jax import config as config_lib
from attn_jax import (
    limits,
    metrics,
    optim,
    paths,
    runtime,
    schedules,
    sharding,
    step,
    workdir,
)
from attn_jax.data import pipeline, sources, vocabulary
from attn_jax.derived import derive
from attn_jax.evaluation import Evaluation, open_evaluation
from attn_jax.version import describe_code


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run, from `prepare`. Nothing is trained yet or written to disk.

    Attributes:
        config: the resolved config.
        mesh: all devices.
        batch_sharding: the sharding of every array of a batch.
        rows: the rows of the global batch that this process reads.
        task, source: the objective and its training records.
        assets: {file name: text}: what an evaluation must know about the training data.
        batch_shapes: {name: shape and dtype} of a global batch.
        to_steps: converts a duration such as "5 epochs" to optimizer steps.
        total_steps: length of the run.
        model: the Flax module.
        param_shapes, param_shardings: trees with the structure of the parameters.
        trained: names of the parameters that are not frozen.
        schedule: step -> factor of the learning rate.
        optimizer: gradients -> updates, which are added to the parameters.
        evaluations: {name: evaluation} of those that have a cadence.
        derived: log lines about the values that the config left open.
    """

    config: ConfigDict
    mesh: Mesh
    batch_sharding: NamedSharding
    rows: np.ndarray
    task: Any
    source: Any
    assets: dict[str, str]
    batch_shapes: dict[str, jax.ShapeDtypeStruct]
    to_steps: Callable[[str], int]
    total_steps: int
    model: nn.Module
    param_shapes: Any
    param_shardings: Any
    trained: frozenset[str]
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    evaluations: dict[str, Evaluation]
    derived: Sequence[str]

    @functools.cached_property
    def state_shapes(self) -> step.TrainState:
        """A `TrainState` of shapes with shardings, as needed to restore a checkpoint."""
        shapes = jax.eval_shape(self._start, self.param_shapes)
        shardings = sharding.state_shardings(
            self.mesh, shapes, self.param_shapes, self.param_shardings
        )
        return sharding.add_shardings(shapes, shardings)

    @property
    def state_shardings(self) -> step.TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes)

    def init_params(self) -> Any:
        """Initializes the parameters, sharded over the mesh."""
        rows = {
            name: np.zeros((1, *array.shape[1:]), array.dtype)
            for name, array in self.batch_shapes.items()
        }
        init = functools.partial(step.init_params, self.model, self.task)
        key = jax.random.key(self.config.seed)
        return jax.jit(init, out_shardings=self.param_shardings)(rows, key)

    def init_state(self, params: Any) -> step.TrainState:
        """The state at step 0 with these parameters, sharded over the mesh."""
        return jax.jit(self._start, out_shardings=self.state_shardings)(params)

    def _start(self, params: Any) -> step.TrainState:
        return step.init_state(
            params,
            self.optimizer,
            jax.random.key(self.config.seed),
            self.trained if self.config.ema_decay is not None else None,
        )

    def make_update(self) -> Callable[[step.TrainState, Any], Any]:
        """The jitted training step: (state, batch) -> (state, metric sums).

        It donates its state: do not use the old one again.
        """
        update = functools.partial(
            step.train_step,
            model=self.model,
            task=self.task,
            optimizer=self.optimizer,
            trained=self.trained,
            micro_batches=self.config.micro_batches,
            ema_decay=self.config.ema_decay,
        )
        return jax.jit(
            update, out_shardings=(self.state_shardings, None), donate_argnums=0
        )

    def read_batches(self, start_step: int = 0) -> Iterator[pipeline.Batch]:
        """This process's rows of every batch from `start_step` on, on the host."""
        return pipeline.training_batches(
            self.source,
            self.task,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            rows=self.rows,
            start_step=start_step,
            **reading_options(self.config),
        )

    def place(self, batch: pipeline.Batch) -> dict[str, jax.Array]:
        """The rows of all processes as global arrays on the mesh."""
        return pipeline.place(
            batch, self.batch_sharding, self.config.batch_size, self.rows
        )

    def count_flops(self) -> int:
        """Model FLOPs of a step, without what `remat` computes again.

        Three times those of the forward pass; with frozen parameters, those of the traced
        step, as parts of the backward pass are then left out.
        """
        if self.config.freeze:
            update = functools.partial(
                step.train_step,
                model=turn_off_remat(self.model),
                task=self.task,
                optimizer=self.optimizer,
                trained=self.trained,
                ema_decay=self.config.ema_decay,
            )
            traced = jax.make_jaxpr(update)(self.state_shapes, self.batch_shapes)
            return metrics.count_flops(traced)
        forward = functools.partial(step.eval_step, model=self.model, task=self.task)
        key = jax.random.key(self.config.seed)
        traced = jax.make_jaxpr(forward)(self.param_shapes, self.batch_shapes, key)
        return 3 * metrics.count_flops(traced)

    def make_record(self) -> dict[str, Any]:
        """What a checkpoint records about the run besides its state."""
        return {
            "config": config_lib.to_plain(self.config),
            "data": pipeline.read_fingerprint(self.source),
            "row": workdir.describe_row(self.batch_shapes),
            "code": describe_code(),
        }

    def describe(self, flops: int) -> list[str]:
        """The first log lines of a run: devices, parameters, data, FLOPs of a step."""
        axes = ", ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())
        lines = [
            f"devices: {self.mesh.size} x {jax.devices()[0].device_kind} of "
            f"{jax.process_count()} process(es), mesh {axes}",
            f"parameters: {count_elements(self.param_shapes):,}",
            *self.derived,
        ]
        if self.config.freeze:
            frozen = optim.describe_frozen(self.config.freeze, self.param_shapes)
            lines.append(f"  {frozen}")
        if self.mesh.size > 1:
            table = sharding.describe_shardings(self.param_shapes, self.param_shardings)
            lines += [f"  {line}" for line in table]
        lines.append(
            f"data: {len(self.source):,} records{sources.describe_left_out(self.source)}, "
            f"{self.total_steps:,} steps of {self.config.batch_size} "
            f"({self.config.duration})"
        )
        how = "trained part only" if self.config.freeze else "forward x 3"
        lines.append(f"operations: {flops:.3g} FLOP a step ({how}, counted)")
        return lines


def prepare(
    config: config_lib.Section,
    devices: Sequence[jax.Device] | None = None,
    *,
    assets: Mapping[str, str] | None = None,
    stand_in: Any = None,
) -> Run:
    """Opens the data and lays out model, optimizer and evaluations; trains nothing.

    Args:
        config: what a recipe's `get_config` returns, or a resolved config.
        devices: for the mesh; None: all.
        assets: {file name: text} from DIR/assets if the run is resumed: its class names or
            vocabulary. None: a new run takes them from its data, or the vocabulary from the
            checkpoint in `init_from`.
        stand_in: a source that stands for the training data, for a run that is only planned.
            No data and no checkpoint is then opened, and the memory of this machine does not
            matter.

    Raises:
        ValueError: a setting cannot be honored.
    """
    planned = stand_in is not None
    config, derived = derive(config_lib.resolve(config), needs_data=not planned)
    runtime.check_determinism(config.deterministic)
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch_size(config.batch_size, mesh, config.micro_batches)
    batch_sharding = sharding.batch_sharding(mesh)

    task = config_lib.build(config.task)
    if not planned:
        task = bind_task(task, config.init_from, assets)
    source = stand_in if planned else task.source("train")
    assets = task.assets(source) if hasattr(task, "assets") and not planned else {}
    batch_shapes = pipeline.batch_shapes(source, task, config.batch_size)
    to_steps = functools.partial(
        config_lib.to_steps,
        batch_size=config.batch_size,
        epoch_rows=pipeline.rows_per_epoch(source),
    )
    total_steps = to_steps(config.duration)
    check_profile(config.profile, total_steps)
    check_precision(config.model)

    model = config_lib.build(config.model)
    key = jax.random.key(config.seed)
    init = functools.partial(step.init_params, model, task)
    param_shapes = jax.eval_shape(init, batch_shapes, key)
    if not planned:
        copies = 4 + (config.ema_decay is not None)
        limits.check_size(param_shapes, batch_shapes, copies=copies)
    param_shardings = sharding.param_shardings(
        mesh, param_shapes, config.sharding_rules, config.fsdp_min_elements
    )
    names = paths.named_leaves(param_shapes).keys()
    trained = frozenset(names - paths.match_names(config.freeze, names, key="freeze"))
    schedule = schedules.make_schedule(
        config.schedule, total_steps=total_steps, to_steps=to_steps
    )
    return Run(
        config=config,
        mesh=mesh,
        batch_sharding=batch_sharding,
        rows=pipeline.rows_of_process(batch_sharding, config.batch_size),
        task=task,
        source=source,
        assets=assets,
        batch_shapes=batch_shapes,
        to_steps=to_steps,
        total_steps=total_steps,
        model=model,
        param_shapes=param_shapes,
        param_shardings=param_shardings,
        trained=trained,
        schedule=schedule,
        optimizer=optim.make_optimizer(config, param_shapes, schedule),
        evaluations={} if planned else open_evaluations(config, model, mesh, assets),
        derived=derived,
    )


def bind_task(task: Any, init_from: Any, assets: Mapping[str, str] | None) -> Any:
    """The task with the class names and vocabulary of the run, or the vocabulary of `init_from`.

    The classes of a new run are those of its data; a head is matched to them by name.

    Raises:
        ValueError: a text model's checkpoint in `init_from` has no vocabulary.
    """
    if assets:
        return task.bind(assets) if hasattr(task, "bind") else task
    if not hasattr(task, "vocabulary"):
        return task
    for path, _, _ in init_from:
        found = vocabulary.read_vocabulary(path)
        if found is not None:
            settings = vocabulary.parse_settings(found["text.json"])
            settings.pop("labels", None)
            task = task.bind({**found, "text.json": json.dumps(settings)})
        elif task.vocabulary is None:
            raise ValueError(
                f"config.init_from: {path} has no vocab.txt, so its token embedding cannot "
                "be read; put it beside the checkpoint, or set config.task.vocabulary."
            )
    return task


def open_evaluations(
    config: ConfigDict, model: nn.Module, mesh: Mesh, assets: Mapping[str, str]
) -> dict[str, Evaluation]:
    """The evaluations that have a cadence, by name. The data of the others is opened too.

    An evaluation uses the class names and vocabulary of the training data.
    """
    evaluations = {}
    for name, section in config.evals.items():
        task = config_lib.build(config_lib.evaluation_task(config, name))
        if assets and hasattr(task, "bind"):
            task = task.bind(assets)
        try:
            if section.every is None:
                task.source(section.split)  # so that a missing split is an error now
                continue
            evaluations[name] = open_evaluation(
                config, name, task, model, mesh, reading_options(config)
            )
        except ValueError as error:
            raise ValueError(f"config.evals.{name}: {error}") from error
    return evaluations


def check_profile(profile: Sequence[int], total_steps: int) -> None:
    """Raises ValueError if `profile` is no range of steps of this run."""
    if profile and not (
        len(profile) == 2 and 1 <= profile[0] <= profile[1] <= total_steps
    ):
        raise ValueError(
            f"config.profile={list(profile)} must be [] or [first, last], two steps "
            f"from 1 to {total_steps}, the last step of this run."
        )


def check_precision(model: ConfigDict) -> None:
    """Raises ValueError if gradients would be computed in float16.

    Its smallest number is 6e-8; without a scaled loss, smaller gradients vanish.
    """
    for key, value in config_lib.flatten(model, "config.model").items():
        if value == "float16" and key.endswith("dtype"):
            raise ValueError(
                f"{key}='float16' loses small gradients in training, and losses are not "
                "scaled here; use 'bfloat16' or 'float32'. Evaluations may use float16."
            )


def reading_options(config: ConfigDict) -> dict[str, int]:
    """Options of the input pipeline that do not change the batches."""
    return {
        "threads": config.data_threads,
        "prefetch": config.data_prefetch,
        "workers": config.data_workers,
    }


def count_elements(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def turn_off_remat(module: nn.Module) -> nn.Module:
    """The module and its submodules with `remat` False."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if field.name == "remat":
            changes["remat"] = False
        elif isinstance(value, nn.Module) and field.name != "parent":
            changes[field.name] = turn_off_remat(value)
    return module.clone(**changes)
