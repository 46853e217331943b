"""Slot Attention: the properties of all objects of generated images, as a set.

Command:  python train.py --config=configs/slot_attention/clevr_lite_set.py --workdir=DIR
          average precision after more iterations than in training:
          python -m attn_jax evaluate --workdir=DIR --set evals.test.task.iterations=7
Hardware: base is the paper's network for CLEVR10 (2 days 3 hours on one V100 there) and was not
          run here; small, 64x64 pixels and 32 channels, was not trained to its end.
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

PAPER = _sizes.Training(
    batch_size=512,
    learning_rate=4e-4,
    duration="150000 steps",
    warmup="1000 steps",
    half_life="50000 steps",
    every="5000 steps",
)


def get_config(variant: str = "base") -> ConfigDict:
    base, debug = variant == "base", variant == "debug"
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.slot_attention:SlotAttentionClassifier",
        "num_slots": 4 if debug else 10,
        "resolution": [16] * 2 if debug else [128 if base else 64] * 2,
    }
    c.task = {
        "cls": "attn_jax.tasks.set_prediction:SetPrediction",
        "data": "clevr_lite/whole",
        "image_size": c.model.resolution[0],
        "num_objects": 3 if debug else 10,
        "target_rows": 4 if debug else 10,
        "every_iteration": variant in ("every", "both"),
        "coordinate_scale": 2.0 if variant in ("scaled", "both") else 1.0,
        "train_images": 64 if debug else 70_000,
        "validation_images": 35 if debug else 500,
        "test_images": 35 if debug else 15_000,
    }
    if not base:
        c.model.encoder_channels = [6 if debug else 32] * 4
        c.model.encoder_kernels = [3 if debug else 5] * 4
        c.model.encoder_strides = [1, 2, 1, 1]
    if debug:
        c.model.update(iterations=2, width=8, mlp_width=12, head_width=8)
        c.task.fewest_objects = 1
    if variant == "mlp":
        c.model.grouping = {
            "cls": "attn_jax.models.slot_attention:SlotMLP",
            "num_slots": 10,
        }
    _sizes.set_training(c, PAPER if base else _sizes.DEBUG if debug else _sizes.SMALL)
    return c
