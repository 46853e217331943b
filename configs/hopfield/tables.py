"""Rows of a table by lookup among the training rows: UCI tables, fingerprints of molecules, your own.

Command:  python train.py --config=configs/hopfield/tables.py --workdir=runs/table \
              --config.task.data=rows.csv --config.task.label_column=label
          rows.csv has a name for each column in its first line, and a number in every cell but the labels.
          Without data it is scikit-learn's wine; iris, breast_cancer and digits are the other
          embedded tables. A cross-validation is a run for each --config.task.fold=0, 1, ... below
          --config.task.folds=5.
          python -m attn_jax predict --workdir=runs/table new.csv
Hardware: 2 CPU cores, half a minute.
Expect:   accuracy of five-fold cross-validation after the last epoch (benchmarks/tables.py): wine 98.3 %, iris
          91.3 %, breast_cancer 97.0 %, sonar 89.4 %; an SVM has 98.3, 95.3, 97.7, 84.6.
Source:   after Ramsauer et al. 2021, sec. 4: SELU layers before the lookup as in their UCI networks, the
          training set as the stored patterns as in their drug design; widths, rates and durations
          are ours.

The stored rows pass through the same encoder; beta is learned.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = ("base", "debug")


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.tables:RowLookup",
        "encoder": {
            "cls": "attn_jax.models.bags:FeatureEncoder",
            "widths": [8] if debug else [128],
            "activation": "selu",
        },
        "hopfield": {
            "cls": "attn_jax.models.hopfield:Hopfield",
            "static_stored": True,
            "static_state": True,
            "static_projection": True,
            "norm_projection": "off",
            "out_projection": False,
            "trainable_beta": True,
            "dropout": 0.0 if debug else 0.2,
        },
    }
    c.task = {
        "cls": "attn_jax.tasks.tables:ClassifyRows",
        "data": "iris" if debug else "wine",
    }
    c.batch_size = 16 if debug else 32
    c.duration = "8 steps" if debug else "100 epochs"
    c.optimizer = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}
    c.schedule = {"name": "cosine", "warmup": "2 steps" if debug else "5 epochs"}
    c.clip_norm = 1.0
    every = "4 steps" if debug else "10 epochs"
    c.evals = {
        "validation": {"split": "validation", "every": every, "batch_size": 128},
        "test": {"split": "test", "batch_size": 128},
    }
    c.keep_best = "min:validation/loss"
    c.checkpoint_every = every
    c.log_every = "1 steps" if debug else "10 steps"
    return c
