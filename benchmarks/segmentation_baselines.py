"""Scores segmentations that take no learning, and a run's slots, on the same images.

    python benchmarks/segmentation_baselines.py \
        --config=configs/slot_attention/tetrominoes.py:small --split=test
    python benchmarks/segmentation_baselines.py --workdir=runs/slots    # its slots beside them

The baselines are k-means on the colours and positions of an image's pixels (scikit-learn), all
pixels in one slot, and a random slot for each pixel. Each has as many segments as the model
has slots. `squared_error` is that of an image in which every segment has its mean colour; of the
run that of its reconstruction. Metrics are those of the task (`attn_jax.tasks.reconstruct`).
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from sklearn.cluster import KMeans

from attn_jax import config as config_lib
from attn_jax import evaluate
from attn_jax.analysis.figures import make_batch
from attn_jax.config import build
from attn_jax.restore import load_settings

METRICS = ("fg_ari", "ari", "mbo", "covering", "squared_error")


def cluster_pixels(
    image: np.ndarray, segments: int, weight: float, seed: int
) -> np.ndarray:
    """The segment of each pixel [H, W] by k-means on (colour, weight * position).

    Args:
        image: [H, W, 3] in [-1, 1]; positions are scaled to the same range.
    """
    height, width = image.shape[:2]
    rows, columns = np.meshgrid(
        np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij"
    )
    features = np.concatenate(
        [image, weight * rows[..., None], weight * columns[..., None]], axis=-1
    ).reshape(height * width, -1)
    segments = min(segments, len(np.unique(features, axis=0)))
    found = KMeans(segments, n_init=3, random_state=seed).fit_predict(features)
    return found.reshape(height, width)


def fill_segments(image: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The image in which every segment has its mean colour."""
    filled = np.empty_like(image)
    for i in np.unique(ids):
        filled[ids == i] = image[ids == i].mean(axis=0)
    return filled


def score(task: Any, batch: Any, ids: np.ndarray, segments: int) -> dict[str, float]:
    """The task's metrics of segments [B, H, W]."""
    images = np.asarray(batch["images"])
    filled = np.stack([fill_segments(*pair) for pair in zip(images, ids, strict=True)])
    masks = jax.nn.one_hot(jnp.asarray(ids), segments, axis=1)
    terms = jax.jit(task.measure)(jnp.asarray(filled), batch["images"], masks, batch)
    return {name: float(total / count) for name, (total, count) in terms.items()}


def format_value(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # not -0.000


def measure_baselines(
    task: Any, split: str, segments: int, weights: list[float], seed: int
) -> dict[str, dict[str, float]]:
    """{baseline: its metrics} over all images of a split."""
    source = task.source(split)
    batch = make_batch(task, source, len(source))
    images = np.asarray(batch["images"])
    shape = images.shape[:3]
    ids = {
        f"k-means, colour and {weight:g} x position": np.stack(
            [
                cluster_pixels(image, segments, weight, seed + i)
                for i, image in enumerate(images)
            ]
        )
        for weight in weights
    }
    ids["one slot"] = np.zeros(shape, np.int64)
    ids["random"] = np.random.default_rng(seed).integers(segments, size=shape)
    return {name: score(task, batch, each, segments) for name, each in ids.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--config", help="a recipe, FILE.py[:VARIANT]")
    given.add_argument("--workdir", help="a run, whose slots are scored, too")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, help="how many; default: the whole split")
    parser.add_argument(
        "--positions",
        default="0,1",
        help="weights of the positions beside the colours; default %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    if options.config:
        settings = config_lib.resolve(config_lib.load(options.config))
    else:
        settings, _ = load_settings(options.workdir, None)
        results = evaluate(options.workdir)
        name = next(n for n, s in settings.evals.items() if s.split == options.split)
        found["slots of the run"] = {m: results[f"{name}/{m}"] for m in METRICS}
    task = build(settings.task)
    if options.images:
        task = dataclasses.replace(task, **{f"{options.split}_images": options.images})
    weights = [float(weight) for weight in options.positions.split(",")]
    found |= measure_baselines(
        task, options.split, settings.model.num_slots, weights, options.seed
    )
    name = options.config or settings.task.data
    report.write(
        f"segmentation {name}",
        [
            f"### Segmentations without learning: {name}, split {options.split}",
            "",
            f"`python benchmarks/segmentation_baselines.py --config={options.config}`"
            if options.config
            else "`python benchmarks/segmentation_baselines.py --workdir=RUN`",
            f"({report.provenance()}; {settings.model.num_slots} segments)",
            "",
            f"| segments | {' | '.join(METRICS)} |",
            "|---" * (len(METRICS) + 1) + "|",
            *(
                f"| {name} | {' | '.join(format_value(row[m]) for m in METRICS)} |"
                for name, row in found.items()
            ),
        ],
    )


if __name__ == "__main__":
    main()
