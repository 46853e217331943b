"""Multiple-instance data sets (Musk, Fox, Tiger, Elephant): cross-validated AUC of four methods.

    python benchmarks/mil.py --data=mil_sets.npz --sets=tiger,elephant,fox,musk1,musk2

Ten-fold cross-validation, stratified and repeated --repeats times, with the same folds for every
method: Hopfield pooling, gated attention (Ilse et al. 2018) and mean pooling, which share the
encoder, and a logistic regression on the mean, smallest and largest value of each feature. Hyper-parameters are chosen in every
fold anew (nested): each setting of SEARCH is trained on eight ninths of the fold's training bags,
the one with the best AUC on the last ninth is trained on all of them. The features are standardized
by the training bags. Training takes up to 64 random instances of a bag in each epoch; evaluation
takes all. The AUC of a repeat is the mean over its folds; the deviation is that over repeats.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(report.ROOT))

from attn_jax.data import bag_tables, bags
from attn_jax.models.bags import (
    BagClassifier,
    FeatureEncoder,
    GatedAttentionPooling,
    MeanPooling,
)
from attn_jax.models.hopfield import Hopfield, HopfieldPooling
from attn_jax.tasks.bags import BagObjective

# Ramsauer et al. 2021, table 1.
PAPER = {"tiger": "91.3 +- 0.5", "elephant": "94.9 +- 0.3", "fox": "64.05 +- 0.4"}
INSTANCES = 64  # of a bag, in a training step
BATCH = 16


class Setting(NamedTuple):
    """One point of the search; `beta` and `heads` only matter for Hopfield pooling."""

    epochs: int = 40
    rate: float = 1e-3
    decay: float = 0.95  # of the rate, after each epoch
    widths: tuple[int, ...] = (128,)
    dropout: float = 0.3
    heads: int = 8
    channels: int = 32
    beta: float | None = None


SEARCH = [
    Setting(),
]


def build(method: str, setting: Setting) -> nn.Module:
    pooling = {
        "Hopfield": lambda: HopfieldPooling(
            hopfield=Hopfield(
                num_heads=setting.heads,
                head_dim=setting.channels,
                beta=setting.beta,
                dropout=0.1,
            )
        ),
        "gated attention": lambda: GatedAttentionPooling(width=128),
        "mean": MeanPooling,
    }[method]()
    encoder = FeatureEncoder(widths=setting.widths)
    return BagClassifier(encoder=encoder, pooling=pooling, dropout=setting.dropout)


class Bags(NamedTuple):
    """Padded bags: instances [B, K, F], mask [B, K], labels [B]."""

    instances: Any
    mask: Any
    labels: Any


def draw_instances(data: Bags, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Up to INSTANCES random instances of each bag."""
    count = min(INSTANCES, data.mask.shape[1])
    if count == data.mask.shape[1]:
        return data.instances, data.mask
    order = jnp.argsort(jax.random.uniform(key, data.mask.shape) + ~data.mask, axis=1)
    chosen = order[:, :count]
    return (
        jnp.take_along_axis(data.instances, chosen[:, :, None], axis=1),
        jnp.take_along_axis(data.mask, chosen, axis=1),
    )


