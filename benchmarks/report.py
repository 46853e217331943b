"""Writes the tables of benchmarks to docs/results.md, with the provenance of the numbers."""

import os
import pathlib
import platform
import subprocess

import jax

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results.md"


def provenance() -> str:
    """Describes commit, hardware and versions in one line."""
    commit = git("describe", "--always")
    if git("status", "--porcelain", "--", ".", ":!docs"):  # benchmarks write to docs
        commit += " with changes"
    device = jax.devices()[0]
    cores = f", {os.cpu_count()} cores" if device.platform == "cpu" else ""
    return (
        f"commit {commit or 'unknown'}; {jax.device_count()} x {device.device_kind}{cores}; "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def settings(pairs: list[str]) -> str:
    """Formats --set arguments; of paths only the last part, as folders are private."""
    parts = (pair.partition("=") for pair in pairs)
    return "".join(f" --set {key}={pathlib.Path(v).name}" for key, _, v in parts)


def write(name: str, lines: list[str]) -> None:
    """Writes a section of docs/results.md, replacing that of the last run; prints it."""
    text = "\n".join(lines)
    print(text)
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{text}\n{end}"
    page = RESULTS.read_text()
    if begin in page:
        before, rest = page.split(begin, 1)
        page = before + section + rest.split(end, 1)[1]
    else:
        page = page.rstrip() + f"\n\n{section}\n"
    RESULTS.write_text(page)
