"""Latch sequences: the first of 32 characters tells the label, all others tell nothing.

Command:  python train.py --config=configs/hopfield/latch.py --workdir=runs/latch
Hardware: 2 CPU cores, half a minute.
Expect:   100 % test accuracy from the first epoch on, for all six networks (seed 0; three epochs were run);
          the original's have it after one or two.
Source:   ml-jku/hopfield-layers f56f929, examples/latch_sequence: the same sequences, split and networks.
          The task is that of Hochreiter & Mozer 2001.

Variants: those of configs/hopfield/bit_patterns.py; the lookup stores the 20 characters.
"""

from ml_collections import ConfigDict

from configs import common
from configs.hopfield import _sizes

VARIANTS = _sizes.EXAMPLES


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    # The small one is the lookup, so that a test trains it.
    kind, _, default = ("lookup" if debug else variant).partition("_")
    c = common.get_config()
    characters = 6 if debug else 20
    patterns = [[float(i == j) for j in range(characters)] for i in range(characters)]
    c.model = _sizes.make_classifier(kind, adapted=not default, patterns=patterns)
    c.task = {"cls": "attn_jax.tasks.bags:LatchSequences"}
    if debug:
        c.task.update(sequences=96, length=5, characters=characters, held_out=16)
    every = "4 steps" if debug else "1 epochs"
    _sizes.set_training(c, "8 steps" if debug else "20 epochs", every)
    return c
