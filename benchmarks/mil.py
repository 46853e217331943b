"""Multiple-instance data sets (Musk, Fox, Tiger, Elephant): cross-validated AUC of four methods.

    python benchmarks/mil.py --data=mil_sets.npz --sets=tiger,elephant,fox,musk1,musk2

Ten-fold cross-validation, stratified and repeated --repeats times, with the same folds for every
method: Hopfield pooling, gated attention (Ilse et al. 2018) and mean pooling, which share the
encoder, and a logistic regression on the mean, smallest and largest value of each feature.
--settings=1 trains all with the first setting of SEARCH. With more, hyper-parameters are chosen in every
fold anew (nested): each setting is trained on eight ninths of the fold's training bags, and the one
with the best AUC on the last ninth is trained on all of them. The features are standardized by the
training bags. Training takes up to 64 random instances of a bag in each epoch; evaluation takes
all. The AUC of a repeat is the mean over its folds; the deviation is that over repeats.
"""

import argparse
import functools
import itertools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from sklearn.linear_model import LogisticRegression
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
    Setting(epochs=80),
    Setting(rate=3e-4, epochs=80),
    Setting(widths=(256, 256), dropout=0.5),
    Setting(beta=1.0),
    Setting(heads=12, channels=64, beta=0.1),
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


def pad_rows(parts: Sequence[np.ndarray]) -> np.ndarray:
    """[F, M] bag numbers of folds, filled with -1."""
    length = max(map(len, parts))
    return np.stack(
        [np.pad(p, (0, length - len(p)), constant_values=-1) for p in parts]
    )


def measure_scales(found: list, parts: Sequence[np.ndarray]) -> tuple:
    """Mean and deviation [F, features] of the instances of each fold's training bags."""
    stacks = [np.concatenate([found[bag].instances for bag in part]) for part in parts]
    scales = np.stack([stack.std(axis=0) for stack in stacks])
    return np.stack([s.mean(axis=0) for s in stacks]), np.where(scales > 0, scales, 1)


def cross_validate(
    found: list, method: str, repeat: int, search: list[Setting]
) -> dict[str, Any]:
    """{"auc": mean over the folds, "folds": of each, "chosen": the settings} of one repeat."""
    labels = np.array([int(float(bag.label) > 0) for bag in found])
    folds = StratifiedKFold(10, shuffle=True, random_state=repeat).split(labels, labels)
    outer, tests = zip(*folds, strict=True)
    if method == "linear":
        aucs = [
            score_linear(found, labels, *fold)
            for fold in zip(outer, tests, strict=True)
        ]
        return {"auc": statistics.mean(aucs), "folds": aucs}
    size = max(len(bag.instances) for bag in found)
    padded = [bags.pad_bag(list(b.instances), size, name=b.name) for b in found]
    data = Bags(*(np.stack(x) for x in zip(*padded, strict=True)), labels)
    seeds = np.arange(10) + 100 * repeat

    def score(setting: Setting, parts: tuple, asked: tuple) -> list[float]:
        scales = measure_scales(found, parts)
        logits = train_folds(method, setting, data, pad_rows(parts), scales, seeds)
        return [
            bags.area_under_roc(labels[rows], row[rows])
            for rows, row in zip(asked, np.asarray(logits), strict=True)
        ]

    settings = [s for s in search if method == "Hopfield" or s == plain(s)]
    chosen = np.zeros(10, int)
    if len(settings) > 1:
        split = [
            train_test_split(
                part, test_size=1 / 9, stratify=labels[part], random_state=repeat
            )
            for part in outer
        ]
        inner, held = zip(*split, strict=True)
        chosen = np.argmax([score(s, inner, held) for s in settings], axis=0)
    # Every chosen setting is trained on all folds: folds of one shape are one program.
    tested = {n: score(settings[n], outer, tests) for n in set(chosen.tolist())}
    aucs = [tested[n][fold] for fold, n in enumerate(chosen.tolist())]
    return {"auc": statistics.mean(aucs), "folds": aucs, "chosen": chosen.tolist()}


def plain(setting: Setting) -> Setting:
    """This setting without what only Hopfield pooling reads."""
    default = Setting()
    return setting._replace(
        heads=default.heads, channels=default.channels, beta=default.beta
    )


def score_linear(
    found: list, labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> float:
    """AUC of a logistic regression on the mean, smallest and largest value of each feature."""
    features = np.stack(
        [
            np.concatenate(
                [b.instances.mean(0), b.instances.min(0), b.instances.max(0)]
            )
            for b in found
        ]
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(features[train], labels[train])
    return bags.area_under_roc(labels[test], model.decision_function(features[test]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--sets", default="tiger,elephant,fox,musk1,musk2")
    parser.add_argument("--methods", default="Hopfield,gated attention,mean,linear")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--settings", type=int, default=len(SEARCH))
    parser.add_argument("--out", type=pathlib.Path, help="results as JSON lines")
    options = parser.parse_args()
    methods = options.methods.split(",")
    known: list[dict[str, Any]] = []
    if options.out and options.out.exists():
        known = [json.loads(line) for line in options.out.read_text().splitlines()]
    done = {(record["set"], record["repeat"], record["method"]) for record in known}
    for name in options.sets.split(","):
        columns = bag_tables.Columns(group=name)
        found = bag_tables.read_bags(str(options.data), columns)
        for repeat, method in itertools.product(range(options.repeats), methods):
            if (name, repeat, method) in done:
                continue
            began = time.perf_counter()
            record = {"set": name, "repeat": repeat, "method": method}
            record |= cross_validate(found, method, repeat, SEARCH[: options.settings])
            known.append(record | {"seconds": round(time.perf_counter() - began, 1)})
            print(json.dumps(known[-1]), file=sys.stderr, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(known[-1]) + "\n")
    report.write("mil", make_table(known, methods, options))


def make_table(
    known: list[dict], methods: list[str], options: argparse.Namespace
) -> list[str]:
    lines = [
        "### Multiple-instance data sets: AUC of ten-fold cross-validation",
        "",
        f"`python benchmarks/mil.py --data={options.data.name} --sets={options.sets} "
        f"--methods={','.join(methods)} --repeats={options.repeats} --settings={options.settings}` ({report.provenance()}).",
        f"Mean and deviation over repeats, in percent; settings searched: {options.settings}.",
        "",
        f"| set | {' | '.join(methods)} | Hopfield, paper | repeats |",
        "|---" * (len(methods) + 3) + "|",
    ]
    for name in options.sets.split(","):
        cells = []
        for method in methods:
            aucs = [
                100 * r["auc"]
                for r in known
                if (r["set"], r["method"]) == (name, method)
            ]
            spread = f" +- {statistics.stdev(aucs):.1f}" if len(aucs) > 1 else ""
            cells.append(f"{statistics.mean(aucs):.1f}{spread}" if aucs else "")
        repeats = {r["repeat"] for r in known if r["set"] == name}
        lines.append(
            f"| {name} | {' | '.join(cells)} | {PAPER.get(name, '')} | {len(repeats)} |"
        )
    return lines


if __name__ == "__main__":
    main()
