"""The large models that `accelerator.py` times, and random batches for them."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import report

sys.path.insert(0, str(report.ROOT))

from attn_jax import config as config_lib
from configs.bert import _sizes as bert_sizes
from configs.vit import _sizes as vit_sizes


class Draw(NamedTuple):
    """A random array of a batch: integers in [0, below), normal floats, or all True."""

    shape: tuple[int, ...]  # without the batch dimension
    dtype: str
    below: int = 1


class Case(NamedTuple):
    model: dict[str, Any]
    task: Any
    batch_size: int
    arrays: dict[str, Draw]


class Pooled:
    """A task for pooling bags of features; for timing, any scalar is a loss."""

    coefficients = {"square": 1.0}

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"stored": batch["instances"]}

    def loss(self, outputs: jax.Array, batch: Any) -> dict[str, tuple]:
        square = jnp.square(outputs.astype(jnp.float32)).mean(axis=-1)
        return {"square": ((square * batch["valid"]).sum(), batch["valid"].sum())}


def vit(size: str, batch_size: int, debug: bool) -> Case:
    pixels, classes = (32, 10) if debug else (224, 1000)
    model = {
        "cls": "attn_jax.models.vit:ViT",
        "num_classes": classes,
        "patch_size": 16,
        **vit_sizes.size("mu" if debug else size),
    }
    task = {
        "cls": "attn_jax.tasks.classify:Classify",
        "data": "digits",
        "num_classes": classes,
        "image_size": pixels,
    }
    images = Draw((pixels, pixels, 3), "uint8", 256)
    arrays = {"images": images, "labels": Draw((), "int32", classes)}
    return Case(model, config_lib.build(task), batch_size, arrays)


def bert(size: str, length: int, batch_size: int, debug: bool) -> Case:
    length, vocabulary = (length // 8, 512) if debug else (length, 30_522)
    masked = round(0.15 * length)
    shape = {"width": 16, "depth": 1, "mlp_width": 32, "num_heads": 2}
    model = {
        "cls": "attn_jax.models.bert:Bert",
        "vocab_size": vocabulary,
        **(shape if debug else bert_sizes.size(size)),
        "max_positions": length,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    }
    task = {
        "cls": "attn_jax.tasks.masked_lm:MaskedLM",
        "data": "stdlib",
        "vocab_size": vocabulary,
        "sequence_length": length,
        "max_predictions": masked,
    }
    arrays = {
        "token_ids": Draw((length,), "int32", vocabulary),
        "segment_ids": Draw((length,), "int32", 2),
        "mask": Draw((length,), "bool"),
        "mlm_positions": Draw((masked,), "int32", length),
        "mlm_labels": Draw((masked,), "int32", vocabulary),
        "mlm_valid": Draw((masked,), "bool"),
        "is_random_next": Draw((), "int32", 2),
    }
    return Case(model, config_lib.build(task), batch_size, arrays)


def slot_attention(batch_size: int, debug: bool) -> Case:
    """CLEVR6 of the paper: 128 x 128 pixels, 7 slots; else the module's defaults."""
    pixels = 32 if debug else 128
    model = {
        "cls": "attn_jax.models.slot_attention:SlotAttentionAutoEncoder",
        "num_slots": 7,
    }
    if debug:
        model |= {"decoder_initial_size": [2, 2], "width": 8, "mlp_width": 8}
        model |= {"encoder_channels": [4] * 4, "decoder_channels": [4] * 5}
    task = {
        "cls": "attn_jax.tasks.reconstruct:Reconstruct",
        "data": "tetrominoes",
        "image_size": pixels,
        "num_objects": 6,
    }
    arrays = {
        "images": Draw((pixels, pixels, 3), "uint8", 256),
        "object_ids": Draw((pixels, pixels), "uint8", 7),
    }
    return Case(model, config_lib.build(task), batch_size, arrays)


def hopfield_pooling(batch_size: int, debug: bool) -> Case:
    instances, width = (1000, 16) if debug else (100_000, 512)
    model = {
        "cls": "attn_jax.models.hopfield:HopfieldPooling",
        "hopfield": {
            "cls": "attn_jax.models.hopfield:Hopfield",
            "num_heads": 2 if debug else 8,
            "head_dim": 8 if debug else 64,
        },
    }
    arrays = {"instances": Draw((instances, width), "bfloat16")}
    return Case(model, Pooled(), batch_size, arrays)


# Batch sizes use most of 80 GB without rematerialization.
CASES: dict[str, Callable[[bool], Case]] = {
    "ViT-S/16, 224 px": functools.partial(vit, "S", 256),
    "ViT-B/16, 224 px": functools.partial(vit, "B", 128),
    "ViT-L/16, 224 px": functools.partial(vit, "L", 64),
    "BERT-base, 128 tokens": functools.partial(bert, "base", 128, 256),
    "BERT-base, 512 tokens": functools.partial(bert, "base", 512, 64),
    "BERT-large, 128 tokens": functools.partial(bert, "large", 128, 128),
    "BERT-large, 512 tokens": functools.partial(bert, "large", 512, 32),
    "Slot Attention, CLEVR6": functools.partial(slot_attention, 64),
    "Hopfield pooling, 100,000 instances": functools.partial(hopfield_pooling, 4),
}

# One of each architecture, as at debug size those of one architecture are alike.
DEBUG_CASES = [list(CASES)[i] for i in (0, 3, 7, 8)]


def draw_batch(case: Case, key: jax.Array) -> dict[str, jax.Array]:
    """Draws a batch of random arrays; on the device."""
    batch: dict[str, jax.Array] = {
        "index": jnp.arange(case.batch_size, dtype=jnp.int32),
        "valid": jnp.ones(case.batch_size, bool),
    }
    for number, (name, draw) in enumerate(case.arrays.items()):
        own = jax.random.fold_in(key, number)
        shape = (case.batch_size, *draw.shape)
        if draw.dtype == "bool":
            batch[name] = jnp.ones(shape, bool)
        elif draw.dtype == "bfloat16":
            batch[name] = jax.random.normal(own, shape, jnp.bfloat16)
        else:
            numbers = jax.random.randint(own, shape, 0, draw.below)
            batch[name] = numbers.astype(draw.dtype)
    return batch


def with_dtype(section: dict[str, Any], dtype: str) -> dict[str, Any]:
    nested = {
        k: with_dtype(v, dtype) for k, v in section.items() if isinstance(v, dict)
    }
    return {**section, **nested, "dtype": dtype}
