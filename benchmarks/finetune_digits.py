"""Few images of one's own, from a checkpoint: fine-tuned, only the head trained, or from scratch.

    python benchmarks/finetune_digits.py --checkpoint=runs/mnist --seeds=0,1,2

The recipe vit/my_images on scikit-learn's digits (8x8 pixels, enlarged), with 10 and 50 images a
class, from a run of vit/mnist. All models have the architecture of that run. Nothing is chosen
by a validation split: each run is evaluated once, at its end, on the 360 test images. Without
mirrored images, since they would be other digits. The runs are folders under --out: after an
interruption the same command goes on, and trains nothing twice.
"""

import argparse
import json
import pathlib
import statistics
import sys

import commands
import jax
import report

sys.path.insert(0, str(report.ROOT))

import attn_jax  # noqa: E402
import train  # noqa: E402
from attn_jax import config as config_lib  # noqa: E402
from attn_jax.derived import to_section  # noqa: E402

EPOCHS = 20
RECIPE = "configs/vit/my_images.py"
COMMON = [
    "task.data=digits",
    "task.flip=false",
    "task.holdout=0",
    # Once, after the last step.
    f'evals={{"test": {{"split": "test", "batch_size": 360, "every": "{EPOCHS * 10} epochs"}}}}',
    "keep_best=null",
    f'checkpoint_every="{EPOCHS * 10} epochs"',
]
# {row: (variant, from the checkpoint, settings)}
WAYS: dict[str, tuple[str, bool, list[str]]] = {
    "fine-tuned": ("base", True, []),
    "fine-tuned, rate 1e-3": ("base", True, ["optimizer.learning_rate=1e-3"]),
    "the same, no layer decay": (
        "base",
        True,
        [
            "optimizer.learning_rate=1e-3",
            'learning_rate_multipliers=[["head/.*", 10.0]]',
        ],
    ),
    "only the head": ("frozen", True, ["optimizer.learning_rate=1e-3"]),
    "from scratch": (
        "base",
        False,
        ["optimizer.learning_rate=1e-3", "learning_rate_multipliers=[]"],
    ),
    "from scratch, four times as long": (
        "base",
        False,
        [
            "optimizer.learning_rate=1e-3",
            "learning_rate_multipliers=[]",
            f'duration="{EPOCHS * 4} epochs"',
            'schedule.warmup="4 epochs"',
        ],
    ),
}


def describe_model(checkpoint: pathlib.Path) -> list[str]:
    """The settings that give a new model the architecture and input of the checkpoint."""
    module, _, _ = attn_jax.restore(checkpoint)
    settings = config_lib.to_plain(json.loads((checkpoint / "config.json").read_text()))
    model = to_section(module) | {"stochastic_depth": 0.1}
    model = {key: value for key, value in model.items() if key != "num_classes"}
    task = {
        key: settings["task"][key]
        for key in ("image_size", "channels", "resize", "mean", "std")
    }
    return [f"model.{key}={json.dumps(value)}" for key, value in model.items()] + [
        f"task.{key}={json.dumps(value)}" for key, value in task.items()
    ]


def run(way: str, size: int, seed: int, options: argparse.Namespace) -> float:
    """Trains one run; returns its test accuracy."""
    variant, pretrained, settings = WAYS[way]
    name = way.replace(" ", "_").replace(",", "")
    workdir = options.out.resolve() / f"{name}-{size}-{seed}"
    if pretrained:
        settings = [*settings, f"init_from={options.checkpoint}"]
    else:
        settings = [*settings, *describe_model(options.checkpoint)]
    settings = [*COMMON, f"task.examples={10 * size}", f"seed={seed}", *settings]
    config = config_lib.load(f"{report.ROOT / RECIPE}:{variant}", settings)
    train.train(config, str(workdir))
    return commands.read_records(workdir)[-1]["test/accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=pathlib.Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sizes", default="10,50", help="images a class")
    parser.add_argument("--out", default="runs/finetune_digits", type=pathlib.Path)
    options = parser.parse_args()
    options.checkpoint = options.checkpoint.resolve()
    # Runs that differ in their seed share their programs.
    jax.config.update(
        "jax_compilation_cache_dir", str(options.out.resolve() / "programs")
    )
    seeds = [int(seed) for seed in options.seeds.split(",")]
    sizes = [int(size) for size in options.sizes.split(",")]
    rows = []
    for way in WAYS:
        cells = []
        for size in sizes:
            found = [100 * run(way, size, seed, options) for seed in seeds]
            spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.1f}{spread}")
        rows.append(f"| {way} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    columns = " | ".join(f"{size} images a class" for size in sizes)
    command = (
        f"python benchmarks/finetune_digits.py --checkpoint={options.checkpoint.name}"
    )
    command += f" --seeds={options.seeds} --sizes={options.sizes}"
    report.write(
        "finetune digits",
        [
            "### Few images, from a checkpoint: 1,797 digits from a ViT trained on MNIST",
            "",
            f"`{command}`",
            f"({report.provenance()})",
            "",
            f"Recipe `vit/my_images`, {EPOCHS} epochs of the few images. Test accuracy in percent, "
            f"mean and deviation of {len(seeds)} seeds.",
            "",
            f"| | {columns} |",
            "|---" * (len(sizes) + 1) + "|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
