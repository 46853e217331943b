"""A ViT with Hopfield pooling of its tokens, on scikit-learn's digits.

Command:  python train.py --config=configs/hopfield/vit_pooling.py --workdir=runs/vit
Hardware: 2 CPU cores, 2 minutes.
Expect:   98.1 % test accuracy (seed 0); configs/vit/digits.py, with mean pooling, reaches
          97.5 %.
Source:   ours: configs/vit/digits.py with another pooling.

Four learned states are associated with the tokens, with one more update of the states.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = ("base", "debug")

SHARDING = [
    [".*/(attention|hopfield)/(query|key|value)/kernel", ["fsdp", "tensor", None]],
    [".*/(attention|hopfield)/(query|key|value)/bias", ["tensor", None]],
    [".*/(attention|hopfield)/out/kernel", ["tensor", None, "fsdp"]],
    [".*/mlp/dense_1/kernel", ["fsdp", "tensor"]],
    [".*/mlp/dense_1/bias", ["tensor"]],
    [".*/mlp/dense_2/kernel", ["tensor", "fsdp"]],
]


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.vit:ViT",
        "num_classes": 10,
        "patch_size": 4,
        "width": 16 if debug else 64,
        "depth": 1 if debug else 4,
        "mlp_width": 32 if debug else 256,
        "num_heads": 2 if debug else 4,
        "pool": "gap",  # no class token
        "pooling": {
            "cls": "attn_jax.models.hopfield:HopfieldPooling",
            "quantity": 4,
            "hopfield": {
                "cls": "attn_jax.models.hopfield:Hopfield",
                "num_heads": 2 if debug else 4,
                "output_width": 16,
                "max_updates": 1,
            },
        },
        "position": "sincos2d",
        "stochastic_depth": 0.1,
    }
    c.task = {
        "cls": "attn_jax.tasks.classify:Classify",
        "data": "digits",
        "num_classes": 10,
        "image_size": 16,
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
    c.sharding_rules = SHARDING
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
