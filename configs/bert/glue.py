"""BERT fine-tuned on a task of GLUE, from a checkpoint.

Command:  python train.py --config=configs/bert/glue.py:sst2 --workdir=runs/sst2 \
              --config.task.data=SST-2 --config.init_from='[["uncased_L-12_H-768_A-12","",""]]'
          Variants: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli, of BERT-base; with a size
          of configs/bert/_sizes.py behind it for another checkpoint: "sst2,4x256". Model fields
          that are not of the size (--config.model.max_positions=...) must be the checkpoint's.
Hardware: 1 GPU of 16 GB; 2 CPU cores for small models.
Expect:   on the development set as Devlin et al. report for BERT-base: SST-2 92.7 % (table 5).
          Not run here for want of the weights.
Source:   Devlin et al. 2019, sec. 4.1 (batch 32, 3 epochs, rates 2e-5 to 5e-5); warm-up of a tenth
          as in google-research/bert run_classifier.py.

--config.task.data is the task's official folder (train.tsv, dev.tsv). "debug" needs no file.
"""

from ml_collections import ConfigDict

from configs import common
from configs.bert import _sizes

# name: outputs of the head
TASKS = {
    **{name: 2 for name in ("cola", "sst2", "mrpc", "qqp", "qnli", "rte", "wnli")},
    "stsb": 1,
    "mnli": 3,
}
VARIANTS = (*TASKS, "debug")


def get_config(variant: str = "sst2") -> ConfigDict:
    debug = variant == "debug"
    name, _, size = variant.partition(",")
    classes = 2 if debug else TASKS[name]
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.bert:Bert",
        **_sizes.choose(size or "base", debug),
        "heads": [],
        "head": {"cls": "attn_jax.models.bert:ClassHead", "num_classes": classes},
        "dialect": "google",
    }
    c.task = {
        "cls": "attn_jax.tasks.text_classify:TextClassify",
        "data": "stdlib" if debug else "DATA",
        "glue_task": None if debug else name,
        "num_classes": classes,
        "vocab_size": c.model["vocab_size"],
        "sequence_length": 32 if debug else 128,
    }
    _sizes.set_fine_tuning(c, debug, learning_rate=3e-5, epochs=3, batch_size=32)
    validation = {"split": "validation"}
    c.evals = {"validation": validation}
    if name == "mnli":
        c.evals = {
            "matched": validation,
            "mismatched": {"split": "validation_mismatched"},
        }
    for section in c.evals.values():
        section["every"] = "4 steps" if debug else "1 epochs"
    return c
