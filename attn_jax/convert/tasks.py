"""Describes the task of a foreign checkpoint: how its inputs are read for a prediction."""

from typing import Any

from attn_jax.convert.description import Description
from attn_jax.convert.formats import detect_format
from attn_jax.convert.sidecars import label_names, pixel_statistics
from attn_jax.convert.vit.fit import Checkpoint, grid_of_table, token_stride
from attn_jax.data.vocabulary import read_vocabulary
from attn_jax.models.bert import Bert, ChoiceHead, ClassHead, SpanHead, TagHead
from attn_jax.models.vit import ViT

NO_DATA = "none"  # of a task that only predicts


def describe_task(path: str, loaded: Checkpoint) -> dict[str, Any]:
    """Returns the config section of the task, and under "assets" what to bind it to.

    Raises:
        ValueError: the model has no head to predict with; its vocabulary is missing, or the size
            of its images unknown.
    """
    if isinstance(loaded.module, ViT):
        return describe_images(path, loaded)
    if isinstance(loaded.module, Bert):
        return describe_text(path, loaded.module)
    raise ValueError(
        f"{path}: predictions for a foreign {type(loaded.module).__name__} are not supported."
    )


def describe_images(path: str, loaded: Checkpoint) -> dict[str, Any]:
    module = loaded.module
    statistics = pixel_statistics(path)
    if statistics is None:
        raise ValueError(
            f"{path} does not say how its images were normalized; add "
            'preprocessor_config.json with "image_mean" and "image_std" (Hugging Face), or '
            '"mean" and "std" in pretrained_cfg (timm).'
        )
    height, width = find_image_size(path, loaded)
    names = label_names(path)
    channels = (
        loaded.params["embedding"]["kernel"].shape[2] if module.stem is None else 3
    )
    return {
        "cls": "attn_jax.tasks.classify:Classify",
        "data": NO_DATA,
        "num_classes": max(module.num_classes, 1),
        "image_size": (height, width),
        "resize": find_resize(path, min(height, width)),
        "channels": channels,
        "mean": statistics[0] if len(statistics[0]) > 1 else statistics[0][0],
        "std": statistics[1] if len(statistics[1]) > 1 else statistics[1][0],
        "class_names": names,
    }


def find_image_size(path: str, loaded: Checkpoint) -> tuple[int, int]:
    """The (height, width) of the training images in pixels, from the table of positions."""
    table = loaded.params.get("pos_embedding")
    if loaded.grid is None and table is None:
        raise ValueError(
            f"{path}: its positions are computed, so the size of its images is unknown; train "
            "or fine-tune it here, and predict with the run."
        )
    rows = 0 if table is None else table.shape[1]
    grid = loaded.grid or grid_of_table(loaded.module, rows, None, path)
    down, across = token_stride(loaded.module)
    return grid[0] * down, grid[1] * across


def find_resize(path: str, side: int) -> int | None:
    """The smaller side in pixels before a central crop, as timm's `crop_pct` says."""
    found = detect_format(path)
    if found.kind != "timm" or found.description is None:
        return None
    hub: Description = found.description.section("pretrained_cfg")
    share = hub.number("crop_pct", 1.0, 1.0)
    return None if share in (0.0, 1.0) else int(side / share)


def describe_text(path: str, module: Bert) -> dict[str, Any]:
    assets = read_vocabulary(path)
    if assets is None:
        raise ValueError(
            f"{path} has no vocab.txt, so text cannot be tokenized; put the vocabulary of the "
            "model there."
        )
    common = {
        "data": NO_DATA,
        "vocab_size": module.vocab_size,
        "sequence_length": module.max_positions,
        "assets": assets,
    }
    names = label_names(path)
    if isinstance(module.head, ClassHead):
        return {
            "cls": "attn_jax.tasks.text_classify:TextClassify",
            "num_classes": module.head.num_classes,
            "class_names": names if module.head.num_classes > 1 else None,
            **common,
        }
    if isinstance(module.head, TagHead):
        tags = names or tuple(f"LABEL_{i}" for i in range(module.head.num_tags))
        return {"cls": "attn_jax.tasks.tag:Tag", "tags": tags, **common}
    if isinstance(module.head, SpanHead):
        return {"cls": "attn_jax.tasks.span:Span", **common}
    if isinstance(module.head, ChoiceHead):
        return {"cls": "attn_jax.tasks.choice:Choice", **common}
    return {
        "cls": "attn_jax.tasks.masked_lm:MaskedLM",
        "next_sentence": False,
        **common,
    }
