"""The better plain ViT-S/16: ImageNet-1k from scratch, 90 epochs, 76.5 % top-1.

Command:  python train.py --config=configs/vit/plain_s16_i1k.py --workdir=runs/s16
          python train.py --config=configs/vit/plain_s16_i1k.py:300 ...   for 300 epochs
Data:     "tfds:imagenet2012", once it is prepared (that needs the extra `tf`), or
          --config.task.data=FOLDER of train/CLASS/*.JPEG and val/CLASS/*.JPEG.
Hardware: the paper's TPUv3-8: 6.5 hours for 90 epochs, under a day for 300; not run here.
Expect:   top-1 76.5 % (90 epochs), 78.5 (150), 80.0 (300); ReaL 83.1 and 85.4 at 90 and 300.
Source:   Beyer et al. 2022 (arXiv:2205.01580); big_vision configs/vit_s16_i1k.py.

Mean pooling, fixed positions, a tanh layer before the head; RandAugment and mixup, but no
dropout, stochastic depth or label smoothing. The original states weight decay per unit of the
schedule, 1e-4; this is 0.1 per unit of learning rate times schedule.
"""

from ml_collections import ConfigDict

from configs import common
from configs.vit import _sizes

VARIANTS = ("90", "150", "300", "debug")


def get_config(variant: str = "90") -> ConfigDict:
    debug = variant == "debug"
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.vit:ViT",
        "num_classes": 10 if debug else 1000,
        "patch_size": 4 if debug else 16,
        **_sizes.size("mu" if debug else "S"),
        "pool": "gap",
        "position": "sincos2d",
        "representation_size": 32 if debug else 384,
        "dialect": "big_vision",
        "dtype": "float32" if debug else "bfloat16",
    }
    c.task = {
        "cls": "attn_jax.tasks.classify:Classify",
        "data": "digits" if debug else "tfds:imagenet2012",
        "num_classes": 10 if debug else 1000,
        "image_size": 16 if debug else 224,
        "resize": 18 if debug else 256,
        "holdout": 180 if debug else 0,
        "crop": "inception",
        "flip": True,
        "randaugment": [2, 10],
        "mixup": 0.2,
    }
    c.batch_size = 16 if debug else 1024
    c.duration = "8 steps" if debug else f"{variant} epochs"
    c.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "mu_dtype": "bfloat16",
    }
    c.schedule = {"name": "cosine", "warmup": "2 steps" if debug else "10000 steps"}
    c.clip_norm = 1.0
    c.sharding_rules = _sizes.SHARDING
    # No keep_best: results are reported on ImageNet's validation images.
    every = "4 steps" if debug else "5 epochs"
    c.evals = {"validation": {"split": "validation", "every": every}}
    c.checkpoint_every = "4 steps" if debug else "1000 steps"
    c.data_workers = 0 if debug else 16
    return c
