"""Slot Attention: any folder of images, with instance masks or without.

Command:  python train.py --config=configs/slot_attention/images.py --workdir=DIR \
              --config.task.data=FOLDER
          FOLDER holds images/NAME.png with masks/NAME.png (ids) or masks/NAME/*.png (one an
          object), NAME/images/*.png with NAME/masks/*.png, or images alone; also below
          train/, validation/, test/. Or an .npz with `images` and `instances`.
Hardware: base has the paper's network for 128x128 pixels, small half its channels for 64x64.
Expect:   it depends on the images. Colors of pixels suffice to separate objects that are
          plain; photos need features of a trained network in their place.
Source:   Locatello et al. 2020 (arXiv:2006.15055), network and rates of its CLEVR6.

Without masks, only the squared error is reported. Each image is cropped to its largest
central square; `task.crop=whole` squeezes it instead. "debug" trains on generated images.
"""

from ml_collections import ConfigDict

from configs import common
from configs.slot_attention import _sizes

VARIANTS = ("base", "small", "debug")


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.slot_attention:SlotAttentionAutoEncoder",
        "num_slots": 4 if debug else 7,
        "iterations": 3,
        **_sizes.NETWORKS[variant],
    }
    c.task = {
        "cls": "attn_jax.tasks.reconstruct:Reconstruct",
        "data": "multi_dsprites/colored_on_colored" if debug else "DATA",
        "image_size": _sizes.PIXELS[variant],
        "num_objects": 3 if debug else 255,  # fewer would leave out images with more
        "train_images": 256 if debug else 1_000_000,
        "validation_images": 35 if debug else 50,
        "test_images": 35 if debug else 50,
    }
    _sizes.set_training(c, _sizes.TRAININGS[variant])
    return c
