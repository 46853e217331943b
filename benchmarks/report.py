"""Where a benchmark's table goes, and what must stand beside every number."""

import os
import pathlib
import platform
import subprocess

import jax

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results.md"


def provenance() -> str:
    """Commit, hardware and versions in one line."""
    commit = git("describe", "--always")
    if git("status", "--porcelain", "--", ".", ":!docs"):  # what benchmarks write
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
    """The --set arguments of a command, paths by their last part: no machine's folders."""
    parted = (pair.partition("=") for pair in pairs)
    return "".join(f" --set {key}={pathlib.Path(v).name}" for key, _, v in parted)


def write(name: str, lines: list[str]) -> None:
    """Puts a section of docs/results.md in place of its last run's, and prints it."""
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
