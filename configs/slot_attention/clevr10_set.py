"""Slot Attention: the properties of all objects of CLEVR's images, as a set.

Command:  python train.py --config=configs/slot_attention/clevr10_set.py --workdir=DIR
          average precision after more iterations than in training:
          python -m attn_jax evaluate --workdir=DIR --set evals.test.task.iterations=7
Data:     CLEVR of TensorFlow Datasets, once it is prepared (that needs the extra `tf`).
Hardware: 2 days 3 hours on one V100 in the paper; not run here.
Expect:   average precision 94.3 +- 1.1, 86.7 +- 1.4, 56.0 +- 3.6, 10.8 +- 1.7 and 0.9 +- 0.2 % within
          any distance, 1, 0.5, 0.25 and 0.125 in the paper (5 seeds); with `task.every_iteration`
          97.1, 92.8, 65.8, 13.6 and 1.1 % (its fig. 23).
Source:   Locatello et al. 2020 (arXiv:2006.15055), sec. 4.2 and supplement, and its released code.

The test split of CLEVR has no objects, so the 15,000 images of its validation split are the test, as
in the paper, and nothing is left to choose a checkpoint by. "debug" trains on generated images.
"""

from ml_collections import ConfigDict

from configs import common
from configs.slot_attention import _sizes

VARIANTS = ("base", "debug")


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    c = common.get_config()
    c.model = _sizes.set_model(variant)
    c.task = {
        "cls": "attn_jax.tasks.set_prediction:SetPrediction",
        "data": "clevr_lite/whole" if debug else "tfds:clevr",
        "image_size": c.model.resolution[0],
        "num_objects": 3 if debug else 10,
        "fewest_objects": 1,
        "target_rows": c.model.num_slots,
        "train_images": 64 if debug else 70_000,
        "validation_images": 35 if debug else 15_000,
    }
    _sizes.set_training(c, _sizes.DEBUG if debug else _sizes.SET_PAPER)
    c.evals = {
        "test": {"split": "validation", "every": c.checkpoint_every, "batch_size": 64}
    }
    return c
