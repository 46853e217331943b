"""Which format a checkpoint is in, and what reads it."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
from etils import epath

from attn_jax.convert import bert, runs
from attn_jax.convert.description import Description, check_regular, short
from attn_jax.convert.files import array_names, weights_of_folder
from attn_jax.convert.vit import read_hf, read_npz, read_timm
from attn_jax.convert.vit.fit import Checkpoint
from attn_jax.folder import expand_path
from attn_jax.models.bert import Bert
from attn_jax.models.vit import ViT

VIT_CLASS = "attn_jax.models.vit:ViT"

# Arrays that tell a family, where the configuration does not.
FAMILY_ARRAYS = {
    "embeddings.word_embeddings.weight": "bert",
    "embeddings.patch_embeddings.projection.weight": "vit",
}


class Format(NamedTuple):
    """Where a checkpoint is, what reads it, and the JSON that describes it."""

    kind: Literal["npz", "timm", "hf", "run"]
    place: epath.Path  # a run's or Hugging Face's folder, or the file of arrays
    read: Callable[..., Checkpoint]
    family: type[nn.Module] | None  # None: any class, as the run's config says
    description: Description | None

    @property
    def takes_trained_size(self) -> bool:
        """Whether the size of the training images may have to be passed."""
        return self.kind == "npz" or (self.kind == "run" and self.family is ViT)


def detect_format(path: str) -> Format:
    """The format of a checkpoint, from its name and config.json.

    Args:
        path: a folder or a file; FILE.npz:SUBTREE names one of several models in a file.

    Raises:
        ValueError: nothing that can be read.
    """
    file, _, subtree = path.partition(".npz:")
    if not path.strip():
        raise ValueError("the path of the checkpoint is empty.")
    place = expand_path(f"{file}.npz" if subtree else path)
    path, local = str(place), pathlib.Path(place)
    if not place.exists():
        raise ValueError(
            f"{path} does not exist; name a run's --workdir, a folder of Hugging Face, or a "
            "ViT's .npz or .safetensors."
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
        return timm_format(local)
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
        return timm_format(local / "model.safetensors")
    return hugging_face_format(local, description)


def timm_format(file: pathlib.Path) -> Format:
    description = Description(read_timm.find_sidecar(file))
    read = functools.partial(read_timm.from_timm, file)
    return Format("timm", epath.Path(file), read, ViT, description)


def hugging_face_format(folder: pathlib.Path, description: Description) -> Format:
    family = description.get("model_type")
    if "model_type" not in description:  # configurations of 2019 have none
        family = family_of_arrays(weights_of_folder(folder))
    place = epath.Path(folder)
    if family == "vit":
        read = functools.partial(read_hf.from_hf, folder)
        return Format("hf", place, read, ViT, description)
    if family == "bert":
        read = functools.partial(read_bert, folder)
        return Format("hf", place, read, Bert, description)
    raise ValueError(
        f"{folder} is neither a run's folder (there is no checkpoints/) nor a checkpoint of a "
        f"known family: its config.json says model_type={short(family)}; known: 'bert', "
        "'vit'."
    )


def family_of_arrays(path: pathlib.Path) -> str | None:
    """ "bert" or "vit", from the names of the arrays."""
    for name in array_names(path):
        for part, family in FAMILY_ARRAYS.items():
            if name.endswith(part):
                return family
    return None


def read_bert(folder: pathlib.Path, **fields: Any) -> Checkpoint:
    module, variables = bert.from_hf(folder, **fields)
    return Checkpoint(module, variables["params"], None)
