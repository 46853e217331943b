"""Slot Attention: the properties of all objects of generated images, as a set.

Command:  python train.py --config=configs/slot_attention/clevr_lite_set.py --workdir=DIR
          average precision after more iterations than in training:
          python -m attn_jax evaluate --workdir=DIR --set evals.test.task.iterations=7
Hardware: base is the paper's network for CLEVR10 (2 days 3 hours on one V100 there) and was not
          run here; small, 64x64 pixels and 32 channels, takes about 0.4 seconds a step on 2 CPU
          cores (2 hours), and was not trained to its end.
Expect:   no number: the images are not CLEVR's. The paper has average precision 94.3, 86.7, 56.0,
          10.8 and 0.9 % within any distance, 1, 0.5, 0.25 and 0.125 of CLEVR10; its Slot MLP
          19.8, 1.4, 0.3, 0 and 0 %.
Source:   network and training: Locatello et al. 2020 (arXiv:2006.15055), sec. 4.2 and supplement.
          Images: `attn_jax.data.clevr_lite`, the whole frame.

"every" trains the loss after every iteration, "scaled" doubles the coordinates in the loss, "both"
does both; "mlp" is the paper's baseline without attention. All four are of the size of "small".
"""

from ml_collections import ConfigDict

from configs import common
from configs.slot_attention import _sizes

VARIANTS = ("base", "small", "debug", "every", "scaled", "both", "mlp")


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    size = variant if variant in _sizes.PIXELS else "small"
    c = common.get_config()
    c.model = _sizes.set_model(size)
    c.task = {
        "cls": "attn_jax.tasks.set_prediction:SetPrediction",
        "data": "clevr_lite/whole",
        "image_size": c.model.resolution[0],
        "num_objects": 3 if debug else 10,
        "fewest_objects": 1 if debug else 3,
        "target_rows": c.model.num_slots,
        "every_iteration": variant in ("every", "both"),
        "coordinate_scale": 2.0 if variant in ("scaled", "both") else 1.0,
        "train_images": 64 if debug else 70_000,
        "validation_images": 35 if debug else 500,
        "test_images": 35 if debug else 15_000,
    }
    if variant == "mlp":
        c.model.grouping = {
            "cls": "attn_jax.models.slot_attention:SlotMLP",
            "num_slots": 10,
        }
    trainings = _sizes.TRAININGS | {"base": _sizes.SET_PAPER}
    _sizes.set_training(c, trainings[size])
    return c
