"""Reads pixel statistics and class names from the files beside a checkpoint."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from attn_jax.convert.description import Description, shorten
from attn_jax.convert.formats import Format, detect_format
from attn_jax.models.bert import Bert

# (mean, standard deviation) of pixels in units of 0..1, one number per channel or one for all:
# the input of the model is (pixels / 255 - mean) / deviation.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

MINUS_ONE_TO_ONE: Statistics = ((0.5,), (0.5,))


def pixel_statistics(path: epath.PathLike) -> Statistics | None:
    """Returns (mean, deviation) of the images' normalization; None if unknown.

    Read from transformers' preprocessor_config.json, timm's `pretrained_cfg`, or a run's
    assets. Files of vision_transformer and big_vision were trained on [-1, 1].

    Args:
        path: as of `load_pretrained`.

    Returns:
        Two tuples in units of 0..1, with one number per channel or one for all.

    Raises:
        ValueError: the checkpoint cannot be read; the numbers are no statistics of pixels.
    """
    found = detect_format(str(path))
    if found.family is Bert:
        return None
    if found.kind == "npz":
        return MINUS_ONE_TO_ONE
    if found.kind == "hf":
        return read_processor_statistics(found.place / "preprocessor_config.json")
    if found.kind == "run":
        return read_run_statistics(found)
    assert found.description is not None, "timm's always has one"
    hub = found.description.section("pretrained_cfg")
    if "mean" not in hub or "std" not in hub:
        return None
    return as_statistics(hub["mean"], hub["std"], found.description.path)


def label_names(path: epath.PathLike) -> tuple[str, ...] | None:
    """Returns the names of a checkpoint's classes in the order of the head; None if unknown.

    Read from transformers' `id2label`, timm's `label_names`, or a run's assets.

    Args:
        path: as of `load_pretrained`.

    Raises:
        ValueError: the checkpoint cannot be read; the entry is no list of names.
    """
    found = detect_format(str(path))
    described = found.description
    if described is None:
        return None
    if found.kind == "run":
        described = open_run_assets(found)
        names: Any = described.get("labels") if described is not None else None
    elif found.kind == "hf":
        names = read_id_names(described)
    else:
        hub = described.section("pretrained_cfg")
        names = described.get("label_names", hub.get("label_names"))
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{found.place}: {shorten(names)} are no class names. Correct the file."
        )
    return tuple(names)


def read_id_names(config: Description) -> list[str] | None:
    """Reads the names of `id2label`; None for the placeholders LABEL_0, LABEL_1, ..."""
    by_id = config.section("id2label")
    names: list[Any] = [by_id.get(str(i)) for i in range(len(by_id))]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{config.path}: id2label has no name for each of 0 to {len(by_id) - 1}. Correct "
            "the file."
        )
    placeholders = [f"LABEL_{i}" for i in range(len(by_id))]
    return None if names == placeholders else names


def read_processor_statistics(file: epath.Path) -> Statistics | None:
    """Reads the statistics of an image processor, whose steps may each be turned off.

    Source: transformers image_processing_utils_fast.py, `rescale_and_normalize`.
    """
    if not file.exists():
        return None
    described = Description(file)
    factor = 1 / 255
    if not described.flag("do_rescale", True):
        factor = 1.0
    elif "rescale_factor" in described:
        factor = described.number("rescale_factor", factor)
        if factor == 0:
            raise described.make_error("rescale_factor", factor, "above 0")
    mean: Any = [0.0]
    std: Any = [1.0]
    if described.flag("do_normalize", True):
        mean = described.get("image_mean", [0.5])
        std = described.get("image_std", [0.5])
    mean, std = as_statistics(mean, std, file)
    scale = 255 * factor  # from units of 0..1 to those that the mean is subtracted in
    if math.isclose(scale, 1, rel_tol=1e-6):  # 0.00392156862745098 is 1 / 255
        return mean, std
    return tuple(m / scale for m in mean), tuple(s / scale for s in std)


def read_run_statistics(found: Format) -> Statistics | None:
    described = open_run_assets(found)
    if described is None:
        return None
    if "mean" in described and "std" in described:
        return as_statistics(described["mean"], described["std"], described.path)
    if "value_range" not in described:
        return None
    bounds = described["value_range"]
    low, high = as_numbers(bounds, described.path, "value_range")[:2]
    if len(bounds) != 2 or not low < high:
        raise described.make_error("value_range", bounds, "two increasing numbers")
    return (-low / (high - low),), (1 / (high - low),)


def open_run_assets(found: Format) -> Description | None:
    """Opens the asset of a run that describes its inputs; None if it has none."""
    for name in ("images.json", "text.json"):
        file = found.place / "assets" / name
        if file.exists():
            return Description(file)
    return None


def as_statistics(mean: Any, std: Any, source: Any) -> Statistics:
    """Converts mean and deviation to two tuples of numbers.

    Raises:
        ValueError: a number is not finite; the lengths differ; a deviation is not above 0.
    """
    means, stds = as_numbers(mean, source, "mean"), as_numbers(std, source, "std")
    if len(means) != len(stds) and 1 not in (len(means), len(stds)):
        raise ValueError(
            f"{source}: mean has {len(means)} numbers, std has {len(stds)}; both must have "
            "one per channel. Correct the file."
        )
    if min(stds) <= 0:
        raise ValueError(
            f"{source}: std={shorten(std)} must be above 0. Correct the file."
        )
    return means, stds


def as_numbers(values: Any, source: Any, name: str) -> tuple[float, ...]:
    numbers = values if isinstance(values, list | tuple) else [values]
    if not numbers or not all(
        type(number) in (int, float) and abs(number) < 1e6 for number in numbers
    ):
        raise ValueError(
            f"{source}: {name}={shorten(values)} must be a finite number, or a list of one per "
            "channel. Correct the file."
        )
    return tuple(float(number) for number in numbers)


def explain_statistics(
    theirs: Statistics | None,
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> str | None:
    """Explains what to set if a task's statistics are not a checkpoint's; else None.

    Args:
        theirs: from `pixel_statistics`; None agrees with any.
        mean, std: of the task, in units of 0..1, one number or one per channel.
    """
    if theirs is None:
        return None
    ours = np.atleast_1d(mean), np.atleast_1d(std)
    # Published statistics have three digits or more; 1e-4 is a fortieth of a gray level.
    if all(
        len(a) in (1, len(b)) or len(b) == 1 for a, b in zip(ours, theirs, strict=True)
    ) and all(
        np.allclose(a, b, rtol=0, atol=1e-4) for a, b in zip(ours, theirs, strict=True)
    ):
        return None

    def as_setting(numbers: Sequence[float]) -> str:
        rounded = [round(number, 6) for number in numbers]
        same = len(set(rounded)) == 1
        return shlex.quote(str(rounded[0] if same else rounded).replace(" ", ""))

    settings = [
        f"--config.task.{name}={as_setting(numbers)}"
        for name, numbers in zip(("mean", "std"), theirs, strict=True)
    ]
    return (
        f"its images were normalized by mean {as_setting(theirs[0])} and std "
        f"{as_setting(theirs[1])} in units of 0..1, the task's are by mean "
        f"{as_setting(ours[0].tolist())} and std {as_setting(ours[1].tolist())}; set "
        + " ".join(settings)
    )
