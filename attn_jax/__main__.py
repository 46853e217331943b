"""Dispatch only: `python -m attn_jax COMMAND ...`; each command lives in its own file."""

import sys

from attn_jax import workdir
from attn_jax.analysis.command import analyze_command

COMMANDS = {"analyze": analyze_command, "evaluate": workdir.evaluate_command}


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in COMMANDS:
        sys.exit(f"usage: python -m attn_jax {{{','.join(COMMANDS)}}} --help")
    COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
