"""BERT fine-tuned on SWAG, which of four endings goes on from a text, from a checkpoint.

Command:  python train.py --config=configs/bert/swag.py --workdir=runs/swag \
              --config.task.data=SWAG --config.init_from='[["uncased_L-12_H-768_A-12","",""]]'
          SWAG is the folder of train.csv and val.csv. A size may follow: "swag,4x256".
Hardware: 1 GPU of 16 GB.
Expect:   81.6 % of the development set, as Devlin et al. report for BERT-base (table 4); not run
          here for want of the weights.
Source:   Devlin et al. 2019, sec. 4.4 (3 epochs, batch 16, rate 2e-5).

"debug" chooses among invented endings.
"""

from ml_collections import ConfigDict

from configs import common
from configs.bert import _sizes

VARIANTS = ("swag", "debug")


def get_config(variant: str = "swag") -> ConfigDict:
    debug = variant == "debug"
    _, _, size = variant.partition(",")
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.bert:Bert",
        **_sizes.choose(size or "base", debug, debug_pieces=120),
        "heads": [],
        "head": {"cls": "attn_jax.models.bert:ChoiceHead"},
        "dialect": "google",
    }
    c.task = {
        "cls": "attn_jax.tasks.choice:Choice",
        "data": "generated" if debug else "DATA",
        "vocab_size": c.model["vocab_size"],
        "sequence_length": 32 if debug else 128,
    }
    _sizes.set_fine_tuning(c, debug, learning_rate=2e-5, epochs=3, batch_size=16)
    every = "4 steps" if debug else "1 epochs"
    c.evals = {"validation": {"split": "validation", "every": every}}
    return c
