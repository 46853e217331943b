"""The ResNet of the ViT paper's comparison: group norm and weight standardization.

Command:  python train.py --config=configs/vit/resnet.py --workdir=runs/resnet
          The variant "mnist" is the small ResNet of benchmarks/data_scaling.py.
Data:     "tfds:imagenet2012", once it is prepared, or any source by --config.task.data.
Hardware: "imagenet" 8 accelerators, not run here; "mnist" 2 CPU cores.
Expect:   test accuracy after 2,000 steps of "mnist" with averaged parameters
          (benchmarks/data_scaling.py, seed 0): 96.9, 98.6, 99.0 % from 600, 6,000, 60,000
          training images; the ViT of configs/vit/mnist.py reaches 94.1, 98.0, 98.5 %.
          "imagenet" has not been run.
Source:   Dosovitskiy et al. 2021, sec. 4.1; big_vision configs/bit_i1k.py for "imagenet": SGD
          with momentum, learning rate 0.1 and weight decay 1e-4 per 256 images of a batch
          (the latter per unit of the schedule, so 1e-3 per unit of learning rate), 90 epochs,
          with a quarter of its batch of 4096.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = ("imagenet", "mnist", "debug")


def get_config(variant: str = "imagenet") -> ConfigDict:
    c = common.get_config()
    c.model = {"cls": "attn_jax.models.resnet:ResNet"}
    c.task = {"cls": "attn_jax.tasks.classify:Classify"}
    c.clip_norm = 1.0
    c.sharding_rules = []  # kernels are small: split over `fsdp` only
    {"imagenet": imagenet, "mnist": mnist, "debug": debug}[variant](c)
    c.model.num_classes = c.task.num_classes
    return c


def imagenet(c: ConfigDict) -> None:
    c.model.update(stage_sizes=[3, 4, 6, 3], width=64, dtype="bfloat16")
    c.task.update(
        data="tfds:imagenet2012",
        num_classes=1000,
        image_size=224,
        resize=256,
        crop="inception",
        flip=True,
    )
    c.batch_size = 1024
    c.duration = "90 epochs"
    c.optimizer = {"name": "sgd", "learning_rate": 0.4, "momentum": 0.9}
    c.optimizer.weight_decay = 1e-3
    c.schedule = {"name": "cosine", "warmup": "1000 steps"}
    # No keep_best: results are reported on ImageNet's validation images.
    c.evals = {"validation": {"split": "validation", "every": "5 epochs"}}


def mnist(c: ConfigDict) -> None:
    small(c, data="mnist.npz", image_size=28, holdout=5000)
    c.batch_size = 128
    c.duration = "10 epochs"
    c.schedule = {"name": "cosine", "warmup": "1 epochs"}
    c.evals.validation.every = "1 epochs"


def debug(c: ConfigDict) -> None:
    small(c, data="digits", image_size=8, holdout=180)
    c.model.stage_sizes = [1]
    c.batch_size = 16
    c.duration = "8 steps"
    c.schedule = {"name": "cosine", "warmup": "2 steps"}
    c.evals.validation.every = "4 steps"
    c.checkpoint_every = "4 steps"


def small(c: ConfigDict, **data: object) -> None:
    """Gray digits, two stages of one bottleneck each."""
    c.model.update(stage_sizes=[1, 1], width=32)
    c.task.update(num_classes=10, channels=1, crop="shift", shift_pixels=2, **data)
    c.optimizer = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05}
    c.evals = {"validation": {"split": "validation"}, "test": {"split": "test"}}
    c.keep_best = "max:validation/accuracy"
