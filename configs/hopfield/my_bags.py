"""Your own bags of feature vectors, of two classes: Hopfield pooling.

Command:  python train.py --config=configs/hopfield/my_bags.py --workdir=runs/my_bags \
              --config.task.data=bags.csv
          bags.csv has a row for each instance, with the columns `bag` and `label`, and a column for each
          feature; or an .npz with `x` [N, F], `bag` [N], `y`. A cross-validation is a run for
          each --config.task.fold=0, 1, ... below --config.task.folds=10.
          python -m attn_jax predict --workdir=runs/my_bags new.csv
Hardware: 2 CPU cores.
Expect:   AUC of ten-fold cross-validation, 5 times (benchmarks/mil.py, whose rate decays by 5 % an
          epoch): Tiger 0.908, Elephant 0.926, Fox 0.639, Musk1 0.952; pooled by the mean 0.816,
          0.904, 0.607, 0.942.
Source:   the form of the model is that of Ramsauer et al. 2021, sec. 4 and A.5.2; widths, rates and
          durations are ours. The variant "mean" pools by the mean, "gated" by the gated attention of
          Ilse et al. 2018.

"debug" trains on generated bags.
"""

from ml_collections import ConfigDict

from configs import common
from configs.hopfield import _sizes

POOLINGS = {"mean": "MeanPooling", "gated": "GatedAttentionPooling"}
VARIANTS = ("base", "debug", *POOLINGS)


def get_config(variant: str = "base") -> ConfigDict:
    debug, hopfield = variant == "debug", variant in ("base", "debug")
    c = common.get_config()
    c.model = {
        "cls": "attn_jax.models.bags:BagClassifier",
        "encoder": {
            "cls": "attn_jax.models.bags:FeatureEncoder",
            "widths": [16] if debug else [128],
        },
        "pooling": {
            "cls": "attn_jax.models.hopfield:HopfieldPooling",
            "hopfield": {
                "cls": "attn_jax.models.hopfield:Hopfield",
                "num_heads": 2 if debug else 8,
                "head_dim": 8 if debug else 32,
                "dropout": 0.0 if debug else 0.1,
            },
        }
        if hopfield
        else {"cls": f"attn_jax.models.bags:{POOLINGS[variant]}"},
        "dropout": 0.0 if debug else 0.3,
    }
    c.task = {
        "cls": "attn_jax.tasks.bags:FeatureBags",
        "data": "generated" if debug else "DATA",
    }
    c.batch_size = 16
    c.duration = "8 steps" if debug else "40 epochs"
    c.optimizer = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05}
    c.schedule = {"name": "cosine", "warmup": "2 steps" if debug else "2 epochs"}
    c.clip_norm = 1.0
    c.sharding_rules = _sizes.POOLING if hopfield else []
    every = "4 steps" if debug else "5 epochs"
    c.evals = {
        "validation": {"split": "validation", "every": every, "batch_size": 100},
        "test": {"split": "test", "batch_size": 100},
    }
    c.keep_best = "max:validation/auc"
    c.checkpoint_every = every
    c.log_every = "1 steps" if debug else "10 steps"
    return c
