"""Trains and evaluates recipes by the commands that a user would type."""

import json
import pathlib
import subprocess
import sys

import report


def train(recipe: str, workdir: pathlib.Path, settings: list[str]) -> None:
    """Trains a recipe to its end, or resumes it.

    Args:
        recipe: configs/ARCH/NAME.py[:VARIANT].
        settings: KEY=VALUE of its config.
    """
    command = [sys.executable, str(report.ROOT / "train.py"), f"--workdir={workdir}"]
    command += [f"--config={report.ROOT / recipe}"]
    command += [f"--config.{setting}" for setting in settings]
    subprocess.run(command, check=True, stdout=sys.stderr)


def evaluate(workdir: pathlib.Path, step: str = "latest") -> dict[str, float]:
    """Evaluates a run; returns the JSON object that the command prints."""
    command = [sys.executable, "-m", "attn_jax", "evaluate", f"--workdir={workdir}"]
    output = subprocess.run(
        [*command, f"--step={step}"], check=True, capture_output=True, text=True
    ).stdout
    return json.loads(output.splitlines()[-1])


def read_records(workdir: pathlib.Path) -> list[dict]:
    """Reads the lines of a run's metrics.jsonl."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def count_seconds(workdir: pathlib.Path) -> float:
    """Returns the duration of the training in seconds."""
    return max(record["seconds"] for record in read_records(workdir))
