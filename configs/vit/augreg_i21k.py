"""AugReg: ViTs on ImageNet-21k, 14 million images in 21,843 classes, for fine-tuning.

Command:  python train.py --config=configs/vit/augreg_i21k.py:B/16 --workdir=runs/b16_i21k
              --config.task.data=FOLDER
          then configs/vit/vit_b16_finetune.py with runs/b16_i21k.
Data:     a folder of train/CLASS/*.JPEG; tfds has no ImageNet-21k. The original has 21,843
          classes; for other numbers set --config.task.num_classes and model.num_classes.
Hardware: a TPUv3-64 or the like, some days for B/16; not run here.
Expect:   precision at 1 on held-out images: B/16 47.9 %, B/32 44.0, L/16 49.9 (pre-training
          of the first ViT paper); after fine-tuning at 384 pixels, ImageNet top-1: Ti/16 78.2,
          S/16 83.7, B/16 85.5, L/16 85.6.
Source:   Steiner et al. 2021 (arXiv:2106.10270), sec. 3.3 to 3.5; big_vision
          configs/vit_i21k.py, including its choices for each size.
"""

from ml_collections import ConfigDict

from configs import common
from configs.vit import _sizes

# {variant: (patch size, RandAugment, mixup)}
MODELS = {
    "Ti/16": (16, None, 0.0),
    "S/32": (32, None, 0.0),
    "S/16": (16, [2, 0], 0.0),
    "B/32": (32, [2, 10], 0.2),
    "B/16": (16, [2, 10], 0.2),
    "L/16": (16, [2, 15], 0.5),
}
VARIANTS = (*MODELS, "debug")


def get_config(variant: str = "B/16") -> ConfigDict:
    debug = variant == "debug"
    name = "mu" if debug else variant.split("/")[0]
    patch, randaugment, mixup = MODELS.get(variant, (4, None, 0.0))
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.vit:ViT",
        "num_classes": 10 if debug else 21_843,
        "patch_size": patch,
        **_sizes.size(name),
        "pool": "gap",
        "dialect": "big_vision",
        "head_bias_init": -10.0,
        "dtype": "float32" if debug else "bfloat16",
    }
    c.task = {
        "cls": "attn_jax.tasks.classify:Classify",
        "data": "digits" if debug else "imagenet21k",
        "num_classes": 10 if debug else 21_843,
        "image_size": 16 if debug else 224,
        "resize": 18 if debug else 256,
        "holdout": 180 if debug else 51_200,
        "crop": "inception",
        "flip": True,
        "randaugment": randaugment,
        "mixup": mixup,
        "loss_kind": "sigmoid",
    }
    c.batch_size = 16 if debug else 4096
    c.duration = "8 steps" if debug else "300 epochs"
    c.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "mu_dtype": "bfloat16",
    }
    c.schedule = {"name": "cosine", "warmup": "2 steps" if debug else "10000 steps"}
    c.clip_norm = 1.0
    c.sharding_rules = _sizes.SHARDING
    every = "4 steps" if debug else "10000 steps"
    c.evals = {"validation": {"split": "validation", "every": every}}
    c.checkpoint_every = "4 steps" if debug else "1000 steps"
    c.data_workers = 0 if debug else 16
    return c
