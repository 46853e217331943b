"""Slot Attention: unsupervised object discovery in generated images of tetrominoes.

Command:  python train.py --config=configs/slot_attention/tetrominoes.py --workdir=DIR
Hardware: the paper's setting (base) took 7.5 hours on one V100 in the paper; not run
          here.
          small: 2 CPU cores, about 30 minutes. 14x14 pixels, tiles of 2 pixels, 3
          pieces, 4 slots of width 32, 32 channels; batches of 32. Kernels are 3x3, a tile
          and a half: those of 5x5 would cover more tiles than in the paper.
          VARIANT,ABLATION, such as small,no_gru, removes or replaces one part.
Expect:   base: FG-ARI 99.5 +- 0.2 % in the paper, on the original data, without one of
          five seeds: its slots were stripes of the image, as its high error shows.
          small: FG-ARI 92 % (seeds 0 and 1: 92.7, 91.6), squared error 1 %, no stripes.
          The paper's ablations are on CLEVR6 (ARI, default 98.9): sum 25.3, sum_norm 99.0,
          no_positions 91.3, learned_slots 97.6, softmax_over_inputs 61.6, no_gru 85.1,
          no_norms 98.7, no_mlp 98.7, epsilon_in_divisor 98.7, no_decay 98.2, temperature_1 92.1;
          soft_kmeans 75.5.
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


# {name: fields of Slot Attention that change}
ABLATIONS: dict[str, dict[str, str | bool | float]] = {
    "sum": {"normalizer": "sum"},
    "sum_norm": {"normalizer": "sum_norm"},
    "epsilon_in_divisor": {"normalizer": "savi"},
    "softmax_over_inputs": {"over": "inputs"},
    "learned_slots": {"initial": "learned"},
    "no_gru": {"use_gru": False},
    "no_mlp": {"use_mlp": False},
    "no_norms": {"use_norms": False},
    "soft_kmeans": {"soft_kmeans": True},
    "temperature_1": {"scale": 1.0},
    "no_positions": {},  # of the encoder
    "no_decay": {},  # of the learning rate
}


def get_config(variant: str = "base") -> ConfigDict:
    variant, _, ablation = variant.partition(",")
    if ablation and ablation not in ABLATIONS:
        raise ValueError(f"{ablation=} must be one of {', '.join(ABLATIONS)}.")
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
    if ablation:
        ablate(c, ablation)
    return c


def ablate(c: ConfigDict, ablation: str) -> None:
    """Changes one part of Slot Attention, or of what is around it."""
    if ablation == "no_positions":
        c.model.encoder_positions = False
    elif ablation == "no_decay":
        c.schedule = {"name": "constant", "warmup": c.schedule.warmup}
    else:
        kept = ("iterations", "width", "mlp_width")
        c.model.grouping = {
            "cls": "attn_jax.models.slot_attention:SlotAttention",
            "num_slots": c.model.num_slots,
            **{key: c.model[key] for key in kept},
            **ABLATIONS[ablation],
        }
        for key in kept:
            del c.model[key]
