"""BERT pre-trained from scratch on the English documentation that comes with Python.

Command:  python train.py --config=configs/bert/pretrain_stdlib.py --workdir=runs/bert
Hardware: 2 CPU cores, 19 minutes.
Expect:   on held-out documents an MLM loss of 5.36 nats, 0.59 below the unigram entropy in
          DIR/assets/text.json (5.95), and a next-sentence accuracy of 73 % on 2,364 pairs
          (Python 3.11, seed 0; docs/results.md).
Source:   objective, optimizer and schedule are those of google-research/bert; model size,
          learning rate and duration are ours.

The corpus has 1.7 MB. It depends on the Python version, and so does the vocabulary: compare
results within one version only. A tenth of the documents is held out.
"""

from ml_collections import ConfigDict

from configs import common
from configs.bert import _sizes

VARIANTS = ("base", "debug")


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    vocab_size, sequence_length = (600, 32) if debug else (4000, 64)
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.bert:Bert",
        "vocab_size": vocab_size,
        "width": 16 if debug else 128,
        "depth": 2 if debug else 4,
        "mlp_width": 32 if debug else 512,
        "num_heads": 2,
        "max_positions": sequence_length,
        "heads": ["mlm", "nsp"],
        "dialect": "google",
        "dropout": 0.1,
        "attention_dropout": 0.0,
    }
    c.task = {
        "cls": "attn_jax.tasks.masked_lm:MaskedLM",
        "data": "stdlib",
        "vocab_size": vocab_size,
        "sequence_length": sequence_length,
    }
    c.batch_size = 16 if debug else 64
    c.duration = "8 steps" if debug else "30 epochs"
    c.optimizer = {"name": "bert_adamw", "learning_rate": 1e-3, "weight_decay": 0.01}
    c.weight_decay_on = _sizes.WEIGHT_DECAY_ON
    c.schedule = {"name": "bert_linear", "warmup": "2 steps" if debug else "3 epochs"}
    c.clip_norm = 1.0
    c.sharding_rules = _sizes.SHARDING
    c.evals = {
        "validation": {
            "split": "validation",
            "every": "4 steps" if debug else "3 epochs",
            "batch_size": 128,
            # The next-sentence accuracy needs 2,000 rows or more.
            "task": {"duplicates": 1 if debug else 4},
        },
    }
    c.keep_best = "min:validation/mlm_loss"
    c.checkpoint_every = "4 steps" if debug else "10 epochs"
    c.log_every = "1 steps" if debug else "20 steps"
    return c
