"""Slot Attention: unsupervised object discovery in generated images of sprites.

Command:  python train.py --config=configs/slot_attention/multi_dsprites.py --workdir=DIR
Hardware: the paper's setting (base) took 24 hours on one V100 in the paper; not run here.
          small: 32x32 pixels and 32 channels, about 0.8 seconds a step on 2 CPU cores (4
          hours); not trained to its end here.
Expect:   FG-ARI 91.3 +- 0.3 % of colored_on_grayscale, and 69.4 +- 0.9 % of binarized, in the
          paper and on the original data.
Source:   Locatello et al. 2020 (arXiv:2006.15055), sec. 4.1 and supplement. The images are
          generated here; outlines of the sprites are not those of dSprites.

"binarized" and "colored_on_colored" are the other two variants of the data, at the paper's
size. `validation` and `test` have 320 held-out images each.
"""

from ml_collections import ConfigDict

from configs import common
from configs.slot_attention import _sizes

MOST = {"binarized": 3, "colored_on_grayscale": 5, "colored_on_colored": 4}
VARIANTS = ("base", "small", "debug", "binarized", "colored_on_colored")


def get_config(variant: str = "base") -> ConfigDict:
    debug, small = variant == "debug", variant == "small"
    kind = variant if variant in MOST else "colored_on_grayscale"
    pixels = 12 if debug else 32 if small else 64
    channels = 6 if debug else 32
    kernel = 3 if debug or small else 5
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.slot_attention:SlotAttentionAutoEncoder",
        "num_slots": MOST[kind] + 1,  # and the background
        "iterations": 3,
        "width": 12 if debug else 64,
        "mlp_width": 16 if debug else 128,
        "encoder_channels": [channels] * 4,
        "encoder_kernels": [kernel] * 4,
        "decoder_initial_size": [pixels] * 2,  # no layer enlarges
        "decoder_channels": [channels] * 3,
        "decoder_kernels": [kernel] * 3 + [3],
        "decoder_strides": [1, 1, 1, 1],
    }
    c.task = {
        "cls": "attn_jax.tasks.reconstruct:Reconstruct",
        "data": f"multi_dsprites/{kind}",
        "image_size": pixels,
        "num_objects": MOST[kind],
        "train_images": 256 if debug else 60_000,
        "validation_images": 70 if debug else 320,
        "test_images": 70 if debug else 320,
    }
    _sizes.set_training(c, _sizes.TRAININGS.get(variant, _sizes.PAPER))
    return c
