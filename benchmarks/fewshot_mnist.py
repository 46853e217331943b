"""Few-shot accuracy of the features of a trained ViT, compared with random features.

    python benchmarks/fewshot_mnist.py --workdir=runs/mnist --data=mnist.npz

Few-shot linear and nearest-neighbor accuracy (attn_jax/tasks/probe.py) of one run's model,
of the same model at random initialization, and of the raw pixels, all on the same images and
draws. Uses the best checkpoint if the run ranks them, else the last.
"""

import argparse
import pathlib
import sys

import flax.linen as nn
import jax
import report

sys.path.insert(0, str(report.ROOT))

from attn_jax import config, evaluation, sharding  # noqa: E402
from attn_jax.restore import load_settings, open_run  # noqa: E402
from attn_jax.tasks.probe import Probe  # noqa: E402

READING = ("image_size", "channels", "holdout", "corrupt", "resize")  # as in the run


class Pixels(nn.Module):
    """The image itself as features."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return {"pooled": images.reshape(len(images), -1)}


def measure_probe(model: nn.Module, params, task: Probe, split: str, batch_size: int):
    """Evaluates a probe of the model; returns {metric: value}."""
    probe = evaluation.Evaluation(
        "probe",
        model,
        task,
        split,
        mesh=sharding.make_mesh({"data": -1}),
        batch_size=batch_size,
        key=jax.random.key(0),
    )
    return {name.split("/")[1]: value for name, value in probe.run(params).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--data", help="of the probe; default: the run's")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--shots", default="1,5,10,25")
    parser.add_argument("--draws", default=3, type=int)
    parser.add_argument("--neighbours", default=20, type=int)
    parser.add_argument("--seed", default=0, type=int, help="of draws and random model")
    parser.add_argument("--batch-size", default=500, type=int)
    options = parser.parse_args()

    settings, saved = load_settings(options.workdir, None, ())
    step = "best" if settings.keep_best else "latest"
    mesh = sharding.make_mesh({"data": -1})
    run = open_run(options.workdir, (settings, saved), step, None, (), mesh)
    task = Probe(
        data=options.data or settings["task"]["data"],
        shots=tuple(map(int, options.shots.split(","))),
        draws=options.draws,
        neighbours=options.neighbours,
        seed=options.seed,
        **{key: config.to_tuple(settings["task"][key]) for key in READING},
    )
    h, w = task.size
    random = run.module.init(
        jax.random.key(options.seed),
        jax.numpy.zeros((1, h, w, task.channels)),
        train=False,
    )
    trained = f"{settings['model']['cls'].split(':')[1]}, step {run.record['step']:,}"
    rows = {
        trained: measure_probe(
            run.module, run.params, task, options.split, options.batch_size
        ),
        "the same at random initialization": measure_probe(
            run.module, random["params"], task, options.split, options.batch_size
        ),
        "raw pixels": measure_probe(
            Pixels(), {}, task, options.split, options.batch_size
        ),
    }
    columns = {f"accuracy_{shots}_shot": f"{shots}-shot" for shots in task.shots}
    if task.neighbours:
        columns["accuracy_knn"] = f"{task.neighbours} neighbours"
    given = options.workdir
    shown = given.name if given.is_absolute() else given  # folders are private
    command = f"python benchmarks/fewshot_mnist.py --workdir={shown}"
    for flag in ("data", "split", "shots", "draws", "neighbours", "seed"):
        value = getattr(options, flag)
        if value != parser.get_default(flag):
            shown = pathlib.Path(value).name if flag == "data" else value
            command += f" --{flag}={shown}"
    first = next(iter(columns))
    report.write(
        f"fewshot {options.workdir.name}",
        [
            f"### {options.workdir.name}: {columns[first]} accuracy {rows[trained][first]:.2%}",
            "",
            f"`{command}`",
            f"({report.provenance()}; draws of seed {task.seed})",
            f"Accuracy on the {options.split} split of a linear probe on so many training "
            f"images of each class (ridge, l2 {task.l2:,.0f}, mean over {task.draws} draws), "
            "and of a vote of the nearest among all training images. The model was trained "
            "on their labels, so this measures how well its features separate these "
            "classes, not new ones.",
            "",
            f"| features | {' | '.join(columns.values())} |",
            "|---" * (len(columns) + 1) + "|",
            *(
                f"| {name} | {' | '.join(f'{row[m]:.2%}' for m in columns)} |"
                for name, row in rows.items()
            ),
        ],
    )


if __name__ == "__main__":
    main()
