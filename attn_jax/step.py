"""Training step and evaluation step: pure functions of state and batch.

Model, task and optimizer are arguments; bind them with `functools.partial`, then jit.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from attn_jax import paths

Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # {name: (sum, count)}
Leaf = Any  # an array, its shape, or its sharding


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during training, hence the content of a checkpoint."""

    step: Leaf  # number of updates, including skipped ones
    params: Any
    opt_state: optax.OptState
    key: Leaf  # never changes: every use folds in the step
    skipped: Leaf  # updates that would have made the state non-finite
    skipped_in_a_row: Leaf
    average: Any = None  # exponential moving average of the parameters that train

    @property
    def averaged_params(self) -> Any:
        """The parameters that evaluations use: averaged where an average is kept."""
        return paths.replace_leaves(self.params, self.average or {})


def init_params(model: Any, task: Any, batch: Batch, key: jax.Array) -> Any:
    """Initializes the model's parameters. Only the shapes of `batch` matter.

    Raises:
        ValueError: the module creates variables other than parameters.
    """
    params_key, prepare_key = jax.random.split(key)
    batch = prepare_batch(task, batch, prepare_key, train=False)
    variables = model.init(params_key, **task.inputs(batch), train=False)
    others = sorted(set(variables) - {"params", "intermediates"})
    if others:
        raise ValueError(
            f"{type(model).__name__} creates the collection {others[0]!r}, but a run keeps "
            "only parameters (batch statistics would depend on how the batch is split). "
            "Use a normalization without state, such as GroupNorm or LayerNorm."
        )
    return variables["params"]


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    averaged: Collection[str] | None,
) -> TrainState:
    """The state at step 0; `averaged`: names of the parameters to average, or None."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=key,
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        average=None if averaged is None else paths.select_leaves(params, averaged),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Any,
    task: Any,
    optimizer: optax.GradientTransformation,
    trained: Collection[str] | None = None,
    micro_batches: int = 1,
    ema_decay: float | None = None,
) -> tuple[TrainState, Sums]:
    """One update: loss -> gradient -> optimizer. Jit with `donate_argnums=0`.

    The loss is the sum over terms of coefficient * sum / count. Counts are those of the
    whole global batch: a mean of micro-batch means would differ if their counts do. An
    update that would make parameters, moments or the average non-finite is skipped: only
    the counters change.

    Args:
        trained: names of the parameters that are not frozen; None: all. No gradient is
            computed for frozen ones.
    """
    prepare_key, model_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = prepare_batch(task, batch, prepare_key, train=True)
    # Strided, so that rows stay on their devices; contiguous parts would move them.
    parts = jax.tree.map(
        lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch
    )
    # Frozen parameters are None here, so JAX does not see them as leaves.
    moving = paths.map_named(
        lambda name, leaf: leaf if trained is None or name in trained else None,
        state.params,
    )

    def compute_outputs(moving: Any, part: Batch, number: jax.Array) -> Any:
        rngs = {"dropout": jax.random.fold_in(model_key, number)}
        params = merge(moving, state.params)
        return model.apply(
            {"params": params}, **task.inputs(part), train=True, rngs=rngs
        )

    gradient, terms = compute_gradient(task, compute_outputs, moving, parts)
    norm = optax.tree.norm(gradient)
    state = apply_gradient(state, gradient, norm, moving, optimizer, ema_decay)
    sums = add_loss(task, terms) | {
        "gradient_norm": (norm, jnp.ones(())),
        "skipped": (state.skipped, jnp.ones(())),
        "skipped_in_a_row": (state.skipped_in_a_row, jnp.ones(())),
    }
    return state, sums


def compute_gradient(
    task: Any, compute_outputs: Callable[..., Any], moving: Any, parts: Batch
) -> tuple[Any, Sums]:
    """(gradient of the loss, sums of its terms) of a batch in micro-batches.

    Args:
        compute_outputs: (moving, micro-batch, its number) -> outputs of the model.
        moving: the parameters to differentiate by.
        parts: arrays [micro-batches, rows, ...].
    """
    numbers = jnp.arange(len(jax.tree.leaves(parts)[0]))
    first = jax.tree.map(lambda x: x[0], (parts, numbers))
    shapes = jax.eval_shape(compute_outputs, moving, *first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    # Counts do not depend on the outputs, so zeros will do.
    counts = jax.vmap(lambda part: get_counts(task.loss(zeros, part)))(parts)
    counts = jax.tree.map(lambda count: count.sum(axis=0), counts)

    def of_part(part: Batch, number: jax.Array) -> tuple[Any, Sums]:
        def scalar(moving: Any) -> tuple[jax.Array, Sums]:
            terms = task.loss(compute_outputs(moving, part, number), part)
            return compute_loss(task, terms, counts), terms

        return jax.grad(scalar, has_aux=True)(moving)

    if len(numbers) == 1:
        return of_part(*first)
    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(of_part, *first)
    )
    return jax.lax.scan(
        lambda total, x: (jax.tree.map(jnp.add, total, of_part(*x)), None),
        zero,
        (parts, numbers),
    )[0]


def apply_gradient(
    state: TrainState,
    gradient: Any,
    norm: jax.Array,
    moving: Any,
    optimizer: optax.GradientTransformation,
    ema_decay: float | None,
) -> TrainState:
    """The next state; one that would hold a non-finite number is not taken."""
    # Zeros stand for the gradients of frozen parameters; XLA removes them.
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    updates, opt_state = optimizer.update(
        merge(gradient, zeros), state.opt_state, state.params
    )
    params = optax.apply_updates(moving, updates)
    average = state.average
    if ema_decay is not None:
        # Without this warm-up, a short run's average is dominated by the initial weights.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(
            lambda a, p: decay * a + (1 - decay) * p,
            average,
            paths.select_leaves(merge(params, state.params), average),
        )
    new, old = (params, opt_state, average), (moving, state.opt_state, state.average)
    finite = all_finite((norm, new))
    params, opt_state, average = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), new, old
    )
    one = 1 - finite.astype(jnp.int32)
    return state.replace(
        step=state.step + 1,
        params=merge(params, state.params),
        opt_state=opt_state,
        average=average,
        skipped=state.skipped + one,
        skipped_in_a_row=(state.skipped_in_a_row + one) * one,
    )


def eval_step(
    params: Any, batch: Batch, key: jax.Array, *, model: Any, task: Any
) -> tuple[Sums, Any]:
    """(loss terms as sums and counts, the task's predictions or None) of one batch."""
    batch = prepare_batch(task, batch, key, train=False)
    outputs = model.apply({"params": params}, **task.inputs(batch), train=False)
    predict = getattr(task, "predictions", None)
    return task.loss(outputs, batch), predict(outputs, batch) if predict else None


def prepare_batch(task: Any, batch: Batch, key: jax.Array, *, train: bool) -> Batch:
    """Applies the task's `prepare`, if it has one."""
    return task.prepare(batch, key, train) if hasattr(task, "prepare") else batch


def merge(moving: Any, params: Any) -> Any:
    """`params` with its leaves replaced by those of `moving` that are not None."""
    return jax.tree.map(
        lambda ours, theirs: theirs if ours is None else ours,
        moving,
        params,
        is_leaf=lambda leaf: leaf is None,
    )


def all_finite(tree: Any) -> jax.Array:
    """Whether all floating-point numbers of a tree are finite."""
    broken = sum(
        (~jnp.isfinite(leaf).all()).astype(jnp.float32)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    # XLA copies a chain of scalar operations into every operation that uses its result: n leaves
    # made n^2 instructions, which took most of the compilation. A square root is not copied.
    return jnp.sqrt(jnp.asarray(broken, jnp.float32)) == 0


def get_counts(terms: Sums) -> dict[str, jax.Array]:
    return {name: count for name, (_, count) in terms.items()}


def compute_loss(task: Any, terms: Sums, counts: Mapping[str, jax.Array]) -> jax.Array:
    """The sum over the task's loss terms of coefficient * sum / count.

    Terms without a coefficient are only reported. A term with a count of 0 adds 0.
    """
    return sum(
        coefficient * terms[name][0] / jnp.maximum(counts[name], 1e-9)
        for name, coefficient in task.coefficients.items()
    )


def add_loss(task: Any, terms: Sums) -> Sums:
    """The terms with the scalar loss as another term, `loss`."""
    return {
        "loss": (compute_loss(task, terms, get_counts(terms)), jnp.ones(()))
    } | terms
