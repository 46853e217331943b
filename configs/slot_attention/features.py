"""Slot Attention over the features of a frozen ViT: unsupervised object discovery (DINOSAUR).

Command:  python train.py --config=configs/slot_attention/features.py --workdir=DIR \
              --config.init_from='[["CHECKPOINT", "backbone", "auto"]]'
Data:     generated solids (`attn_jax.data.clevr_lite`); --config.task.data names others.
Hardware: base needs an accelerator and was not run here; small is for CPUs and was not trained to
          its end.
Expect:   no number: the paper has none on such images.
Source:   Seitzer et al. 2023 (arXiv:2209.14860), sec. 3 and supplement: 11 slots of width 128, as
          for its MOVi-C; the images are ours.

CHECKPOINT is a ViT that `attn_jax.convert.load_pretrained` reads, of the size of `model.backbone`;
"auto" leaves out its head, and the mask token of a run of configs/vit/masked_patches.py.
Without `init_from`, the features are those of a random network. "transformer" has the
other decoder.
"""

from ml_collections import ConfigDict

from configs import common
from configs.slot_attention import _sizes

VARIANTS = ("base", "small", "debug", "transformer")
MODELS = "attn_jax.models.slot_attention:"
TRAININGS = {"small": _sizes.SMALL, "debug": _sizes.DEBUG}

# of the backbone
NETWORKS = {
    "base": {"width": 384, "depth": 12, "mlp_width": 1536, "num_heads": 6},  # S/16
    "small": {"width": 128, "depth": 4, "mlp_width": 512, "num_heads": 4},
    "debug": {"width": 8, "depth": 1, "mlp_width": 8, "num_heads": 2},
}


def get_config(variant: str = "base") -> ConfigDict:
    size = "base" if variant == "transformer" else variant
    debug = size == "debug"
    c = common.get_config()
    c.model = {
        "cls": f"{MODELS}SlotAttentionFeatureAutoEncoder",
        "backbone": {
            "cls": "attn_jax.models.vit:ViT",
            "num_classes": 0,
            "patch_size": 16 if size == "base" else 4,
            **NETWORKS[size],
        },
        "grouping": {
            "cls": f"{MODELS}SlotAttention",
            "num_slots": 4 if debug else 11,
            "width": 8 if debug else 128,
            "mlp_width": 16 if debug else 512,
        },
        "decoder": {"cls": f"{MODELS}FeatureMLPDecoder"},
    }
    if size != "base":
        c.model.decoder.widths = [12] if debug else [256] * 2
    if variant == "transformer":
        c.model.decoder = {
            "cls": f"{MODELS}FeatureTransformerDecoder",
            "mlp_width": 1536,
        }
    c.freeze = ["backbone/.*"]
    c.task = {
        "cls": "attn_jax.tasks.reconstruct:Reconstruct",
        "data": "clevr_lite",
        "target": "features",
        "image_size": {"base": 224, "small": 64, "debug": 16}[size],
        "num_objects": 3 if debug else 10,
        "fewest_objects": 1 if debug else 3,
        "train_images": 64 if debug else 70_000,
        "validation_images": 35 if debug else 320,
        "test_images": 35 if debug else 320,
    }
    _sizes.set_training(c, TRAININGS.get(variant, _sizes.PAPER))
    c.clip_norm = 1.0
    return c
