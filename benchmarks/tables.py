"""Accuracy on small tables (UCI) over folds: lookup among the training rows beside other methods.

    python benchmarks/tables.py
    python benchmarks/tables.py --data=uci --sets=sonar,ionosphere

Each of --sets is an embedded table of scikit-learn, or SET.csv in --data, without a header, the label
last. Cross-validation is stratified, repeated --repeats times, in the same folds for every method, with
one setting for all tables: the lookup has that of configs/hopfield/tables.py and no validation split
(its last epoch is tested); the others have scikit-learn's defaults, as they are by default or, of the
logistic regression, with up to 1,000 iterations. Features are standardized by the training rows.
"""

import argparse
import csv
import functools
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC

sys.path.insert(0, str(report.ROOT))

from attn_jax import config
from attn_jax.data import bag_tables, feature_rows

RECIPE = config.load(str(report.ROOT / "configs" / "hopfield" / "tables.py"))
METHODS = ("lookup", "logistic regression", "random forest", "SVM")
SMALL = ("iris", "wine", "breast_cancer")
UCI = (
    "sonar,ionosphere,pima-indians-diabetes,glass,new-thyroid,wheat-seeds,haberman,"
    "breast-cancer-wisconsin"
)


@functools.partial(jax.jit, static_argnames=("classes", "epochs"))
def train_lookup(
    x: jax.Array,
    y: jax.Array,
    asked: jax.Array,
    seed: int,
    *,
    classes: int,
    epochs: int,
) -> jax.Array:
    """Logits of the rows `asked` [B, C], after training on x [K, F] with labels y [K]."""
    model = config.build(RECIPE.model)
    batch = min(RECIPE.batch_size, len(x))
    steps = epochs * (len(x) // batch)
    settings = RECIPE.optimizer
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, steps // 20, steps
    )

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # kernels

    optimizer = optax.chain(
        optax.clip_by_global_norm(RECIPE.clip_norm),
        optax.adamw(rate, weight_decay=settings.weight_decay, mask=decayed),
    )
    key = jax.random.key(seed)
    targets = jax.nn.one_hot(y, classes)
    params = model.init(key, x[:1], x, targets, jnp.zeros(1, int))

    def loss(params: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
        rngs = {"dropout": key}
        out = model.apply(params, x[rows], x, targets, rows, train=True, rngs=rngs)
        return optax.softmax_cross_entropy(out["logits"], targets[rows]).mean()

    def step(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        draw, drop = jax.random.split(jax.random.fold_in(key, number))
        rows = jax.random.choice(draw, len(x), (batch,), replace=False)
        gradient = jax.grad(loss)(params, rows, drop)
        update, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, update), state), None

    start = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(step, start, jnp.arange(steps))
    own = jnp.full(len(asked), feature_rows.NO_ROW)
    return model.apply(params, asked, x, targets, own)["logits"]


def predict(
    method: str, x: np.ndarray, y: np.ndarray, asked: np.ndarray, seed: int
) -> np.ndarray:
    """The labels [B] of the rows `asked`."""
    if method == "lookup":
        classes, epochs = int(y.max()) + 1, int(RECIPE.duration.split()[0])
        logits = train_lookup(x, y, asked, seed, classes=classes, epochs=epochs)
        return np.asarray(logits).argmax(axis=1)
    model = {
        "logistic regression": LogisticRegression(max_iter=1000),
        "random forest": RandomForestClassifier(random_state=seed),
        "SVM": SVC(),
    }[method]
    return model.fit(x, y).predict(asked)


def read_set(name: str, folder: pathlib.Path | None) -> tuple[np.ndarray, np.ndarray]:
    """(features [N, F], labels [N] as numbers) of a table; rows with a `?` are left out."""
    if name in feature_rows.EMBEDDED:
        found = feature_rows.read_rows(name, "label")
        return found.x, np.unique(found.labels, return_inverse=True)[1]
    if folder is None:
        raise SystemExit(
            f"{name} is not embedded; name the folder of {name}.csv by --data."
        )
    with (folder / f"{name}.csv").open() as file:
        lines = [cells for cells in csv.reader(file) if cells and "?" not in cells]
    x = np.array([cells[:-1] for cells in lines], np.float32)
    return x, np.unique([cells[-1] for cells in lines], return_inverse=True)[1]


def cross_validate(
    x: np.ndarray, y: np.ndarray, methods: list[str], options: argparse.Namespace
) -> dict[str, list[float]]:
    """{method: accuracy over all rows, of each repeat}."""
    found: dict[str, list[float]] = {}
    for repeat in range(options.repeats):
        cutter = StratifiedKFold(options.folds, shuffle=True, random_state=repeat)
        right = {method: np.zeros(len(y), bool) for method in methods}
        for train, test in cutter.split(x, y):
            scale = bag_tables.measure_features([x[train]])
            known, asked = (bag_tables.standardize(x[i], scale) for i in (train, test))
            for method in methods:
                labels = predict(method, known, y[train], asked, repeat)
                right[method][test] = labels == y[test]
        for method in methods:
            found.setdefault(method, []).append(float(right[method].mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, help="folder of SET.csv")
    parser.add_argument("--sets", help="default: all that are there")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    sets = (
        options.sets or ",".join(SMALL) + (f",{UCI}" if options.data else "")
    ).split(",")
    methods = options.methods.split(",")
    rows, means = [], {method: [] for method in methods}
    for name in sets:
        began = time.perf_counter()
        x, y = read_set(name, options.data)
        found = cross_validate(x, y, methods, options)
        for method, values in found.items():
            means[method].append(statistics.mean(values))
        cells = " | ".join(f"{means[method][-1]:.1%}" for method in methods)
        rows.append(f"| {name} | {len(x)} | {x.shape[1]} | {y.max() + 1} | {cells} |")
        print(rows[-1], f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    average = " | ".join(f"{statistics.mean(means[method]):.1%}" for method in methods)
    command = "python benchmarks/tables.py" + (" --data=uci" if options.data else "")
    for flag in ("sets", "methods", "folds", "repeats"):
        if (value := getattr(options, flag)) != parser.get_default(flag):
            command += f' --{flag}="{value}"'
    report.write(
        "tables",
        [
            "### Tables: accuracy of cross-validation",
            "",
            f"`{command}` ({report.provenance()})",
            f"{options.folds} folds, repeated {options.repeats} times, the same for all methods; one setting "
            "of each for all tables. Rows with a missing value are left out.",
            "",
            f"| table | rows | features | classes | {' | '.join(methods)} |",
            "|---" * (4 + len(methods)) + "|",
            *rows,
            f"| mean | | | | {average} |",
        ],
    )


if __name__ == "__main__":
    main()
