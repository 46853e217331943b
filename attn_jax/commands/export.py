"""`python -m attn_jax export`: a ViT or BERT checkpoint for Hugging Face or timm."""

import argparse
from collections.abc import Sequence

import flax.linen as nn
import jax

from attn_jax import commands, restore
from attn_jax.convert import export, label_names, load_pretrained, pixel_statistics
from attn_jax.convert.formats import detect_format
from attn_jax.data.vocabulary import read_vocabulary


def main(arguments: Sequence[str]) -> None:
    """Prints the path that was written."""
    parser = commands.make_parser(
        "export", "Write a ViT or a BERT so that transformers or timm load it."
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="CHECKPOINT",
        help="a run's folder, or a file or folder that load_pretrained reads",
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="PATH",
        help="a folder for hf; FILE.safetensors for timm, which has no BERT",
    )
    parser.add_argument("--format", required=True, choices=("hf", "timm"))
    commands.add_step_arguments(parser)
    parser.add_argument(
        "--image_size",
        nargs="+",
        type=int,
        metavar="PIXELS",
        help="one side, or height and width; needed if the model does not determine it",
    )
    commands.parse_and_run(parser, run, arguments)


def run(options: argparse.Namespace) -> list[str]:
    sides = options.image_size
    if sides is not None and len(sides) > 2:
        raise ValueError(f"--image_size takes one or two numbers, not {len(sides)}.")
    size = sides if sides is None or len(sides) == 2 else sides[0]
    if detect_format(options.source).kind == "run":
        module, variables, task = restore(
            options.source,
            options.step or "latest",
            options.params,
            trust=options.trust,
        )
        size = size or getattr(task, "image_size", None)
    else:
        commands.check_run_flags(options, options.source)
        module, variables = load_pretrained(options.source)
    mean, std = pixel_statistics(options.source) or (None, None)
    has_tokens = hasattr(module, "vocab_size")
    vocabulary = read_vocabulary(options.source) if has_tokens else None
    if jax.process_index() == 0:
        export(
            module,
            variables,
            options.to,
            options.format,
            image_size=tuple(size) if isinstance(size, list) else size,
            labels=name_classes(options.source, count_classes(module)),
            mean=mean,
            std=std,
            vocabulary=vocabulary,
        )
    return [options.to]


def count_classes(module: nn.Module) -> int:
    """The outputs that can have names: classes or tags; 0 if there are none."""
    head = getattr(module, "head", None)
    for owner, field in (
        (module, "num_classes"),
        (head, "num_classes"),
        (head, "num_tags"),
    ):
        if number := getattr(owner, field, 0):
            return number
    return 0


def name_classes(source: str, number: int) -> list[str] | None:
    """The class names of a checkpoint; outputs beyond them are called LABEL_i.

    None: the checkpoint has no names, or its model no head.
    """
    names = label_names(source)
    if not names or not number:
        return None
    return [*names, *(f"LABEL_{i}" for i in range(len(names), number))]
