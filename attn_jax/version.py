"""The version of the package; pyproject.toml reads it here."""

import pathlib
import subprocess

__version__ = "0.1.0"


def describe_code() -> str:
    """The version and, of a checkout, the commit: "0.1.0, commit 1a2b3c4 with changes"."""
    root = pathlib.Path(__file__).parent.parent
    if not (
        root / ".git"
    ).exists():  # installed; a folder further up is another project
        return __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty= with changes"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    commit = found.stdout.strip()
    return f"{__version__}, commit {commit}" if commit else __version__
