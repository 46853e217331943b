"""BERT pre-trained from scratch on the English documentation that comes with Python.

Command:  python train.py --config=configs/bert/pretrain_stdlib.py --workdir=runs/bert
Hardware: 2 CPU cores, 19 minutes.
Expect:   on held-out documents an MLM loss of 5.36 nats, 0.59 below the unigram entropy that
          DIR/assets/text.json states (5.95), and next sentences told apart in 73 % of
          2,364 pairs (Python 3.11, seed 0; docs/results.md).
Source:   objective, optimizer and schedule are those of google-research/bert;
          size, rate and length of the run are ours.

The corpus is 1.7 MB; another Python version has another text and vocabulary, so figures
are to be compared within one version. A tenth of the documents is held out.
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
            # Enough rows for the accuracy of next sentences: 2,000 or more.
            "task": {"duplicates": 1 if debug else 4},
        },
    }
    c.keep_best = "min:validation/mlm_loss"
    c.checkpoint_every = "4 steps" if debug else "10 epochs"
    c.log_every = "1 steps" if debug else "20 steps"
    return c
