"""The ResNet that the ViT paper compares with: group norm and standardised weights.

Command:  python train.py --config=configs/vit/resnet.py --workdir=runs/resnet
          "mnist" is the small one of benchmarks/data_scaling.py.
Data:     "tfds:imagenet2012", once it is prepared, or any source by --config.task.data.
Hardware: "imagenet" 8 accelerators, not run here; "mnist" 2 CPU cores.
Expect:   "imagenet": a ResNet-50 of this kind has about 76 to 77 % top-1 after 90 epochs (BiT-S
          R50x1); "mnist": see docs/results.md.
Source:   Dosovitskiy et al. 2021, sec. 4.1 and 4.3; Kolesnikov et al. 2020 (BiT), appendix on
          training from scratch: SGD, momentum 0.9, weight decay 1e-4 in the gradient's
          scale, learning rate 0.03 for each 256 images.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = ("imagenet", "mnist", "debug")


def get_config(variant: str = "imagenet") -> ConfigDict:
    imagenet, debug = variant == "imagenet", variant == "debug"
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.resnet:ResNet",
        "num_classes": 1000 if imagenet else 10,
        "stage_sizes": [3, 4, 6, 3] if imagenet else [1, 1],
        "width": 64 if imagenet else 32,
        "dtype": "bfloat16" if imagenet else "float32",
    }
    c.task = {
        "cls": "attn_jax.tasks.classify:Classify",
        "data": {"imagenet": "tfds:imagenet2012", "mnist": "mnist.npz"}.get(
            variant, "digits"
        ),
        "num_classes": 1000 if imagenet else 10,
        "image_size": {"imagenet": 224, "mnist": 28}.get(variant, 16),
        "channels": 3 if imagenet else 1,
        "holdout": {"imagenet": 0, "mnist": 5000}.get(variant, 180),
        "crop": "inception" if imagenet else "shift",
        "shift_pixels": 2,
        "flip": imagenet,
    }
    if imagenet:
        c.task.resize = 256
    c.batch_size = {"imagenet": 1024, "mnist": 128}.get(variant, 16)
    c.duration = {"imagenet": "90 epochs", "mnist": "10 epochs"}.get(variant, "8 steps")
    if imagenet:
        c.optimizer = {"name": "sgd", "learning_rate": 0.12, "momentum": 0.9}
        c.optimizer.weight_decay = 1e-4
    else:
        c.optimizer = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05}
    c.schedule = {
        "name": "cosine",
        "warmup": {"imagenet": "5 epochs", "mnist": "1 epochs"}.get(variant, "2 steps"),
    }
    c.clip_norm = 1.0
    c.sharding_rules = []  # every kernel is small: split over `fsdp` only
    every = "4 steps" if debug else "1 epochs"
    c.evals = {"validation": {"split": "validation", "every": every}}
    if not imagenet:
        c.evals.test = {"split": "test"}
        c.keep_best = "max:validation/accuracy"
    c.checkpoint_every = every
    return c
