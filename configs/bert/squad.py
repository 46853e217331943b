"""BERT fine-tuned to answer questions about a passage, from a checkpoint.

Command:  python train.py --config=configs/bert/squad.py:v1 --workdir=runs/squad \
              --config.task.data=SQUAD --config.init_from='[["uncased_L-12_H-768_A-12","",""]]'
          SQUAD is the folder of train-v1.1.json and dev-v1.1.json; variant v2 takes those of
          SQuAD 2.0, with questions that have no answer. A size may follow: "v1,4x256".
Hardware: 1 GPU of 16 GB.
Expect:   on the development set as Devlin et al. report for BERT-base: 80.8 EM and 88.5 F1 (table
          2); not run here for want of the weights.
Source:   Devlin et al. 2019, sec. 4.2 (3 epochs, batch 32, rate 5e-5) and 4.3 (2 epochs, batch 48);
          lengths and warm-up of google-research/bert run_squad.py.

"debug" answers questions about invented facts.
"""

from ml_collections import ConfigDict

from configs import common
from configs.bert import _sizes

VARIANTS = ("v1", "v2", "debug")


def get_config(variant: str = "v1") -> ConfigDict:
    debug = variant == "debug"
    name, _, size = variant.partition(",")
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.bert:Bert",
        **_sizes.choose(size or "base", debug, debug_pieces=120),
        "heads": [],
        "head": {"cls": "attn_jax.models.bert:SpanHead"},
        "dialect": "google",
    }
    c.task = {
        "cls": "attn_jax.tasks.span:Span",
        "data": "generated" if debug else "DATA",
        "version": "2.0" if name == "v2" else "1.1",
        "vocab_size": c.model["vocab_size"],
        "sequence_length": 64 if debug else 384,
    }
    _sizes.set_fine_tuning(
        c,
        debug,
        learning_rate=5e-5,
        epochs=2 if name == "v2" else 3,
        batch_size=48 if name == "v2" else 32,
    )
    every = "4 steps" if debug else "1 epochs"
    c.evals = {"validation": {"split": "validation", "every": every}}
    return c
