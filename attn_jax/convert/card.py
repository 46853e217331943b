"""Writes README.md of an exported folder: the model card that the Hugging Face Hub shows."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from attn_jax import paths
from attn_jax.version import __version__

# {class of transformers: the name of its pipeline}
PIPELINES = {
    "BertForMaskedLM": "fill-mask",
    "BertForMultipleChoice": "multiple-choice",
    "BertForQuestionAnswering": "question-answering",
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertModel": "feature-extraction",
    "ViTForImageClassification": "image-classification",
    "ViTModel": "image-feature-extraction",
}
# Keys of a run's config that say how it was trained.
TRAINING = (
    "duration",
    "batch_size",
    "optimizer",
    "schedule",
    "clip_norm",
    "ema_decay",
    "seed",
)


def write_card(
    folder: pathlib.Path,
    name: str,
    module: nn.Module,
    variables: Mapping[str, Any],
    record: Mapping[str, Any] | None,
) -> None:
    """Writes README.md: what the model is, how to open it, how it was trained, its metrics.

    Args:
        folder: with the config.json of transformers.
        name: of the model, such as that of the run's folder.
        record: of a run's checkpoint, see `CheckpointReader.record`. None: it is of no run.
    """
    kind = json.loads((folder / "config.json").read_text("utf-8"))["architectures"][0]
    pipeline = PIPELINES.get(kind)
    count = sum(np.size(leaf) for leaf in paths.named_leaves(variables).values())
    lines = ["---", "library_name: transformers"]
    lines += [f"pipeline_tag: {pipeline}"] if pipeline else []
    lines += ["tags:", "- attn_jax", "---", "", f"# {name}", ""]
    lines.append(
        f"{type(module).__name__} of {count:,} parameters, for `{kind}` of transformers."
    )
    if pipeline:
        opened = f'pipeline("{pipeline}", "FOLDER")'
        lines += ["", "```python", "from transformers import pipeline", ""]
        lines += [f"predict = {opened}", "```"]
    if record is not None:
        lines += describe_training(record)
    lines += ["", f"Written by attn_jax {__version__}.", ""]
    (folder / "README.md").write_text("\n".join(lines), "utf-8")


def describe_training(record: Mapping[str, Any]) -> list[str]:
    """Lines on the config of a run, and its metrics at this step if it was evaluated there."""
    config = record["config"]
    task = config["task"]
    lines = ["", "## Training", "", "| | |", "|---|---|"]
    if config.get("recipe"):
        lines += [f"| recipe | `{escape(config['recipe'])}` |"]
    if "code" in record:
        lines += [f"| attn_jax | {escape(record['code'])} |"]
    lines += [f"| task | `{task['cls']}` |"]
    if "data" in task:  # without the folders of whoever trained it
        lines += [f"| data | {escape(pathlib.PurePath(str(task['data'])).name)} |"]
    lines += [f"| step | {record['step']:,} |"]
    for key in TRAINING:
        if config.get(key) is not None:
            lines += [f"| {key} | {escape(json.dumps(config[key]))} |"]
    if results := record.get("results"):
        lines += ["", f"## Metrics at step {record['step']:,}", ""]
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {key} | {value:.4g} |" for key, value in results.items()]
    return lines


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
