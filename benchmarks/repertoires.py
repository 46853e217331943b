"""Generated repertoires: AUC against the share of sequences with a motif, four methods.

    python benchmarks/repertoires.py --out=repertoires.jsonl --figure=docs/figures/repertoires.png

Each of --rates has --count repertoires of --sequences sequences (`attn_jax.data.repertoires`), half of
them with witnesses, and --folds stratified folds, the same for all methods:

    streaming        RepertoireClassifier; all sequences take part
    top 10 %         the same network, but only the tenth of the sequences with the largest weights
                     takes part, in training and evaluation, as in the original (DeepRC)
    motif count      how many sequences have the motif, which it is told: nothing is learned
    k-mers, linear   logistic regression on the numbers of all four-letter words

Both networks have --steps steps of four training repertoires, of each --draw random sequences; they are evaluated
on all sequences. Seeds of data, folds and training are 0. A record that is in --out is not computed
again (whatever its steps and sizes: one file for one setting); --methods and --rates choose a part. After
--minutes no further one begins, and the table has what there is.
"""

import argparse
import functools
import itertools
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import report
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

sys.path.insert(0, str(report.ROOT))

from attn_jax.data.bags import area_under_roc
from attn_jax.data.repertoires import AMINO_ACIDS, draw_repertoire
from attn_jax.models.hopfield import RepertoireClassifier

MOTIF, LENGTH = "SFEN", 20
METHODS = ("streaming", "top 10 %", "motif count", "k-mers, linear")
BATCH, RATE, SHARE = 4, 3e-3, 0.1
MODEL = RepertoireClassifier(
    width=16, kernel_size=5, attention_widths=(16, 16), chunk=125
)


