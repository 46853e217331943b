"""Slot Attention: unsupervised object discovery on CLEVR with at most six objects.

Command:  python train.py --config=configs/slot_attention/clevr6.py --workdir=DIR \
              --config.task.data=clevr_with_masks_train.tfrecords
          the file is that of github.com/google-deepmind/multi_object_datasets. Or, without masks
          and so without ARI, CLEVR of TensorFlow Datasets, whose frames are others:
          python train.py --config=configs/slot_attention/clevr6.py --workdir=DIR \
              --config.task.data=tfds:clevr --config.task.crop=whole
Hardware: 5 days 13 hours on one V100 in the paper; not run here. Its batch of 64 needs 16 GB.
Expect:   FG-ARI 98.8 +- 0.3 % in the paper (5 seeds).
Source:   Locatello et al. 2020 (arXiv:2006.15055), sec. 4.1 and supplement, whose released code
          reads CLEVR without masks.

Of the first 70,000 images those with at most six objects are for training, and of the later ones 320
for validation and 320 for testing. The file is gzipped, so it is read once from its start, and what
is needed is packed into the cache (docs/scenes.md). "debug" trains on generated images.
"""

from ml_collections import ConfigDict

from configs import common
from configs.slot_attention import _sizes

VARIANTS = ("base", "debug")


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
        "data": "tetrominoes" if debug else "DATA",
        "image_size": _sizes.PIXELS[variant],
        "tile_pixels": 2,  # of "debug"
        "crop": "clevr",
        "num_objects": 3 if debug else 6,
        "train_images": 128 if debug else 70_000,
        "validation_images": 35 if debug else 320,
        "test_images": 35 if debug else 320,
    }
    _sizes.set_training(c, _sizes.TRAININGS[variant])
    return c
