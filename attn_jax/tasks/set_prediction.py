"""Set prediction: the properties of all objects of an image, in no order.

Axes: B batch, H W image, M target rows, K slots, T iterations, P properties of an object.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attn_jax import sets
from attn_jax.bounds import Depth, Path, Pixels, PositiveFloat, PositiveInt, Width
from attn_jax.data import framing, properties, scene_sources, sources
from attn_jax.data.scene_inputs import SceneInputs

COORDINATES = 3  # the first properties: x, y, z, divided by UNIT
UNIT = 6.0
ATTRIBUTES = tuple(map(len, properties.NAMES.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetPrediction(SceneInputs):
    """Prediction of the 19 numbers of each object that `attn_jax.data.properties` describes.

    Predictions are matched to the rows of the target so that the sum of their Huber losses is
    least. Rows without an object are matched too, which teaches spare slots that they hold none.
    Slots start from noise, as in `attn_jax.tasks.reconstruct.Reconstruct`.

    Attributes:
        data: "clevr_lite/whole" (generated, the whole frame as in the paper) or "clevr_lite"
            (without what lies outside the crop of object discovery); or "tfds:clevr", squeezed
            to a square (see `attn_jax.data.scene_sources.open_files`).
        image_size: side of the images, in pixels.
        num_objects, fewest_objects: the most and the fewest objects of an image.
        target_rows: M; at least as many as the objects of any image, and at most as many as
            there are slots. Slots beyond it are trained by no row.
        coordinate_scale: factor of the coordinates in the loss, which therefore has about its
            square as their weight. Average precision is in the unit of the scene anyway.
        every_iteration: train the mean of the losses after every iteration instead of the loss
            after the last one; also report it and average precision after each iteration t,
            as `METRIC_after_t`.
        num_slots, iterations: of the model's call; None: the model's own. An evaluation may so
            have more of them than the training: `evals.NAME.task.iterations`.
        train_images, validation_images, test_images: number of images, and the most of them
            if they lie in files; an epoch is a pass over the same images.
        data_seed: seed of the images; runs with different seeds share them.

    Source: Locatello et al. 2020, sec. 4.2; the loss at every iteration and the scale of
    coordinates are those of its fig. 23.
    """

    data: Path
    image_size: Pixels = 128
    num_objects: PositiveInt = 10
    fewest_objects: PositiveInt | None = None
    target_rows: Width = 10
    coordinate_scale: PositiveFloat = 1.0
    every_iteration: bool = False
    num_slots: Width | None = None
    iterations: Depth | None = None
    train_images: PositiveInt = 70_000
    validation_images: PositiveInt = 1000
    test_images: PositiveInt = 15_000
    data_seed: int = 0

    @property
    def coefficients(self) -> dict[str, float]:
        """The loss of a sum over M rows, not of their mean, as in the original."""
        return {"every_set_loss" if self.every_iteration else "set_loss": 1.0}

    def source(self, split: str) -> sources.Source:
        sizes = self.list_sizes(split)
        if self.data.startswith("clevr_lite"):
            return scene_sources.open_generated(
                self.data,
                split,
                sizes[split],
                canvas=self.image_size,
                fewest=self.fewest_objects,
                most=self.num_objects,
                seed=self.data_seed,
            )
        if not self.data.startswith("tfds:"):
            raise ValueError(
                f"config.task.data={self.data!r} has no properties of objects; this task reads "
                "'clevr_lite/whole', 'clevr_lite' and 'tfds:clevr'."
            )
        return scene_sources.open_files(
            self.data, split, sizes, fewest=self.fewest_objects, most=self.num_objects
        )

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """`images` [H, W, 3], 0 to 255, and float32 `targets` [M, P]; no augmentation.

        Generated images are uint8; those in files are resized, without antialias, and float32.

        Raises:
            ValueError: the image has more objects than the target has rows.
        """
        del rng
        found = record["properties"][record["properties"][:, -1] == 1]
        if len(found) > self.target_rows:
            name = record.get("name", "an image")
            raise ValueError(
                f"{name} has {len(found)} objects, but config.task.target_rows="
                f"{self.target_rows}, so some could never be found; set it, and "
                "config.model.num_slots, to the most objects of an image."
            )
        targets = np.zeros((self.target_rows, properties.WIDTH), np.float32)
        targets[: len(found)] = found
        image = record["image"]
        if self.data.startswith("tfds:"):
            image, _ = framing.frame_scene(image, None, self.image_size, "whole")
        return {"images": image, "targets": targets}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """`set_loss`: the least sum of costs of matched pairs, see `attn_jax.sets`.

        Padded rows of the batch do not count.

        Raises:
            ValueError: there are fewer slots than rows of the target.
        """
        valid = batch["valid"].astype(jnp.float32)
        count = valid.sum()

        def of_predictions(predictions: Float[Array, "B K P"]) -> jax.Array:
            return (self.match(predictions, batch["targets"]) * valid).sum()

        terms = {"set_loss": (of_predictions(outputs["predictions"]), count)}
        if self.every_iteration:
            each = jax.vmap(of_predictions)(outputs["predictions_per_iteration"])
            terms["every_set_loss"] = (each.mean(), count)
            terms |= {f"set_loss_after_{t}": (s, count) for t, s in enumerate(each, 1)}
        return terms

    def match(
        self, predictions: Float[Array, "B K P"], targets: Float[Array, "B M P"]
    ) -> Float[Array, " B"]:
        """The loss of each image."""
        if predictions.shape[1] < targets.shape[1]:
            raise ValueError(
                f"the model has {predictions.shape[1]} slots, fewer than "
                f"config.task.target_rows={targets.shape[1]}, so objects would be without a "
                "prediction; raise config.model.num_slots or lower target_rows."
            )
        scale = np.ones((1, 1, targets.shape[-1]), np.float32)
        scale[..., :COORDINATES] = self.coordinate_scale
        predictions = predictions.astype(jnp.float32) * scale
        return sets.sum_matched(sets.compare(predictions, targets * scale))

    def predictions(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        found = {"found": outputs["predictions"], "targets": batch["targets"]}
        if self.every_iteration:
            each = outputs["predictions_per_iteration"]
            found |= {f"found_after_{t}": array for t, array in enumerate(each, 1)}
        return found

    def score(
        self, predictions: Mapping[str, np.ndarray], records: sources.Source
    ) -> dict[str, float]:
        """`ap_inf`, `ap_1`, ...: average precision at each distance, over the whole split."""
        del records  # the targets come with the predictions
        targets = jnp.asarray(predictions["targets"])
        scores: dict[str, float] = {}
        for name, found in predictions.items():
            if not name.startswith("found"):
                continue
            values = sets.average_precision(
                jnp.asarray(found), targets, attributes=ATTRIBUTES, unit=UNIT
            )
            after = name.removeprefix("found")
            scores |= {
                f"ap_{threshold:g}{after}": float(value)
                for threshold, value in zip(sets.THRESHOLDS, values, strict=True)
            }
        return scores