def draw_set(rate: float, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Sequences [N, K, L] and labels [N]."""
    given = dict(sequences=options.sequences, motifs=(MOTIF,), length=LENGTH, seed=0)
    drawn = [draw_repertoire(i, rate=rate, **given) for i in range(options.count)]
    return np.stack([r.sequences for r in drawn]), np.arange(options.count) % 2


def select(params: Any, sequences: jax.Array, mask: jax.Array) -> jax.Array:
    """The SHARE of the sequences with the largest weights."""
    _, sown = MODEL.apply(params, sequences, mask, mutable=["intermediates"])
    [weights] = jax.tree.leaves(sown)
    count = max(int(SHARE * sequences.shape[1]), 1)
    chosen = jax.lax.top_k(jax.lax.stop_gradient(weights[:, 0, 0]), count)[1]
    return jnp.take_along_axis(sequences, chosen[:, :, None], axis=1)


def compute_logits(params: Any, sequences: jax.Array, top: bool) -> jax.Array:
    mask = jnp.ones(sequences.shape[:2], bool)
    if top:
        sequences = select(params, sequences, mask)
        mask = mask[:, : sequences.shape[1]]
    return MODEL.apply(params, sequences, mask)["logits"]


@functools.partial(jax.jit, static_argnames=("top", "draw"))
def step(
    state: tuple,
    sequences: jax.Array,
    labels: jax.Array,
    key: Any,
    top: bool,
    draw: int,
) -> tuple[tuple, jax.Array]:
    """One update of (params, optimizer state) with BATCH random training repertoires."""
    params, moments = state
    which, inside = jax.random.split(key)
    rows = jax.random.choice(which, len(labels), (BATCH,), replace=False)
    places = jax.random.randint(inside, (BATCH, draw), 0, sequences.shape[1])
    drawn = sequences[rows[:, None], places]

    def loss(params: Any) -> jax.Array:
        logits = compute_logits(params, drawn, top)
        return optax.sigmoid_binary_cross_entropy(logits, labels[rows]).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    update, moments = optax.adam(RATE).update(gradient, moments)
    return (optax.apply_updates(params, update), moments), value


def score_network(
    sequences: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    top: bool,
    options: argparse.Namespace,
) -> dict[str, float]:
    key = jax.random.key(0)
    params = MODEL.init(key, jnp.asarray(sequences[:1, :8]), jnp.ones((1, 8), bool))
    state = (params, optax.adam(RATE).init(params))
    inside = jnp.asarray(sequences[train]), jnp.asarray(labels[train], jnp.float32)
    losses = []
    for number in range(options.steps):
        key_of_step = jax.random.fold_in(key, number)
        state, loss = step(state, *inside, key_of_step, top, options.draw)
        losses.append(loss)
    evaluate = jax.jit(functools.partial(compute_logits, top=top))
    parts = [jnp.asarray(sequences[test[i : i + 4]]) for i in range(0, len(test), 4)]
    logits = np.concatenate([evaluate(state[0], part) for part in parts])
    late = float(np.mean(losses[-50:]))
    return {"auc": area_under_roc(labels[test], logits), "training_loss": late}


def count_words(sequences: np.ndarray) -> scipy.sparse.csr_matrix:
    """[N, words]: how often each word as long as MOTIF occurs in a repertoire."""
    size, base = len(MOTIF), len(AMINO_ACIDS)
    rows = []
    for repertoire in sequences.astype(np.int64):
        windows = np.lib.stride_tricks.sliding_window_view(repertoire, size, axis=1)
        words = windows[windows.min(axis=-1) >= 0] @ base ** np.arange(size)
        rows.append(scipy.sparse.csr_matrix(np.bincount(words, minlength=base**size)))
    return scipy.sparse.vstack(rows).tocsr().astype(np.float64)


def count_motif(sequences: np.ndarray) -> np.ndarray:
    """[N]: sequences of a repertoire that have MOTIF."""
    letters = np.array([AMINO_ACIDS.index(letter) for letter in MOTIF])
    windows = np.lib.stride_tricks.sliding_window_view(sequences, len(MOTIF), axis=2)
    return (windows == letters).all(axis=-1).any(axis=-1).sum(axis=1)


def score(
    method: str,
    data: tuple[np.ndarray, np.ndarray],
    fold: tuple[np.ndarray, np.ndarray],
    options: argparse.Namespace,
) -> dict[str, float]:
    (sequences, labels), (train, test) = data, fold
    if method == "motif count":
        return {"auc": area_under_roc(labels[test], count_motif(sequences[test]))}
    if method == "k-mers, linear":
        words = count_words(sequences)
        model = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=200))
        model.fit(words[train], labels[train])
        found = model.decision_function(words[test])
        return {"auc": area_under_roc(labels[test], found)}
    top = method == "top 10 %"
    return score_network(sequences, labels, train, test, top, options)


def cut_folds(options: argparse.Namespace) -> list[tuple[np.ndarray, np.ndarray]]:
    labels = np.arange(options.count) % 2
    folds = StratifiedKFold(options.folds, shuffle=True, random_state=0)
    return list(folds.split(labels, labels))[: options.first]


def read_aucs(known: list[dict], rate: float, method: str) -> list[float]:
    return [r["auc"] for r in known if (r["rate"], r["method"]) == (rate, method)]


def make_table(known: list[dict], rates: list[float]) -> list[str]:
    lines = [f"| witnesses | {' | '.join(METHODS)} | folds |", "|---" * 6 + "|"]
    for rate in rates:
        cells, folds = [], set()
        for method in METHODS:
            aucs = read_aucs(known, rate, method)
            spread = f" +- {statistics.stdev(aucs):.3f}" if len(aucs) > 1 else ""
            cells.append(f"{statistics.mean(aucs):.3f}{spread}" if aucs else "")
            folds.add(len(aucs))
        shown = ", ".join(map(str, sorted(folds)))
        lines.append(f"| {100 * rate:g} % | {' | '.join(cells)} | {shown} |")
    return lines


def draw(known: list[dict], rates: list[float], out: pathlib.Path) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
    for method, mark in zip(METHODS, "os^v", strict=True):
        found = [(100 * r, read_aucs(known, r, method)) for r in rates]
        points = [(rate, statistics.mean(aucs)) for rate, aucs in found if aucs]
        axis.plot(*zip(*points, strict=True), f"{mark}-", label=method)
    axis.axhline(0.5, color="gray", linewidth=0.8)
    axis.set(xscale="log", xlabel="sequences with the motif, %", ylabel="test AUC")
    axis.legend(fontsize=8)
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="0.1,0.01,0.001,0.0005")
    parser.add_argument("--methods", help="separated by ';'", default=";".join(METHODS))
    parser.add_argument("--count", type=int, default=200, help="repertoires")
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--first", type=int, help="only so many of the folds")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--draw", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=pathlib.Path, help="results as JSON lines")
    parser.add_argument("--figure", type=pathlib.Path)
    options = parser.parse_args()
    rates = [float(rate) for rate in options.rates.split(",")]
    known: list[dict[str, Any]] = []
    if options.out and options.out.exists():
        known = [json.loads(line) for line in options.out.read_text().splitlines()]
    done = {(r["rate"], r["fold"], r["method"]) for r in known}
    # Cheap methods first, then fold by fold, so that a part of the table is balanced.
    methods = sorted(options.methods.split(";"), key=METHODS.index, reverse=True)
    end = time.monotonic() + 60 * options.minutes
    for number, fold in enumerate(cut_folds(options)):
        for rate, method in itertools.product(rates, methods):
            if (rate, number, method) in done or time.monotonic() > end:
                continue
            began = time.perf_counter()
            record = {"rate": rate, "fold": number, "method": method}
            record |= score(method, draw_set(rate, options), fold, options)
            known.append(record | {"seconds": round(time.perf_counter() - began, 1)})
            print(json.dumps(known[-1]), file=sys.stderr, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(known[-1]) + "\n")
    write(known, rates, options)


def write(known: list[dict], rates: list[float], options: argparse.Namespace) -> None:
    sizes = " ".join(
        f"--{name}={getattr(options, name)}"
        for name in ("count", "sequences", "folds", "first", "steps", "draw")
    )
    lines = [
        "### Generated repertoires: AUC against the share of witnesses",
        "",
        f"`python benchmarks/repertoires.py --rates={options.rates} {sizes}` "
        f"({report.provenance()}).",
        f"{options.count} repertoires of {options.sequences:,} sequences of up to {LENGTH} "
        f"letters; the motif is {MOTIF}. Seed 0; mean and deviation over folds.",
        "",
        *make_table(known, rates),
    ]
    if options.figure:
        draw(known, rates, options.figure)
        lines += ["", f"![test AUC by rate](figures/{options.figure.name})"]
    report.write("repertoires", lines)


if __name__ == "__main__":
    main()