@functools.partial(jax.jit, static_argnames=("method", "setting"))
def train_folds(
    method: str, setting: Setting, data: Bags, train: jax.Array, means: Any, seeds: Any
) -> jax.Array:
    """Logits [F, B] of all bags after the training of F folds on the bags `train` [F, M].

    Bags numbered -1 fill `train` up to M. `means` holds mean and deviation [F, features].
    """
    model, objective = build(method, setting), BagObjective()
    steps = -(-train.shape[1] // BATCH)
    rate = optax.exponential_decay(setting.rate, steps, setting.decay, staircase=True)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05)
    )

    def loss(params: Any, batch: dict, key: jax.Array) -> jax.Array:
        rngs = {"dropout": key}
        out = model.apply(params, **objective.inputs(batch), train=True, rngs=rngs)
        total, count = objective.loss(out, batch)["cross_entropy"]
        return total / jnp.maximum(count, 1)

    def train_fold(part: tuple) -> jax.Array:
        rows, (mean, scale), seed = part
        scaled = data._replace(instances=(data.instances - mean) / scale)
        key = jax.random.key(seed)
        params = model.init(key, scaled.instances[:1], scaled.mask[:1])

        def epoch(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
            shuffle, draw, drop = jax.random.split(jax.random.fold_in(key, number), 3)
            order = jax.random.permutation(shuffle, rows)
            order = jnp.pad(order, (0, steps * BATCH - len(rows)), constant_values=-1)
            instances, mask = draw_instances(scaled, draw)

            def step(carry: tuple, part: tuple) -> tuple[tuple, None]:
                params, state = carry
                chosen, key = part
                batch = {
                    "instances": instances[chosen],
                    "mask": mask[chosen],
                    "labels": scaled.labels[chosen],
                    "valid": chosen >= 0,
                }
                gradient = jax.grad(loss)(params, batch, key)
                update, state = optimizer.update(gradient, state, params)
                return (optax.apply_updates(params, update), state), None

            keys = jax.random.split(drop, steps)
            return jax.lax.scan(step, carry, (order.reshape(steps, BATCH), keys))

        start = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(epoch, start, jnp.arange(setting.epochs))
        return model.apply(params, scaled.instances, scaled.mask)["logits"]

    return jax.lax.map(train_fold, (train, means, seeds))


def pad_rows(parts: list[np.ndarray]) -> np.ndarray:
    """[F, M] bag numbers of folds, filled with -1."""
    length = max(map(len, parts))
    return np.stack(
        [np.pad(p, (0, length - len(p)), constant_values=-1) for p in parts]
    )


def measure_scales(found: list, parts: list[np.ndarray]) -> tuple:
    """Mean and deviation [F, features] of the instances of each fold's training bags."""
    stacks = [np.concatenate([found[bag].instances for bag in part]) for part in parts]
    scales = np.stack([stack.std(axis=0) for stack in stacks])
    return np.stack([s.mean(axis=0) for s in stacks]), np.where(scales > 0, scales, 1)


def cross_validate(name: str, found: list, methods: list[str], repeat: int) -> dict:
    """{method: mean AUC over the folds} of one repeat; the chosen settings too."""
    labels = np.array([int(float(bag.label) > 0) for bag in found])
    size = max(len(bag.instances) for bag in found)
    padded = [bags.pad_bag(list(b.instances), size, name=b.name) for b in found]
    data = Bags(*(np.stack(x) for x in zip(*padded, strict=True)), labels)
    folds = list(
        StratifiedKFold(10, shuffle=True, random_state=repeat).split(labels, labels)
    )
    outer = [train for train, _ in folds]
    split = [
        train_test_split(t, test_size=1 / 9, stratify=labels[t], random_state=repeat)
        for t in outer
    ]
    inner, held = zip(*split, strict=True)
    seeds = np.arange(10) + 100 * repeat
    results: dict[str, Any] = {}
    for method in methods:
        if method == "linear":
            aucs = [score_linear(found, labels, train, test) for train, test in folds]
            results[method] = {"auc": statistics.mean(aucs)}
            continue
        settings = [s for s in SEARCH if method == "Hopfield" or s == plain(s)]
        chosen = np.zeros(10, int)
        if len(settings) > 1:
            validation = []
            for setting in settings:
                logits = np.asarray(
                    train_folds(
                        method,
                        setting,
                        data,
                        pad_rows(inner),
                        measure_scales(found, inner),
                        seeds,
                    )
                )
                validation.append(
                    [
                        bags.area_under_roc(labels[h], row[h])
                        for h, row in zip(held, logits, strict=True)
                    ]
                )
            chosen = np.argmax(validation, axis=0)
        aucs, scales = np.zeros(10), measure_scales(found, outer)
        for number in set(chosen.tolist()):
            some = np.flatnonzero(chosen == number)
            # All folds, so that every setting is one program.
            logits = np.asarray(
                train_folds(
                    method, settings[number], data, pad_rows(outer), scales, seeds
                )
            )
            for fold in some:
                test = folds[fold][1]
                aucs[fold] = bags.area_under_roc(labels[test], logits[fold][test])
        results[method] = {"auc": float(aucs.mean()), "chosen": chosen.tolist()}
    return results


def plain(setting: Setting) -> Setting:
    """This setting without what only Hopfield pooling reads."""
    default = Setting()
    return setting._replace(
        heads=default.heads, channels=default.channels, beta=default.beta
    )


def score_linear(
    found: list, labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> float:
    features = np.stack(
        [
            np.concatenate(
                [b.instances.mean(0), b.instances.min(0), b.instances.max(0)]
            )
            for b in found
        ]
    )
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=np.logspace(-4, 1, 6), scoring="roc_auc", cv=5, max_iter=2000
        ),
    )
    model.fit(features[train], labels[train])
    return bags.area_under_roc(labels[test], model.decision_function(features[test]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--sets", default="tiger,elephant,fox,musk1,musk2")
    parser.add_argument("--methods", default="Hopfield,gated attention,mean,linear")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="results as JSON lines")
    options = parser.parse_args()
    methods = options.methods.split(",")
    for name in options.sets.split(","):
        columns = bag_tables.Columns(group=name)
        found = bag_tables.read_bags(str(options.data), columns)
        for repeat in range(options.repeats):
            began = time.perf_counter()
            print(
                name,
                repeat,
                cross_validate(name, found, methods, repeat),
                round(time.perf_counter() - began, 1),
                flush=True,
            )


if __name__ == "__main__":
    main()
