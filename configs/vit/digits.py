"""ViT on 1,797 real handwritten digits that come with scikit-learn (8x8 pixels, gray).

Command:  python train.py --config=configs/vit/digits.py --workdir=runs/digits
Hardware: 2 CPU cores, under 3 minutes.
Expect:   97.5 % test accuracy or more (360 held-out images; docs/results.md has the seeds).
Source:   ours; the split is scikit-learn's train_test_split, stratified, random_state 0.

`evaluate --step=best` reads the checkpoint that is best on 180 validation images.
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
        "position": "sincos2d",
        "stochastic_depth": 0.1,
    }
    c.task = {
        "cls": "attn_jax.tasks.classify:Classify",
        "data": "digits",
        "num_classes": 10,
        "image_size": 16,  # enlarged, so that crops move the original by fractions of a pixel
        "channels": 1,
        "holdout": 180,
        "crop": "inception",
        "crop_area": [0.7, 1.0],
        "label_smoothing": 0.1,
    }
    c.batch_size = 16 if debug else 64
    c.duration = "8 steps" if debug else "120 epochs"
    c.optimizer = {"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.3}
    c.schedule = {"name": "cosine", "warmup": "2 steps" if debug else "5 epochs"}
    c.clip_norm = 1.0
    c.ema_decay = 0.995
    c.sharding_rules = _sizes.SHARDING
    c.evals = {
        "validation": {
            "split": "validation",
            "every": "4 steps" if debug else "10 epochs",
            "batch_size": 180,
        },
        "test": {"split": "test", "batch_size": 360},
    }
    c.keep_best = "max:validation/accuracy"
    c.checkpoint_every = "4 steps" if debug else "50 epochs"
    c.log_every = "1 steps" if debug else "50 steps"
    return c
