"""Slot Attention: cell nuclei in microscope images, found without their masks.

Command:  python train.py --config=configs/slot_attention/nuclei.py:small --workdir=DIR \
              --config.task.data=dsb2018_256.npz
          the data of the 2018 Data Science Bowl: an .npz with `images` and `instances`, or a
          folder of NAME/images/*.png with NAME/masks/*.png, one mask an object.
Hardware: base has the paper's network for 128x128 pixels, small half its channels for 64x64.
          Neither was trained to its end here.
Expect:   no number yet.
Source:   Locatello et al. 2020 (arXiv:2006.15055) has no real images; network and rates are those
          of its CLEVR6. Images: Caicedo et al. 2019 (BBBC038).

Images with more than ten nuclei are left out, and their number is printed; raise
`task.num_objects` and `model.num_slots` for them. "debug" trains on generated images.
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
        "num_slots": 4 if debug else 11,
        "iterations": 3,
        **_sizes.NETWORKS[variant],
    }
    c.task = {
        "cls": "attn_jax.tasks.reconstruct:Reconstruct",
        "data": "multi_dsprites/binarized" if debug else "DATA",
        "image_size": _sizes.PIXELS[variant],
        "num_objects": 3 if debug else 10,
        "train_images": 256 if debug else 100_000,
        "validation_images": 35 if debug else 12,
        "test_images": 35 if debug else 12,
    }
    _sizes.set_training(c, _sizes.TRAININGS[variant])
    return c
