"""Immune repertoires: does one sequence in a hundred have the motif of a disease?

Command:  python train.py --config=configs/hopfield/repertoires.py --workdir=runs/repertoires
          python train.py --config=configs/hopfield/repertoires.py --workdir=runs/own \
              --config.task.data=cohort/labels.tsv --config.task.draw=10000
          labels.tsv has a row for each repertoire: `file` (beside it) and `label`. Such a file has the columns
          `amino_acid` and `templates`. A cross-validation is a run for each --config.task.fold=0, 1, ...
          below --config.task.folds=5.
          python -m attn_jax predict --workdir=runs/own new.tsv
Hardware: 2 CPU cores; not run to the end.
Expect:   of a smaller network (benchmarks/repertoires.py, 60 training repertoires) test AUC 0.98 after 800 steps,
          0.54 after 200.
Source:   Widrich et al. 2020 (DeepRC), ml-jku/DeepRC 108d08d: its network; rate and duration are
          ours, and all sequences take part in the pooling, not a tenth of them.

The generated repertoires have 2,000 sequences each; of the paper's simulated sets each has 300,000. Of a
training repertoire 500 random ones are drawn in every epoch.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = ("base", "debug")


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.hopfield:RepertoireClassifier",
        "width": 8 if debug else 32,
        "kernel_size": 5 if debug else 9,
        "attention_widths": [8] if debug else [32, 32],
        "chunk": 8 if debug else 100,
    }
    c.task = {
        "cls": "attn_jax.tasks.bags:Repertoires",
        "draw": 16 if debug else 500,
    }
    if debug:
        c.task.update(repertoires=40, sequences=20, rate=0.2, max_length=16)
    c.batch_size = 8 if debug else 4
    c.duration = "8 steps" if debug else "60 epochs"
    c.optimizer = {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.01}
    c.schedule = {"name": "cosine", "warmup": "2 steps" if debug else "2 epochs"}
    c.clip_norm = 1.0
    every = "4 steps" if debug else "5 epochs"
    c.evals = {
        "validation": {"split": "validation", "every": every, "batch_size": 8},
        "test": {"split": "test", "batch_size": 8},
    }
    c.keep_best = "max:validation/auc"
    c.checkpoint_every = every
    c.log_every = "1 steps" if debug else "10 steps"
    return c
