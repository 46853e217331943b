"""BERT fine-tuned to find named entities, from a checkpoint.

Command:  python train.py --config=configs/bert/ner.py --workdir=runs/ner \
              --config.task.data=CONLL --config.init_from='[["cased_L-12_H-768_A-12","",""]]'
          CONLL is a folder of train.txt, valid.txt and test.txt in CoNLL's format, with 9 tags;
          others by --config.task.num_tags=N --config.model.head.num_tags=N. A size may follow:
          "ner,4x256".
Hardware: 1 GPU of 16 GB.
Expect:   an entity F1 of 96.4 on the development set of CoNLL-2003, as Devlin et al. report for
          BERT-base with the document as context (table 7); sentences alone give less. Not run here
          for want of data and weights.
Source:   Devlin et al. 2019, sec. 5.3; rate and epochs from its appendix A.3.

"debug" finds persons and places in invented sentences.
"""

from ml_collections import ConfigDict

from configs import common
from configs.bert import _sizes

VARIANTS = ("ner", "debug")


def get_config(variant: str = "ner") -> ConfigDict:
    debug = variant == "debug"
    _, _, size = variant.partition(",")
    tags = 4 if debug else 9
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.bert:Bert",
        **_sizes.choose(size or "base", debug, debug_pieces=120, vocab_size=28_996),
        "heads": [],
        "head": {"cls": "attn_jax.models.bert:TagHead", "num_tags": tags},
        "dialect": "google",
    }
    c.task = {
        "cls": "attn_jax.tasks.tag:Tag",
        "data": "generated" if debug else "DATA",
        "num_tags": tags,
        "lower_case": debug,
        "vocab_size": c.model["vocab_size"],
        "sequence_length": 32 if debug else 128,
    }
    _sizes.set_fine_tuning(c, debug, learning_rate=5e-5, epochs=3, batch_size=32)
    every = "4 steps" if debug else "1 epochs"
    c.evals = {"validation": {"split": "validation", "every": every}}
    return c
