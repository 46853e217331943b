"""Dispatches `python -m attn_jax COMMAND ...`, or `attn-jax COMMAND ...`, to attn_jax/commands."""

import importlib
import sys

from attn_jax import runtime

COMMANDS = {
    "analyze": "draw what a run's model attends to",
    "evaluate": "evaluate a run from its folder",
    "export": "write a model for transformers, timm, jax.export or ONNX Runtime",
    "extend-vocabulary": "add words to the vocabulary of a BERT",
    "prepare-text": "tokenize text that is too large for memory",
    "plan": "compile a run for devices that are not here: does it fit, how fast is it",
    "predict": "predict for images or texts, with a run or another checkpoint",
    "recipes": "list the recipes that come with attn_jax",
    "train": "train by a recipe, or go on with a run",
}


def main(arguments: list[str]) -> None:
    if arguments and arguments[0] in COMMANDS:
        # Imported by name, so that `evaluate` does not load matplotlib.
        command = importlib.import_module(
            f"attn_jax.commands.{arguments[0].replace('-', '_')}"
        )
        command.main(arguments[1:])
        return
    lines = ["usage: python -m attn_jax COMMAND --help"]
    lines += [f"  {name:19}{purpose}" for name, purpose in COMMANDS.items()]
    if arguments in (["--help"], ["-h"]):
        print("\n".join(lines))
    elif arguments:
        sys.exit("\n".join([f"error: {arguments[0]!r} is not a command.", *lines]))
    else:
        sys.exit("\n".join(lines))


def run() -> None:
    """The console script `attn-jax`."""
    runtime.run_command(lambda: main(sys.argv[1:]), traceback="--traceback" in sys.argv)


if __name__ == "__main__":
    run()
