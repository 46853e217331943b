"""Exports a model to the files of another library."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from absl import logging
from etils import epath

from attn_jax import config
from attn_jax.convert.bert import write as write_bert
from attn_jax.convert.sidecars import as_statistics
from attn_jax.convert.vit import write
from attn_jax.convert.vit.fit import Size, grid_of_table, token_stride
from attn_jax.folder import expand_local
from attn_jax.models.bert import Bert
from attn_jax.models.vit import ViT


def export(
    module: nn.Module,
    variables: Mapping[str, Any],
    path: epath.PathLike,
    format: str,
    *,
    image_size: Size | None = None,
    labels: Sequence[str] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    vocabulary: Mapping[str, str] | None = None,
) -> None:
    """Writes a ViT or a BERT so that other libraries load it and give the same numbers.

    Args:
        path: a folder for "hf", transformers; FILE.safetensors for "timm", ViT only. Beside the
            latter, FILE.json has the arguments of timm's VisionTransformer (and
            `pretrained_cfg`, an argument of `timm.create_model`, if labels or statistics are
            given).
        image_size: of the training images in pixels, which the model does not contain.
            None: square images are assumed, and a warning says so.
        labels: names of the classes in the order of the head, for `id2label` or
            `label_names`. None: LABEL_0, LABEL_1, ...
        mean, std: of the normalization of images, in units of 0..1, one number or one per
            channel, for preprocessor_config.json or `pretrained_cfg`. None: not written.
        vocabulary: of a BERT: {"vocab.txt": text, "text.json": settings}, as
            `attn_jax.data.vocabulary.read_vocabulary` returns. None: no tokenizer is written,
            and a warning says so.

    Raises:
        ValueError: the module is neither, or has a part that the other library lacks; there
            are not as many labels as classes; an argument is for the other architecture.
    """
    if format not in ("hf", "timm"):
        raise ValueError(f"{format=} must be 'hf' or 'timm'.")
    if "params" not in variables:
        raise ValueError("variables have no 'params'; pass {'params': params}.")
    path = expand_local(path)
    if isinstance(module, Bert):
        if format != "hf" or (image_size, mean, std) != (None, None, None):
            raise ValueError(
                "export: a BERT has the format 'hf', and neither image_size, mean nor std."
            )
        check_folder(path)
        if vocabulary is None:
            logging.warning(
                "export: without a vocabulary, no tokenizer is written; pass vocabulary."
            )
        write_bert.to_hf(module, variables, path, vocabulary, labels)
        return
    if not isinstance(module, ViT):
        raise ValueError(
            f"only a ViT or a BERT can be exported, not {type(module).__name__}."
        )
    if vocabulary is not None:
        raise ValueError("export: a vocabulary is for a BERT; leave it out.")
    export_vit(module, variables, path, format, image_size, labels, mean, std)


def export_vit(
    module: ViT,
    variables: Mapping[str, Any],
    path: pathlib.Path,
    format: str,
    image_size: Size | None,
    labels: Sequence[str] | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> None:
    if format == "timm" and path.suffix != ".safetensors":
        raise ValueError(f"{path} must be FILE.safetensors; FILE.json lies beside it.")
    if format == "hf":
        check_folder(path)
    if image_size is None:
        positions = variables["params"].get("pos_embedding")
        if positions is None:
            raise ValueError(
                "positions are computed, so the model does not determine the size of "
                "its images; pass image_size."
            )
        grid = grid_of_table(module, positions.shape[1], None, "the model")
        height, width = (g * s for g, s in zip(grid, token_stride(module), strict=True))
        image_size = height if height == width else (height, width)
        logging.warning(
            "export: the model is written for images of %sx%s pixels; pass image_size if it "
            "was trained on others.",
            height,
            width,
        )
    check_size("image_size", image_size)
    if (mean is None) != (std is None):
        raise ValueError("mean and std describe images together; pass both or none.")
    statistics = None if mean is None else as_statistics(mean, std, "export")
    if labels is not None and len(set(labels)) != module.num_classes:
        raise ValueError(
            f"there are {len(set(labels))} different labels, but the head has "
            f"{module.num_classes} classes; pass one label per class."
        )
    names = None if labels is None else tuple(labels)
    means, stds = statistics or (None, None)
    images = write.Images(image_size, means, stds, names)
    to_format = write.to_hf if format == "hf" else write.to_timm
    to_format(module, variables, path, images)


def check_folder(path: pathlib.Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder to write to.")


def check_size(name: str, size: Any) -> None:
    """Raises ValueError if a size in pixels is not one or two positive numbers."""
    config.check_value(
        "image_size", size, Size, "" if name == "image_size" else f"{name}: "
    )
