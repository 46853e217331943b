"""Slot Attention: unsupervised object discovery in generated images of tetrominoes.

Command:  python train.py --config=configs/slot_attention/tetrominoes.py --workdir=DIR
Hardware: the paper's setting (base) took 7.5 hours on one V100 in the paper; not run
          here.
          small: 2 CPU cores, about 30 minutes. 14x14 pixels, tiles of 2 pixels, 3
          pieces, 4 slots of width 32, 32 channels; batches of 32. Kernels are 3x3, a tile
          and a half: those of 5x5 would cover more tiles than in the paper.
Expect:   base: FG-ARI 99.5 +- 0.2 % in the paper, on the original data, without one of
          five seeds: its slots were stripes of the image, as its high error shows.
          small: FG-ARI 92 % (seeds 0 and 1: 92.7, 91.6), squared error 1 %, no stripes.
Source:   Locatello et al. 2020 (arXiv:2006.15055), sec. 4.1 and supplement; the
          released code has no Tetrominoes. The images are generated here, after the preview
          of the original data.

`validation` and `test` have 320 held-out images each, as in the paper. The learning rate
decays from step 0 on, also during the warm-up, as in the released code.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import common
from configs.slot_attention import _sizes

VARIANTS = ("base", "small", "debug")


class Size(NamedTuple):
    image_size: int  # pixels
    tile_pixels: int
    channels: int  # of every convolution
    kernel: int  # side of all kernels but the decoder's last, which is 3
    width: int  # of a slot
    mlp_width: int


SIZES = {
    "base": Size(
        image_size=35,
        tile_pixels=5,
        channels=32,
        kernel=5,
        width=64,
        mlp_width=128,
    ),
    "small": Size(
        image_size=14,
        tile_pixels=2,
        channels=32,
        kernel=3,
        width=32,
        mlp_width=64,
    ),
    "debug": Size(
        image_size=10,
        tile_pixels=2,
        channels=6,
        kernel=3,
        width=12,
        mlp_width=16,
    ),
}


def get_config(variant: str = "base") -> ConfigDict:
    debug, size = variant == "debug", SIZES[variant]
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.slot_attention:SlotAttentionAutoEncoder",
        "num_slots": 4,  # three pieces and the background
        "iterations": 3,
        "width": size.width,
        "mlp_width": size.mlp_width,
        "encoder_channels": [size.channels] * 4,
        "encoder_kernels": [size.kernel] * 4,
        "decoder_initial_size": [size.image_size] * 2,  # no layer enlarges
        "decoder_channels": [size.channels] * 3,
        "decoder_kernels": [size.kernel] * 3 + [3],
        "decoder_strides": [1, 1, 1, 1],
    }
    c.task = {
        "cls": "attn_jax.tasks.reconstruct:Reconstruct",
        "data": "tetrominoes",
        "image_size": size.image_size,
        "tile_pixels": size.tile_pixels,
        "num_objects": 2 if debug else 3,
        "train_images": 256 if debug else 60_000,
        "validation_images": 70 if debug else 320,
        "test_images": 70 if debug else 320,
    }
    _sizes.set_training(c, _sizes.TRAININGS[variant])
    return c
