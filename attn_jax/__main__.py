"""Dispatch only: `python -m attn_jax COMMAND ...`; each command lives in its own file."""

import pkgutil
import sys

# By name, so that evaluating does not wait for what only drawing imports.
COMMANDS = {
    "analyze": "attn_jax.analysis.command:analyze_command",
    "evaluate": "attn_jax.restore:evaluate_command",
}


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in COMMANDS:
        sys.exit(f"usage: python -m attn_jax {{{','.join(COMMANDS)}}} --help")
    pkgutil.resolve_name(COMMANDS[arguments[0]])(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
