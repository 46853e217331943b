"""BERT pre-trained on your own text, from scratch or from a checkpoint.

Command:  from scratch, with a vocabulary of its own:
          python train.py --config=configs/bert/pretrain_text.py:own,4x256 --workdir=runs/texts \
              --config.task.data=texts/
          from a checkpoint, with its vocabulary:
          python train.py --config=configs/bert/pretrain_text.py:base --workdir=runs/texts \
              --config.task.data=texts/ --config.init_from='[["bert-base-uncased","",""]]'
          The data is a folder of *.txt, a file with a sentence a line and a blank line between
          documents, or a folder of prepare-text. "own,4x256" is a model of 4 blocks, 256 wide,
          with 8,000 word pieces; for another number of pieces set config.task.vocab_size and
          config.model.vocab_size; base, large, ... have those of the released checkpoints.
Hardware: own,4x256: 2 CPU cores; base: 1 GPU of 16 GB.
Expect:   see docs/results.md for 26 novels. A checkpoint starts at its own loss.
Source:   objective, optimizer and schedule of google-research/bert; the durations are ours.

"debug" trains on the documentation inside Python.
"""

from ml_collections import ConfigDict

from configs import common
from configs.bert import _sizes

VARIANTS = ("tiny", "mini", "small", "medium", "base", "large", "own", "debug")


def get_config(variant: str = "own,4x256") -> ConfigDict:
    debug, own = variant == "debug", variant.startswith("own")
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.bert:Bert",
        **_sizes.choose(
            (variant.removeprefix("own").strip(",") or "4x256") if own else variant,
            debug,
            vocab_size=8_000 if own else 30_522,
        ),
        "heads": ["mlm", "nsp"],
        "dialect": "google",
    }
    c.task = {
        "cls": "attn_jax.tasks.masked_lm:MaskedLM",
        "data": "stdlib" if debug else "DATA",
        "vocab_size": c.model["vocab_size"],
        "sequence_length": 32 if debug else 128,
    }
    c.batch_size = 16 if debug else 32
    c.duration = "8 steps" if debug else "10 epochs" if own else "3 epochs"
    c.optimizer = {
        "name": "bert_adamw",
        "learning_rate": 1e-3 if debug else 5e-4 if own else 5e-5,
        "weight_decay": 0.01,
    }
    c.weight_decay_on = _sizes.WEIGHT_DECAY_ON
    warmup = "2 steps" if debug else "1 epochs" if own else "0.1 epochs"
    c.schedule = {"name": "bert_linear", "warmup": warmup}
    c.clip_norm = 1.0
    c.sharding_rules = _sizes.SHARDING
    every = "4 steps" if debug else "1 epochs"
    c.evals = {"validation": {"split": "validation", "every": every}}
    c.keep_best = "min:validation/mlm_loss"
    c.checkpoint_every = every
    c.log_every = "1 steps" if debug else "50 steps"
    return c
