"""`python -m attn_jax export`: a ViT checkpoint for Hugging Face or timm."""

import argparse
from collections.abc import Sequence

import jax

from attn_jax import commands
from attn_jax.convert import export, load_pretrained


def main(arguments: Sequence[str]) -> None:
    """Prints the path that was written."""
    parser = commands.make_parser(
        "export", "Write a ViT so that transformers or timm load it."
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
        help="a folder for hf, FILE.safetensors for timm",
    )
    parser.add_argument("--format", required=True, choices=("hf", "timm"))
    parser.add_argument(
        "--image_size",
        nargs="+",
        type=int,
        metavar="PIXELS",
        help="one side, or height and width; needed if the model does not determine it",
    )
    commands.parse_and_run(parser, run, arguments)


def run(options: argparse.Namespace) -> list[str]:
    if options.trust:
        raise ValueError(
            f"--trust={options.trust[0]} has no effect here: only classes of attn_jax can "
            "be exported."
        )
    size = options.image_size
    if size is not None and len(size) > 2:
        raise ValueError(f"--image_size takes one or two numbers, not {len(size)}.")
    module, variables = load_pretrained(options.source)
    if jax.process_index() == 0:
        export(
            module,
            variables,
            options.to,
            options.format,
            image_size=size[0] if size and len(size) == 1 else size and tuple(size),
        )
    return [options.to]
