"""Models and golden files that the tests of Slot Attention share."""

import functools
import pathlib

import jax
import numpy as np
from variables import perturb

from attn_jax.convert.slot_attention import from_keras
from attn_jax.models.slot_attention import SlotAttentionAutoEncoder

GOLDEN = pathlib.Path(__file__).parent / "golden" / "slot_attention"


KEY = jax.random.key(0)


TETROMINOES = dict(  # the paper's, and configs/slot_attention/tetrominoes.py
    num_slots=4,
    encoder_channels=(32,) * 4,
    decoder_initial_size=(35, 35),
    decoder_channels=(32,) * 3,
    decoder_kernels=(5, 5, 5, 3),
    decoder_strides=(1, 1, 1, 1),
)


def load(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def weights_of(golden):
    return {k.removeprefix("w/"): v for k, v in golden.items() if k.startswith("w/")}


def converted(kind, golden, **changes):
    """(module, variables) of a golden file."""
    config = {"num_slots": int(golden["num_slots"])}
    for name in ("num_iterations", "epsilon"):
        if name in golden:
            config[name] = golden[name].item()
    for name in ("decoder_initial_size", "decoder_strides"):
        if name in golden:
            config[name] = golden[name].tolist()
    return from_keras(kind, config | changes, weights_of(golden))


def initial_slots(golden):
    weights, noise = weights_of(golden), golden["noise"]
    sigma = np.exp(weights["slot_attention/slots_log_sigma"])
    return weights["slot_attention/slots_mu"] + sigma * noise


def image(golden):
    if "image" in golden:
        return golden["image"]
    return (golden["image_u8"].astype(np.float32) / 255 - np.float32(0.5)) * 2


def run(module, variables, *inputs, **options):
    """One compiled call: op by op, it would take many times as long."""
    arrays = {
        name: options.pop(name)
        for name in ("initial_slots", "inputs_mask", "sample_keys")
        if name in options
    }
    return jax.jit(functools.partial(module.apply, **options))(
        variables, *inputs, **arrays
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def tiny(**changes):
    fields = dict(
        num_slots=3,
        iterations=2,
        width=8,
        mlp_width=12,
        encoder_channels=(6, 4),
        encoder_kernels=(3, 3),
        encoder_strides=(1, 2),
        decoder_initial_size=(4, 3),
        decoder_channels=(5, 4),
        decoder_kernels=(5, 3, 3),
        decoder_strides=(2, 1, 1),
    )
    return SlotAttentionAutoEncoder(**{**fields, **changes})


IMAGES = jax.random.uniform(KEY, (5, 8, 6, 3), minval=-1)


KEYS = jax.random.split(jax.random.key(1), len(IMAGES))


@functools.cache
def tiny_variables():
    """Every parameter away from its start: zeros would hide a missing one."""
    init = jax.jit(tiny().init)(KEY, IMAGES[:1], sample_keys=KEYS[:1])
    return perturb(init, scale=0.1)
