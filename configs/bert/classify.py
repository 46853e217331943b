"""BERT fine-tuned to classify your own texts, from a checkpoint.

Command:  python train.py --config=configs/bert/classify.py:base --workdir=runs/reviews \
              --config.task.data=reviews.csv --config.task.holdout=200 \
              --config.init_from='[["uncased_L-12_H-768_A-12","",""]]'
          The variant is the checkpoint's size: tiny to large, or "own,4x256" for 4 blocks that
          are 256 wide (configs/bert/_sizes.py). For more than
          two classes also --config.task.num_classes=N and --config.model.head.num_classes=N; N=1
          learns a number. Columns: task.text_column, task.pair_column, task.label_column.
          Of a pre-trained checkpoint the heads of pre-training are left out. Of a fine-tuned one
          the head is kept and its classes are matched by name; to train a new head instead, put
          "head/.*" last: '[["runs/reviews","","head/.*"]]'.
Hardware: 1 GPU of 16 GB; 2 CPU cores for small models.
Expect:   depends on the data.
Source:   Devlin et al. 2019, appendix A.3.

"debug" tells sentences of the language reference inside Python from those of its library.
"""

from ml_collections import ConfigDict

from configs import common
from configs.bert import _sizes

VARIANTS = ("tiny", "mini", "small", "medium", "base", "large", "own", "debug")


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    size = variant.rpartition(",")[2]  # also of "classify,4x256", as in other recipes
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.bert:Bert",
        **_sizes.choose("base" if size == "own" else size, debug),
        "heads": [],
        "head": {"cls": "attn_jax.models.bert:ClassHead", "num_classes": 2},
        "dialect": "google",
    }
    c.task = {
        "cls": "attn_jax.tasks.text_classify:TextClassify",
        "data": "stdlib" if debug else "DATA",
        "num_classes": 2,
        "vocab_size": c.model["vocab_size"],
        "sequence_length": 32 if debug else 128,
    }
    _sizes.set_fine_tuning(c, debug, learning_rate=3e-5, epochs=3, batch_size=32)
    every = "4 steps" if debug else "1 epochs"
    c.evals = {"validation": {"split": "validation", "every": every}}
    c.keep_best = "min:validation/loss"
    return c
