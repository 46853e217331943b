"""BERT pre-trained as in the paper, in two phases of 128 and 512 tokens.

Command:  python -m attn_jax prepare-text --input=CORPUS --out=text --vocabulary=vocab.txt
          python train.py --config=configs/bert/pretrain.py:base,128 --workdir=runs/phase1 \
              --config.task.data=text
          python train.py --config=configs/bert/pretrain.py:base,512 --workdir=runs/phase2 \
              --config.task.data=text --config.init_from='[["runs/phase1","",""]]'
          Variants: base or large, then 128 or 512, then "lamb" for large batches, which needs
          --config.micro_batches where a batch does not fit.
Hardware: base 4 TPUs of 4 chips, large 16 of them, 4 days each (the paper's); with LAMB 3 days
          on 16 TPU v3 chips, 76 minutes on 1,024. Not run by us.
Expect:   large, after both phases: a training loss of 1.24 (NVIDIA's log) and, fine-tuned on
          SQuAD v1.1, an F1 of 90.9 (the paper's, dev) or 90.6 (LAMB's).
Source:   Devlin et al. 2019, appendix A.2 (256 rows, 1M steps, 90 % of them with 128 tokens) and
          google-research/bert; LAMB: You et al. 2020 (arXiv:1904.00962), with the rates of
          NVIDIA's DeepLearningExamples, pretrain_config.sh.

"debug" trains on the documentation inside Python.
"""

from ml_collections import ConfigDict

from configs import common
from configs.bert import _sizes

VARIANTS = ("base", "large", "debug")

# (phase, optimizer): steps, batch size, learning rate, warm-up steps.
PHASES = {
    ("128", "adamw"): (900_000, 256, 1e-4, 10_000),
    ("512", "adamw"): (100_000, 256, 1e-4, 10_000),
    ("128", "lamb"): (7_038, 65_536, 6e-3, 2_001),
    ("512", "lamb"): (1_563, 32_768, 4e-3, 201),
}
PREDICTIONS = {"128": 20, "512": 76}  # masked tokens per row, as in the original


def get_config(variant: str = "base") -> ConfigDict:
    name, *options = variant.split(",")
    debug = name == "debug"
    optimizer = "lamb" if "lamb" in options else "adamw"
    phase = "512" if "512" in options else "128"
    if set(options) - {"lamb", phase}:
        raise ValueError(
            f"variant {variant!r}: after the size come 128 or 512, and lamb, such as "
            "'large,512,lamb'."
        )
    steps, batch_size, rate, warmup = PHASES[phase, optimizer]
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.bert:Bert",
        **_sizes.choose(name, debug),
        "heads": ["mlm", "nsp"],
        "dialect": "google",
    }
    c.task = {
        "cls": "attn_jax.tasks.masked_lm:MaskedLM",
        "data": "stdlib" if debug else "DATA",
        "vocab_size": c.model["vocab_size"],
        "sequence_length": 32 if debug else int(phase),
        "max_predictions": 5 if debug else PREDICTIONS[phase],
    }
    c.batch_size = 16 if debug else batch_size
    c.duration = "8 steps" if debug else f"{steps} steps"
    c.optimizer = {
        "name": "lamb" if optimizer == "lamb" else "bert_adamw",
        "learning_rate": rate,
        "weight_decay": 0.01,
    }
    c.weight_decay_on = _sizes.WEIGHT_DECAY_ON
    c.schedule = {
        "name": "bert_linear",
        "warmup": "2 steps" if debug else f"{warmup} steps",
        "power": 0.5 if optimizer == "lamb" else 1.0,
    }
    c.clip_norm = 1.0
    c.sharding_rules = _sizes.SHARDING
    every = "4 steps" if debug else f"{max(steps // 100, 100)} steps"
    c.evals = {"validation": {"split": "validation", "every": every}}
    c.checkpoint_every = every
    c.log_every = "1 steps" if debug else "50 steps"
    return c
