"""AugReg: ViTs on ImageNet-1k from scratch, regularized according to their size.

Command:  python train.py --config=configs/vit/augreg_i1k.py:B/16 --workdir=runs/b16
Data:     "tfds:imagenet2012", once it is prepared (that needs the extra `tf`), or
          --config.task.data=FOLDER of train/CLASS/*.JPEG and val/CLASS/*.JPEG.
Hardware: a TPUv3-8 or 8 GPUs, for S/16 about a day; not run here.
Expect:   about 79 % top-1 at 224 pixels for B/16, 78.8 % for S/16.
Source:   Steiner et al. 2021 (arXiv:2106.10270), sec. 3.3 to 3.5; big_vision
          configs/vit_i1k.py, including its augmentation for each size.

The variant names a size and patch; `--config.task.randaugment` and `mixup` choose another
row of the paper's table below. The paper also tries dropout and stochastic depth of 0.1
(`--config.model.dropout`, `stochastic_depth`); the config in its code has neither. Weight
decay is per unit of learning rate times schedule.
"""

from ml_collections import ConfigDict

from configs import common
from configs.vit import _sizes

# {name: (RandAugment's layers and magnitude, mixup's alpha)}, AugReg sec. 3.5. Magnitude 0 still
# applies operations, unlike None.
AUGMENTATION = {
    "none": (None, 0.0),
    "light1": ([2, 0], 0.0),
    "light2": ([2, 10], 0.2),
    "medium1": ([2, 15], 0.2),
    "medium2": ([2, 15], 0.5),
    "strong1": ([2, 20], 0.5),
    "strong2": ([2, 20], 0.8),
}
# {variant: (patch size, row of the table)}
MODELS = {
    "Ti/16": (16, "light1"),
    "S/32": (32, "medium1"),
    "S/16": (16, "medium2"),
    "B/32": (32, "medium2"),
    "B/16": (16, "medium2"),
    "L/16": (16, "medium2"),
}
VARIANTS = (*MODELS, "debug")


def get_config(variant: str = "B/16") -> ConfigDict:
    debug = variant == "debug"
    name = "mu" if debug else variant.split("/")[0]
    patch, row = (4, "light2") if debug else MODELS[variant]
    randaugment, mixup = AUGMENTATION[row]
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.vit:ViT",
        "num_classes": 10 if debug else 1000,
        "patch_size": patch,
        **_sizes.size(name),
        "pool": "gap",
        "dialect": "big_vision",
        "head_bias_init": -6.9,  # -ln 1000: sigmoids start at the frequency of a class
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
    # No keep_best: results are reported on ImageNet's validation images.
    every = "4 steps" if debug else "10 epochs"
    c.evals = {"validation": {"split": "validation", "every": every}}
    c.checkpoint_every = "4 steps" if debug else "1000 steps"
    c.data_workers = 0 if debug else 16
    return c
