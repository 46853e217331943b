"""Slot Attention: unsupervised object discovery in generated images of solids on a plane.

Command:  python train.py --config=configs/slot_attention/clevr_lite.py --workdir=DIR
          tested on more objects, with more slots and iterations:
          python -m attn_jax evaluate --workdir=DIR --set model.num_slots=11 \
              --set model.iterations=5 \
              --set 'evals={"more": {"split": "test", "task": {"num_objects": 10, "fewest_objects": 7}}}'
Hardware: base is the paper's network for CLEVR6 (5 days 13 hours on one V100 there) and
          was not run here; small, 64x64 pixels and 32 channels, takes about 3 seconds a step on 2
          CPU cores (16 hours), and was not trained to its end.
Expect:   no number: the images are not CLEVR's. The paper has FG-ARI 98.8 +- 0.3 % on CLEVR6.
Source:   network and training: Locatello et al. 2020 (arXiv:2006.15055), sec. 4.1 and
          supplement. Images: `attn_jax.data.clevr_lite`.

Scenes have 3 to 6 objects, and are seen through the paper's crop, so that some are cut off.
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
        "num_slots": 4 if debug else 7,  # three or six objects and the background
        "iterations": 3,
        **_sizes.NETWORKS[variant],
    }
    c.task = {
        "cls": "attn_jax.tasks.reconstruct:Reconstruct",
        "data": "clevr_lite",
        "image_size": _sizes.PIXELS[variant],
        "num_objects": 3 if debug else 6,
        "fewest_objects": 1 if debug else 3,
        "train_images": 256 if debug else 70_000,
        "validation_images": 35 if debug else 320,
        "test_images": 35 if debug else 320,
    }
    _sizes.set_training(c, _sizes.TRAININGS[variant])
    return c
