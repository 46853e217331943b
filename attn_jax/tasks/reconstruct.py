"""Object discovery: reconstruct images from slots; training never sees the masks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float

from attn_jax import metrics, segmentation
from attn_jax.bounds import Depth, Path, Pixels, PositiveInt, Width
from attn_jax.data import framing, images, scene_sources, sources
from attn_jax.data.packed_scenes import keep_generated
from attn_jax.data.reading import ImageReading
from attn_jax.data.scene_inputs import SceneInputs

OUTSIDE = 255  # of the part of an image that is seen
SEGMENTS_SIDE = 32  # pixels that a whole split is compared at; enough for stripes


@dataclasses.dataclass(frozen=True)
class Reconstruct(SceneInputs):
    """Images of several objects, autoencoded with a squared error; no labels are used.

    Slots start from noise. Its random keys come from the step in training, and from the
    example's number in evaluation, which therefore depends neither on the batch size nor on
    the step.

    Attributes:
        data: generated images (see `attn_jax.data.scene_sources`): "tetrominoes",
            "multi_dsprites/VARIANT" with VARIANT one of binarized, colored_on_grayscale,
            colored_on_colored; "clevr_lite", or "clevr_lite/whole" without its crop. Or images
            in files, with masks or without (see `scene_sources.open_files`).
        image_size: side of the images, in pixels.
        tile_pixels: side of a tile of a tetromino, in pixels.
        num_objects: the most objects of an image.
        fewest_objects: the fewest; None: as `scene_sources.open_generated` says.
        crop: of images in files, see `framing.frame_scene`; generated ones have the right
            size.
        train_images, validation_images, test_images: number of images, and the most of them
            if they lie in files; an epoch is a pass over the same images.
        keep_generated: write generated images into the cache at the first start, and read them
            from there.
        data_seed: seed of the images; runs with different seeds share them.
        num_slots, iterations: of the model's call; None: the model's own. An evaluation may
            so have more of them than the training: `evals.NAME.task.num_slots`.
        every_iteration: also report every metric after each iteration t, as
            `METRIC_after_t`. Only the last one is trained.
        target: what is reconstructed: "pixels", or the "features" of a frozen encoder, which
            `SlotAttentionFeatureAutoEncoder` returns.

    Raises:
        ValueError: `every_iteration` is asked of features.

    Source: Locatello et al. 2020, sec. 4.1.
    """

    SEGMENTS = True  # `predict` writes its results as images
    SCORES = ("position_agreement", "stripes")  # of `score`

    data: Path
    image_size: Pixels = 35
    tile_pixels: Pixels = 5
    num_objects: PositiveInt = 3
    fewest_objects: PositiveInt | None = None
    crop: Literal["center", "whole", "clevr"] = "center"
    train_images: PositiveInt = 60_000
    validation_images: PositiveInt = 320
    test_images: PositiveInt = 320
    keep_generated: bool = False
    data_seed: int = 0
    num_slots: Width | None = None
    iterations: Depth | None = None
    every_iteration: bool = False
    target: Literal["pixels", "features"] = "pixels"

    def __post_init__(self) -> None:
        if self.target == "features" and self.every_iteration:
            raise ValueError(
                "config.task.every_iteration=True needs target='pixels': features are decoded "
                "after the last iteration alone."
            )

    @property
    def coefficients(self) -> dict[str, float]:
        return {"squared_error": 1.0}

    def source(self, split: str) -> sources.Source:
        sizes = self.list_sizes(split)
        if self.data not in scene_sources.NAMES:
            return scene_sources.open_files(
                self.data,
                split,
                sizes,
                fewest=self.fewest_objects,
                most=self.num_objects,
            )
        generated = scene_sources.open_generated(
            self.data,
            split,
            sizes[split],
            canvas=self.image_size,
            tile=self.tile_pixels,
            fewest=self.fewest_objects,
            most=self.num_objects,
            seed=self.data_seed,
        )
        return keep_generated(generated) if self.keep_generated else generated

    @property
    def reading(self) -> ImageReading:
        """How images that do not come from `source` are decoded."""
        return ImageReading(data=self.data, image_size=self.image_size)

    def expand_input(self, given: Any) -> list[Any]:
        """The images that an input of `predict` stands for; see `ImageReading`."""
        return self.reading.expand_input(given)

    def read_input(self, given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Reads an image and crops it as in training; every image starts from the same slots."""
        named, pixels = self.reading.decode_input(given)
        height, width = pixels.shape[:2]
        framed, _ = framing.frame_scene(pixels, None, self.image_size, self.crop)
        row = {"images": framed, "index": np.int32(0)}
        return {**named, "height": height, "width": width}, [row]

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, np.ndarray]],
        top: int,
    ) -> dict[str, Any]:
        """`segments`: the slot of each pixel, uint8 [H, W] at the image's own size.

        `OUTSIDE` is what `crop` leaves out. The masks are resized before the largest is taken,
        so that borders are smooth. Also `pixels`: how many each slot has.
        """
        del rows, top
        segments = np.full((named["height"], named["width"]), OUTSIDE, np.uint8)
        window = framing.find_window(segments.shape, self.crop)
        masks = outputs[0]["masks"].transpose(1, 2, 0)  # slots as channels
        found = images.resize(masks, segments[window].shape).argmax(axis=-1)
        segments[window] = found
        counts = np.bincount(found.ravel(), minlength=masks.shape[-1])
        return {"segments": segments, "pixels": counts.tolist()}

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """`images` [H, W, 3], 0 to 255, and `object_ids` [H, W]; no augmentation.

        Images in files are cropped and resized, and float32; generated ones are uint8. Without
        masks there are no `object_ids`. If the record knows the objects' classes, there are
        also `class_ids` [H, W].
        """
        del rng
        image, mask = record["image"], record.get("mask")
        if isinstance(image, bytes):  # a file that the user names, not from `source`
            image = self.reading.decode(record)
        elif self.data in scene_sources.NAMES:
            return {"images": image, "object_ids": mask}
        image, mask = framing.frame_scene(image, mask, self.image_size, self.crop)
        if mask is None:
            return {"images": image}
        example = {"images": image, "object_ids": mask}
        if "classes" in record:
            example["class_ids"] = record["classes"][mask]
        return example

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The metrics of `measure`; with `every_iteration` also those after each one.

        Raises:
            ValueError: the model does not reconstruct the target.
        """
        name = "features" if self.target == "features" else "images"
        made = "feature_reconstruction" if name == "features" else "reconstruction"
        if made not in outputs:
            raise ValueError(
                f"config.task.target={self.target!r}, but the model outputs no {made}; change "
                "config.task.target or config.model.cls."
            )
        target = {**batch, **outputs}[name]
        terms = self.measure(outputs[made], target, outputs["masks"], batch)
        if self.every_iteration:
            each = outputs["reconstruction_per_iteration"]
            for t, (image, masks) in enumerate(
                zip(each, outputs["masks_per_iteration"], strict=True), 1
            ):
                found = self.measure(image, target, masks, batch)
                terms |= {f"{name}_after_{t}": pair for name, pair in found.items()}
        return terms

    def predictions(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """`segments`: the slot of each pixel [B, h, w], of every n-th row and column."""
        del batch
        found = outputs["masks"].argmax(axis=1).astype(jnp.int32)
        step = -(-max(found.shape[1:]) // SEGMENTS_SIDE)
        return {"segments": found[:, ::step, ::step]}

    def score(self, rows: Mapping[str, np.ndarray], source: Any) -> dict[str, float]:
        """`position_agreement` over the split, and `stripes`: 1 if it is above the bound.

        Slots that divide the images by position, whatever they show, are named in the log;
        see `segmentation.measure_position_agreement`.
        """
        del source
        segments = jnp.asarray(rows["segments"])
        found = segmentation.measure_position_agreement(
            segments, number=int(segments.max()) + 1
        )
        agreement = float(np.asarray(found).mean())
        stripes = agreement > segmentation.STRIPES
        if stripes:
            logging.warning(
                "the slots are stripes: those of different images agree by %.2f (Rand index; "
                "objects by less than %.2f), so they follow positions and not what the images "
                "show. Start again with another --config.seed; smaller kernels help.",
                *(agreement, segmentation.STRIPES),
            )
        return {"position_agreement": agreement, "stripes": float(stripes)}

    def measure(
        self,
        reconstruction: Float[Array, "B ..."],
        target: Float[Array, "B ..."],
        masks: Float[Array, "B K H W"],
        batch: Mapping[str, jax.Array],
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Mean squared error over the parts of the target, and agreement with the true masks.

        A pixel belongs to the slot whose mask is largest there. `ari` is of all pixels;
        `fg_ari`, `mbo` and `covering` are of the objects and leave out images without any,
        see `attn_jax.metrics` and `attn_jax.segmentation`. If the classes are known, `mbo_class`
        is `mbo` with all objects of a class merged into one. Without true masks there is only
        `squared_error`. Padded rows do not count.
        """
        valid = batch["valid"].astype(jnp.float32)
        error = reconstruction.astype(jnp.float32) - target
        squared = jnp.square(error).mean(axis=tuple(range(1, error.ndim)))
        terms = {"squared_error": ((squared * valid).sum(), valid.sum())}
        if "object_ids" not in batch:
            return terms
        true = batch["object_ids"].astype(jnp.int32)
        found = masks.argmax(axis=1)
        sizes: dict[str, Any] = {
            "num_true": self.num_objects + 1,
            "num_predicted": masks.shape[1],
        }
        foreground = true != 0
        counted = valid * foreground.any(axis=(1, 2))

        def of_objects(
            metric: Any, true: jax.Array = true, **where: Any
        ) -> tuple[jax.Array, jax.Array]:
            values = metric(true, found, **sizes, **where)
            return (values * counted).sum(), counted.sum()

        if "class_ids" in batch:
            overlap = segmentation.mean_best_overlap
            terms["mbo_class"] = of_objects(overlap, batch["class_ids"])
        ari = metrics.adjusted_rand_index(true, found, **sizes)
        return terms | {
            "ari": ((ari * valid).sum(), valid.sum()),
            "fg_ari": of_objects(metrics.adjusted_rand_index, where=foreground),
            "mbo": of_objects(segmentation.mean_best_overlap),
            "covering": of_objects(segmentation.segmentation_covering),
        }
