"""ViT-B/16 from ImageNet-21k, fine-tuned at 384 pixels with a head that starts at zero.

Command:  python train.py --config=configs/vit/vit_b16_finetune.py:cifar10
              --workdir=runs/b16_cifar10
              --config.init_from='[["B_16.npz", "", "(head|pre_logits)/.*"]]'
          With an AugReg file, which has no pre_logits, the regex is "head/.*".
Data:     variants i1k ("tfds:imagenet2012"), cifar10, cifar100, pets, flowers: tfds sets,
          once they are prepared, or any source by --config.task.data.
Hardware: one A100: cifar10 2.2 hours, i1k 6.5 hours (the original's readme); not run here.
Expect:   i1k 84.5 %, cifar10 99.0 %, cifar100 92.1 % from the AugReg file of the readme.
Source:   Dosovitskiy et al. 2021, table 4 and B.1.1; vision_transformer configs/common.py:
          SGD with momentum 0.9 in bfloat16, batches of 512, no weight decay, gradients
          clipped to 1. The paper tries learning rates 0.001 to 0.06 on held-out data.

Positions are resized from 224 to 384 pixels by the original's rule. To change lower layers
less, use `--config.freeze`, or `_sizes.LAYERS` in `--config.learning_rate_multipliers`.
"""

from ml_collections import ConfigDict

from configs import common
from configs.vit import _sizes

# {variant: (data, classes, steps, training images to hold out)}
SETS = {
    "i1k": ("tfds:imagenet2012", 1000, 20_000, 0),
    "cifar10": ("tfds:cifar10", 10, 10_000, 1_000),
    "cifar100": ("tfds:cifar100", 100, 10_000, 1_000),
    "pets": ("tfds:oxford_iiit_pet", 37, 500, 368),
    "flowers": ("tfds:oxford_flowers102", 102, 500, 0),
}
VARIANTS = (*SETS, "debug")


def get_config(variant: str = "cifar10") -> ConfigDict:
    debug = variant == "debug"
    data, classes, steps, holdout = SETS.get(variant, ("digits", 10, 8, 180))
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.vit:ViT",
        "num_classes": classes,
        "patch_size": 4 if debug else 16,
        **_sizes.size("mu" if debug else "B"),
        "dtype": "float32" if debug else "bfloat16",
    }
    c.task = {
        "cls": "attn_jax.tasks.classify:Classify",
        "data": data,
        "num_classes": classes,
        "image_size": 16 if debug else 384,
        "holdout": holdout,
        "crop": "inception",
        "flip": not debug,
    }
    c.init_from = []  # the user sets the path on the command line
    c.batch_size = 16 if debug else 512
    c.micro_batches = 1 if debug else 8  # to fit the memory of one accelerator
    c.duration = f"{steps} steps"
    c.optimizer = {
        "name": "sgd",
        "learning_rate": 0.03,
        "momentum": 0.9,
        "momentum_dtype": "bfloat16",
    }
    c.schedule = {"name": "cosine", "warmup": f"{min(500, steps // 5)} steps"}
    c.clip_norm = 1.0
    c.sharding_rules = _sizes.SHARDING
    every = f"{max(steps // 20, 4)} steps"
    c.evals = {"validation": {"split": "validation", "every": every}}
    if variant != "i1k":  # whose results are reported on validation images
        c.evals.test = {"split": "test"}
        c.keep_best = "max:validation/accuracy"
    c.checkpoint_every = every
    return c
