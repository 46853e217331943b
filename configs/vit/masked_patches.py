"""ViT pre-trained without labels: predicts the mean color of corrupted patches (half of all).

Command:  python train.py --config=configs/vit/masked_patches.py:cifar10
              --workdir=runs/masked --config.task.data=cifar10.zip
          then configs/vit/finetune.py with runs/masked.
Data:     any images, see configs/vit/cifar10.py; "base" reads "tfds:imagenet2012", once it
          is prepared (that needs the extra `tf`).
Hardware: "cifar10" 2 CPU cores, "base" a pod.
Expect:   "base" has not been run here. The paper reports 79.9 % on ImageNet after
          pre-training on JFT-300M and fine-tuning, 2 points above training from scratch and
          4 below pre-training on labels; 100,000 of the 1,000,000 steps give most of it.
          "cifar10": 2,800 steps without labels and 1,000 with labels (60 minutes) reach
          60.8 % test accuracy; from scratch, 1,000 steps reach 55.1 %, and 3,800 steps, in
          the same total time, 64.7 % (means of 2 seeds). So pre-training helps if there are
          few steps with labels, but is not worth its own time.
Source:   Dosovitskiy et al. 2021, sec. 4.6 and B.1.2, for "base"; crop and flip are those of
          its supervised pre-training, as B.1.2 names none. "cifar10" is ours.
"""

from ml_collections import ConfigDict

from configs import common
from configs.vit import _sizes

VARIANTS = ("base", "cifar10", "debug")


def get_config(variant: str = "base") -> ConfigDict:
    c = common.get_config()
    c.task = {"cls": "attn_jax.tasks.masked_patches:MaskedPatches"}
    c.sharding_rules = _sizes.SHARDING
    {"base": base, "cifar10": cifar10, "debug": debug}[variant](c)
    # No labels, no classification head; a head for 2^(3 bits of each channel) colors.
    c.model.update(
        cls="attn_jax.models.vit:ViT",
        num_classes=0,
        patch_size=c.task.patch_size,
        mask_token=True,
        patch_outputs=8**c.task.channels,
    )
    return c


def base(c: ConfigDict) -> None:
    c.model = {**_sizes.size("B"), "dtype": "bfloat16"}
    c.task.update(
        data="tfds:imagenet2012",
        image_size=224,
        patch_size=16,
        channels=3,
        crop="inception",
        flip=True,
        resize=256,
    )
    c.batch_size = 4096
    c.duration = "1000000 steps"
    c.optimizer = {"name": "adamw", "learning_rate": 2e-4}
    c.schedule = {"name": "cosine", "warmup": "10000 steps"}
    c.evals = {"validation": {"split": "validation", "every": "10000 steps"}}
    c.checkpoint_every = "5000 steps"


def cifar10(c: ConfigDict) -> None:
    # No convolutional stem, since targets are colors of patches.
    c.model = {"width": 128, "depth": 4, "mlp_width": 512, "num_heads": 4}
    c.model.update(pool="gap", position="sincos2d")
    c.task.update(
        data="tfds:cifar10",
        image_size=32,
        patch_size=4,
        channels=3,
        holdout=1000,
        crop="shift",
        flip=True,
    )
    c.batch_size = 128
    c.micro_batches = 2  # half a batch fits in a CPU's cache: a fifth faster
    c.duration = "60 epochs"
    c.optimizer = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05}
    c.schedule = {"name": "cosine", "warmup": "2 epochs"}
    c.clip_norm = 1.0
    c.evals = {
        "validation": {"split": "validation", "every": "5 epochs", "batch_size": 250}
    }


def debug(c: ConfigDict) -> None:
    c.model = {"width": 16, "depth": 2, "mlp_width": 32, "num_heads": 2}
    c.model.update(pool="gap", position="sincos2d")
    c.task.update(
        data="digits",
        image_size=16,
        patch_size=4,
        channels=1,
        holdout=180,
        crop="shift",
    )
    c.batch_size = 16
    c.duration = "4 steps"
    c.optimizer = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05}
    c.schedule = {"name": "cosine", "warmup": "1 steps"}
    c.evals = {"validation": {"split": "validation", "every": "2 steps"}}
    c.checkpoint_every = "2 steps"
