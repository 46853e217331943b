"""Bit patterns: does a bag of sixteen instances of eight bits hold one of eight signals?

Command:  python train.py --config=configs/hopfield/bit_patterns.py --workdir=runs/bits
Hardware: 2 CPU cores, 1 to 3 minutes.
Expect:   test accuracy after the last epoch (seed 0; in brackets the original): base 84.8 % (84.6), pooling
          82.2 % (83.6), lookup 98.2 % (84.8). The "default" networks have not been run to the end.
Source:   ml-jku/hopfield-layers f56f929, examples/bit_pattern: the same bags, bit for bit, the same
          split, networks and optimizer settings (PyTorch decays all parameters). Its networks are drawn
          from other random numbers.

Variants: what follows the instances, then one linear layer. "default" is the setting in which the
original shows that a network fails, the others are adapted to the task.

    base, base_default        Hopfield over the instances, all outputs side by side
    pooling, pooling_default  HopfieldPooling
    lookup, lookup_default    HopfieldLayer over each instance, all outputs side by side. Adapted, it stores
                              the distinct training instances, which are all patterns but zeros, and
                              the values beside them stay random.
"""

import itertools

from ml_collections import ConfigDict

from configs import common
from configs.hopfield import _sizes

VARIANTS = _sizes.EXAMPLES


def get_config(variant: str = "base") -> ConfigDict:
    debug = variant == "debug"
    kind, _, default = ("base" if debug else variant).partition("_")
    c = common.get_config()
    bits = 4 if debug else 8
    patterns = [list(row) for row in itertools.product((0.0, 1.0), repeat=bits)][1:]
    # The small network is the plain one, quicker to compile.
    adapted = not (default or debug)
    c.model = _sizes.make_classifier(kind, adapted=adapted, patterns=patterns)
    c.task = {"cls": "attn_jax.tasks.bags:BitPatterns"}
    if debug:
        c.task.update(bags=96, instances=5, bits=bits, signals=3, held_out=16)
    every = "4 steps" if debug else "10 epochs"
    _sizes.set_training(c, "8 steps" if debug else "250 epochs", every)
    return c
