"""The command line of train.py: from its flags to the call of `train`."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from attn_jax import config as config_lib
from attn_jax import recipe_help, runtime

OVERRIDE = "--config."
HELP = ("--help", "-h", "-help", "--helpfull")


def run_from_flags(
    train: Callable[[config_lib.Section, str], Any], words: Sequence[str]
) -> None:
    """Trains as the command line says, and ends the process.

    Args:
        train: called with the resolved config and the workdir.
        words: the command line, program first. With `--config=RECIPE --help` the keys of the
            recipe are printed instead.
    """
    flags.DEFINE_string(
        "config",
        None,
        "Recipe: path/to/file.py[:variant], or a name such as vit/digits. With --help: "
        "print all of its keys.",
    )
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, if not detected.")
    flags.DEFINE_integer("num_processes", None, "With --coordinator: how many.")
    flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is.")
    flags.DEFINE_bool("traceback", False, "Show the traceback of an error.")
    try:
        words = flags.FLAGS.read_flags_from_files(list(words))  # --flagfile=FILE
    except flags.Error as error:
        sys.exit(f"error: {str(error).removeprefix('ERROR:: ')}")
    # attn_jax.config parses these once it knows the model's fields.
    overrides = [text for text in words[1:] if text.startswith(OVERRIDE)]
    words = [text for text in words if text not in overrides]
    settings = [text.removeprefix(OVERRIDE) for text in overrides]
    asks_for_help = any(word in HELP for word in words)
    if asks_for_help and any(word.startswith("--config") for word in words):
        words = [word for word in words if word not in HELP]
    else:
        asks_for_help = False

    def command(arguments: Sequence[str]) -> None:
        options = flags.FLAGS
        if options.config is None or (options.workdir is None and not asks_for_help):
            raise ValueError("--config and --workdir are needed; see --help.")
        if len(arguments) > 1:
            raise ValueError(
                f"{arguments[1]!r} is not a flag; settings are --config.key=value"
            )
        config = config_lib.load(options.config, settings)
        if asks_for_help:
            print(recipe_help.describe(options.config, config))
            return
        if config.deterministic:
            runtime.ask_for_determinism()
        runtime.start_distributed(
            options.coordinator, options.num_processes, options.process_id
        )
        train(config, options.workdir)

    def main(arguments: Sequence[str]) -> None:
        """`run_command` reports errors and sets the exit status."""
        runtime.run_command(lambda: command(arguments), traceback=flags.FLAGS.traceback)

    app.run(main, words)
