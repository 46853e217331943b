"""A ViT from a checkpoint, fine-tuned on your own labeled images.

Command:  python train.py --config=configs/vit/my_images.py --workdir=runs/mine
              --config.task.data=photos --config.init_from=B_16.npz
Data:     a folder or zip of CLASS/IMAGE or SPLIT/CLASS/IMAGE; a table with the columns file and
          label; an .npz, idx files or tfds:NAME.
Hardware: any; ViT-B/16 at 224 pixels needs 6 GB with batches of 32.
Expect:   that of your images; the log says what was derived from them and the checkpoint.
Source:   ours; rates as in Touvron et al. 2021 and Bao et al. 2022, for small data.

The checkpoint is any that `load_pretrained` reads: files of vision_transformer and big_vision,
folders of transformers and timm, or a run. Its architecture, image size and pixel statistics are
taken over; its head too if it names the same classes. The classes are those of the data. Without
a validation split a tenth of the images is set aside. "frozen" trains the head alone, in little
time and memory. "several" is for images with any number of labels each: the column label of the
table holds them all, as in cat|dog (--config.task.separator).
"""

from ml_collections import ConfigDict

from configs import common
from configs.vit import _sizes

VARIANTS = ("base", "frozen", "several", "debug")
FROM_CHECKPOINT = (
    "patch_size width depth mlp_width num_heads pool class_token registers position dialect "
    "gelu norm_epsilon position_on norm_after_pool pre_norm layer_scale qkv_bias qk_norm "
    "stem pooling attention"
)


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    c = common.get_config()
    c.model = {"cls": "attn_jax.models.vit:ViT", "num_classes": "auto"}
    c.task = {
        "cls": "attn_jax.tasks.classify:Classify",
        "num_classes": "auto",
        "holdout": "auto",
        "crop": "inception",
        "crop_area": [0.3, 1.0],
        "flip": True,
        "label_smoothing": 0.1,
    }
    if debug:  # the embedded digits, from scratch
        c.model.update(patch_size=4, width=16, depth=2, mlp_width=32, num_heads=2)
        c.model.update(pool="gap", position="sincos2d")
        c.task.update(data="digits", image_size=16, channels=1)
    else:
        c.model.update({field: "auto" for field in FROM_CHECKPOINT.split()})
        c.model.stochastic_depth = 0.1
        c.task.data = "DATA"  # --config.task.data=PATH
        c.task.update(image_size="auto", channels="auto", resize="auto")
        c.task.update(mean="auto", std="auto")
    c.init_from = []  # --config.init_from=CHECKPOINT
    c.sharding_rules = _sizes.SHARDING
    c.batch_size = 16 if debug else 32
    c.duration = "4 steps" if debug else "20 epochs"
    # For ViT-B; a small model needs more (docs/results.md).
    c.optimizer = {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 0.05}
    # The head starts anew; layers nearer to the pixels change less.
    c.learning_rate_multipliers = [["head/.*", 10.0], [_sizes.LAYERS, 0.75]]
    c.schedule = {"name": "cosine", "warmup": "1 steps" if debug else "1 epochs"}
    c.clip_norm = 1.0
    if variant == "several":
        c.task.cls = "attn_jax.tasks.classify_sets:ClassifySets"
        c.task.separator = "|"
    if variant == "frozen":
        c.freeze = ["(?!head/).*"]
    every = "2 steps" if debug else "1 epochs"
    c.evals = {"validation": {"split": "validation", "every": every}}
    c.keep_best = "max:validation/accuracy"
    c.checkpoint_every = every
    return c
