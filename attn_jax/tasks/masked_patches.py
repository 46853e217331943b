"""Masked patch prediction: corrupt patches of an image, predict the mean color of each.

Axes: B batch, H W image, N patches (row by row).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, UInt8

from attn_jax.bounds import Pixels, Probability
from attn_jax.data import framing, sources
from attn_jax.data.reading import CroppedImageReading


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedPatches(CroppedImageReading):
    """Self-supervised prediction of corrupted patches of images; labels are not used.

    In each image round(`corrupted` * N) patches are corrupted, drawn uniformly without
    replacement. Whether a corrupted patch is masked, replaced or kept is drawn independently,
    as in BERT. With fixed numbers the shares would be wrong if an image has few patches (of 4
    corrupted ones, none would ever be replaced).

    Random keys come from the step in training, and from the example's number in evaluation,
    which therefore depends neither on the batch size nor on the step.

    `attn_jax.data.reading.CroppedImageReading` describes the fields that select and read
    the images; crop and flip come before the corruption.

    Attributes:
        patch_size: of the model's patches, in pixels: one side or (height, width).
        corrupted: share of an image's patches that are corrupted and predicted.
        masked: of these, the share whose embedding becomes the mask token.
        replaced: of these, the share whose embedding becomes that of a random other patch
            of the same image. The rest keep theirs.
        bits: bits per channel of the mean color; there are 2^(bits * channels) classes.

    Raises:
        ValueError: the image is not divisible into patches, or a value is out of range.

    Source: Dosovitskiy et al. 2021, sec. 4.6 and B.1.2; its code was not released.
    """

    patch_size: Pixels | tuple[Pixels, Pixels]
    corrupted: Probability = 0.5
    masked: Probability = 0.8
    replaced: Probability = 0.1
    bits: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        (h, w), (ph, pw) = self.size, self.patch
        if min(ph, pw) < 1 or h % ph or w % pw:
            raise ValueError(
                f"image is {h}x{w}; patch_size={self.patch_size} must divide both sides. "
                "Change config.task.image_size, or patch_size of both config.task and "
                "config.model."
            )
        for name in ("corrupted", "masked", "replaced"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"config.task.{name}={getattr(self, name)} is a share and must be from "
                    "0 to 1."
                )
        if self.masked + self.replaced > 1 + 1e-6:
            raise ValueError(
                f"masked={self.masked} and replaced={self.replaced} are shares of the "
                "corrupted patches, so their sum must be at most 1; lower "
                "config.task.masked or config.task.replaced."
            )
        if not 1 <= self.bits <= 8:
            raise ValueError(
                f"bits={self.bits}: a channel has 8 bits; set config.task.bits to 1 to 8."
            )
        if self.patches < 2 or self.corrupted_patches < 1:
            raise ValueError(
                f"corrupted={self.corrupted} of {self.patches} patches is "
                f"{self.corrupted_patches}; at least 1 must be corrupted, and there must be "
                "another to replace it. Raise config.task.corrupted or lower patch_size."
            )

    @property
    def coefficients(self) -> dict[str, float]:
        return {"masked_patch_loss": 1.0}

    @property
    def patch(self) -> tuple[int, int]:
        return framing.sides(self.patch_size)

    @property
    def patches(self) -> int:
        """N, the number of patches of an image."""
        (h, w), (ph, pw) = self.size, self.patch
        return (h // ph) * (w // pw)

    @property
    def corrupted_patches(self) -> int:
        """The number of patches that are corrupted in each image."""
        return round(self.corrupted * self.patches)

    @property
    def classes(self) -> int:
        """The number of classes of mean colors."""
        return 2 ** (self.bits * self.channels)

    def source(self, split: str) -> sources.Source:
        return self.open(split)

    def assets(self, source: sources.Source) -> dict[str, str]:
        """Files that an evaluation needs: the value range."""
        del source
        return {"images.json": self.describe()}

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """uint8 `images` [H, W, channels]; not augmented if `rng` is None (evaluation)."""
        return {"images": self.read(record, rng)}

    def prepare(
        self, batch: Mapping[str, jax.Array], key: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Converts images to float32 in the model's range; adds corruption and targets.

        Adds, all [B, N]: bool `patch_corrupted` (to be predicted) and `patch_mask` (the
        embedding becomes the mask token), int32 `patch_source` (the patch whose embedding
        is used) and `patch_targets` (the class to predict).
        """
        if train:
            keys = jax.random.split(key, len(batch["index"]))
        else:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        corrupted, mask, source = jax.vmap(self.draw_corruption)(keys)
        return {
            **batch,
            "images": self.to_model_range(batch["images"]),
            "patch_corrupted": corrupted,
            "patch_mask": mask,
            "patch_source": source,
            "patch_targets": self.quantize_colors(batch["images"]),
        }

    def draw_corruption(
        self, key: jax.Array
    ) -> tuple[Bool[Array, " N"], Bool[Array, " N"], Int[Array, " N"]]:
        """Draws (corrupted, masked, source) for the patches of one image."""
        which, how, other = jax.random.split(key, 3)
        corrupted = jax.random.permutation(which, self.patches) < self.corrupted_patches
        draw = jax.random.uniform(how, (self.patches,))
        mask = corrupted & (draw < self.masked)
        replace = corrupted & ~mask & (draw < self.masked + self.replaced)
        numbers = jnp.arange(self.patches)
        # An offset from 1 to N - 1 is uniform over the other patches.
        away = jax.random.randint(other, (self.patches,), 1, self.patches)
        others = (numbers + away) % self.patches
        return corrupted, mask, jnp.where(replace, others, numbers)

    def quantize_colors(
        self, pixels: UInt8[Array, "B H W channels"]
    ) -> Int[Array, "B N"]:
        """The class of each patch: the first `bits` bits of its mean color per channel,
        concatenated with red as the most significant. In integers, so that means are exact.
        """
        (ph, pw), (b, h, w, channels) = self.patch, pixels.shape
        tiles = pixels.astype(jnp.int32).reshape(b, h // ph, ph, w // pw, pw, channels)
        bins = tiles.sum(axis=(2, 4)) // (ph * pw * 2 ** (8 - self.bits))
        bins = bins.reshape(b, -1, channels)
        classes = bins[..., 0]
        for channel in range(1, channels):
            classes = classes * 2**self.bits + bins[..., channel]
        return classes

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: batch[name] for name in ("images", "patch_mask", "patch_source")}

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Cross-entropy in nats and accuracy, over corrupted patches including kept ones.

        Padded rows do not count.

        Raises:
            ValueError: the model has no head for patches, or one of another size.
        """
        logits = outputs.get("patch_logits")
        if logits is None or logits.shape[-1] != self.classes:
            found = (
                "no patch_logits" if logits is None else f"{logits.shape[-1]} classes"
            )
            raise ValueError(
                f"the model outputs {found}; bits={self.bits} of channels={self.channels} "
                f"make 2^{self.bits * self.channels} mean colors: set "
                f"config.model.patch_outputs to {self.classes}."
            )
        targets = batch["patch_targets"]
        logits = logits.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        correct = logits.argmax(-1) == targets
        counted = (batch["patch_corrupted"] & batch["valid"][:, None]).astype(
            jnp.float32
        )
        count = counted.sum()
        return {
            "masked_patch_loss": ((losses * counted).sum(), count),
            "masked_patch_accuracy": ((correct * counted).sum(), count),
        }
