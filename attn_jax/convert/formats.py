"""Detects the format of a checkpoint, and the function that reads it."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
from etils import epath

from attn_jax.convert import runs
from attn_jax.convert.bert import read_hf as read_bert_hf
from attn_jax.convert.bert import read_tf1
from attn_jax.convert.description import Description, check_regular, shorten
from attn_jax.convert.files import find_weights, list_arrays
from attn_jax.convert.vit import read_hf, read_npz, read_timm
from attn_jax.convert.vit.fit import Checkpoint
from attn_jax.folder import expand_path
from attn_jax.models.bert import Bert
from attn_jax.models.vit import ViT

VIT_CLASS = "attn_jax.models.vit:ViT"

# {array: family}, for configurations without a model_type
FAMILY_ARRAYS = {
    "embeddings.word_embeddings.weight": "bert",
    "embeddings.patch_embeddings.projection.weight": "vit",
}


class Format(NamedTuple):
    """The format of a checkpoint.

    Attributes:
        place: a run's or Hugging Face's folder, or the file of arrays.
        read: the function that reads it, with module fields as keyword arguments.
        family: the class of its module; None: any class, as the run's config says.
        description: the JSON that describes it, if it has one.
    """

    kind: Literal["npz", "timm", "hf", "tf1", "run"]
    place: epath.Path
    read: Callable[..., Checkpoint]
    family: type[nn.Module] | None
    description: Description | None

    @property
    def takes_trained_size(self) -> bool:
        """Whether the caller may have to pass the size of the training images."""
        return self.kind == "npz" or (self.kind == "run" and self.family is ViT)


def detect_format(path: str) -> Format:
    """Detects the format of a checkpoint from its name and config.json.

    Args:
        path: a folder or a file; FILE.npz:SUBTREE names one of several models in a file.

    Raises:
        ValueError: the path does not exist, or is in no known format.
    """
    file, _, subtree = path.partition(".npz:")
    if not path.strip():
        raise ValueError("the path of the checkpoint is empty.")
    place = expand_path(f"{file}.npz" if subtree else path)
    path, local = str(place), pathlib.Path(place)
    if "://" not in path and (prefix := read_tf1.find_prefix(local)) is not None:
        config = prefix.with_name(read_tf1.CONFIG)
        described = Description(config) if config.exists() else None
        read = functools.partial(read_bert, read_tf1.from_tf1, prefix)
        return Format("tf1", epath.Path(prefix), read, Bert, described)
    if not place.exists():
        raise ValueError(
            f"{path} does not exist; name a run's --workdir, a folder of Hugging Face, a "
            "ViT's .npz or .safetensors, or a bert_model.ckpt."
        )
    if not place.is_dir():
        check_regular(path)
    if local.suffix == ".npz":
        read = functools.partial(read_npz.from_npz, local, subtree=subtree)
        return Format("npz", place, read, ViT, None)
    alone = not local.with_suffix(".json").exists()
    if local.name == "model.safetensors" and alone:
        place, local = place.parent, local.parent  # config.json is in the folder
    if local.suffix == ".safetensors":
        return describe_timm(local)
    if not (place / "config.json").exists():
        raise ValueError(
            f"{path} has no config.json; it is neither a run's folder nor one of Hugging "
            "Face."
        )
    description = Description(place / "config.json")
    if (place / "checkpoints").exists():
        if description.section("model").get("cls") == VIT_CLASS:
            read = functools.partial(runs.read_vit_run, path)
            return Format("run", place, read, ViT, description)
        read = functools.partial(runs.read_run, path)
        return Format("run", place, read, None, description)
    if "task" in description:
        raise ValueError(
            f"{path} is a run's folder that has no checkpoints/ yet; train until it has."
        )
    if "architecture" in description:  # as timm calls it
        return describe_timm(local / "model.safetensors")
    return describe_hugging_face(local, description)


def describe_timm(file: pathlib.Path) -> Format:
    description = Description(read_timm.find_sidecar(file))
    read = functools.partial(read_timm.from_timm, file)
    return Format("timm", epath.Path(file), read, ViT, description)


def describe_hugging_face(folder: pathlib.Path, description: Description) -> Format:
    family = description.get("model_type")
    if "model_type" not in description:  # configurations of 2019 have none
        family = detect_family(find_weights(folder))
    place = epath.Path(folder)
    if family == "vit":
        read = functools.partial(read_hf.from_hf, folder)
        return Format("hf", place, read, ViT, description)
    if family == "bert":
        read = functools.partial(read_bert, read_bert_hf.from_hf, folder)
        return Format("hf", place, read, Bert, description)
    raise ValueError(
        f"{folder} is neither a run's folder (there is no checkpoints/) nor a checkpoint of a "
        f"known family: its config.json says model_type={shorten(family)}; known: 'bert', "
        "'vit'."
    )


def detect_family(path: pathlib.Path) -> str | None:
    """Detects "bert" or "vit" from the names of the arrays; None for another family."""
    for name in list_arrays(path):
        for part, family in FAMILY_ARRAYS.items():
            if name.endswith(part):
                return family
    return None


def read_bert(
    read: Callable[..., tuple[Bert, dict[str, Any]]], path: pathlib.Path, **fields: Any
) -> Checkpoint:
    module, variables = read(path, **fields)
    return Checkpoint(module, variables["params"], None)
