"""ViT on MNIST: 60,000 handwritten digits, 28x28 pixels, gray.

Command:  python train.py --config=configs/vit/mnist.py --workdir=runs/mnist
              --config.task.data=mnist.npz
Data:     an .npz (x_train, y_train, x_test, y_test), a folder of the idx files, or
          "tfds:mnist" once it is prepared (that needs the extra `tf`).
Hardware: 2 CPU cores, under 25 minutes.
Expect:   98.5 % test accuracy or more (docs/results.md).
Source:   ours.
"""

from ml_collections import ConfigDict

from configs import common
from configs.vit import _sizes

VARIANTS = ("base", "debug")


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.vit:ViT",
        "num_classes": 10,
        "patch_size": 4,
        "width": 16 if debug else 64,
        "depth": 2 if debug else 4,
        "mlp_width": 32 if debug else 256,
        "num_heads": 2 if debug else 4,
        "pool": "gap",
    }
    c.task = {
        "cls": "attn_jax.tasks.classify:Classify",
        "data": "digits" if debug else "tfds:mnist",
        "num_classes": 10,
        "image_size": 28,
        "channels": 1,
        "holdout": 180 if debug else 5000,
        "crop": "shift",
        "shift_pixels": 2,
        "label_smoothing": 0.1,
    }
    c.batch_size = 16 if debug else 128
    c.duration = "8 steps" if debug else "8 epochs"
    c.optimizer = {"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05}
    c.schedule = {"name": "cosine", "warmup": "2 steps" if debug else "1 epochs"}
    c.clip_norm = 1.0
    c.ema_decay = 0.999
    c.sharding_rules = _sizes.SHARDING
    c.evals = {
        "validation": {
            "split": "validation",
            "every": "4 steps" if debug else "1 epochs",
            "batch_size": 500,
        },
        "test": {"split": "test", "batch_size": 500},
    }
    c.keep_best = "max:validation/accuracy"
    c.checkpoint_every = "4 steps" if debug else "1 epochs"
    return c
