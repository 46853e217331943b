"""What the tasks of slots share: sizes of splits, pixels for the model, keys of the slots."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from attn_jax.data import images, properties, scene_sources, sources

CLEVR = (240, 320)  # height and width of its images, in pixels


class SceneInputs:
    """Input of a model with slots. A task inherits it and declares these fields."""

    data: str
    image_size: int
    train_images: int
    validation_images: int
    test_images: int
    num_slots: int | None
    iterations: int | None
    every_iteration: bool

    def list_sizes(self, split: str) -> dict[str, int]:
        """{split: number of images}.

        Raises:
            ValueError: there is no such split.
        """
        sizes = {
            "train": self.train_images,
            "validation": self.validation_images,
            "test": self.test_images,
        }
        if split not in sizes:
            raise ValueError(f"{split=} must be one of {', '.join(sizes)}.")
        return sizes

    def invent_record(self) -> dict[str, Any]:
        """A black image without objects, to plan a run without its data.

        Files of masks are as large as those of CLEVR; sets of TensorFlow Datasets have no masks.
        """
        generated = self.data in scene_sources.NAMES
        size = (self.image_size,) * 2 if generated else CLEVR
        record = {
            "image": np.zeros((*size, 3), np.uint8),
            "mask": np.zeros(size, np.uint8),
            "properties": np.zeros((0, properties.WIDTH), np.float32),
        }
        if self.data.startswith("tfds:"):
            del record["mask"]
        return record

    def assets(self, source: sources.Source) -> dict[str, str]:
        """Files that an evaluation needs: the value range."""
        del source
        return {"images.json": json.dumps({"value_range": [-1, 1]}, indent=1)}

    def prepare(
        self, batch: Mapping[str, jax.Array], key: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Converts images to float32 in [-1, 1]; adds the key of each example's slots."""
        if train:
            keys = jax.random.split(key, len(batch["index"]))
        else:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        pixels = images.normalize(batch["images"])
        return {**batch, "images": pixels, "sample_keys": keys}

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Images and keys, and the arguments of the call that are not the model's own."""
        changed = {
            "num_slots": self.num_slots,
            "iterations": self.iterations,
            "every_iteration": self.every_iteration,
        }
        given = {name: batch[name] for name in ("images", "sample_keys")}
        return given | {name: value for name, value in changed.items() if value}
