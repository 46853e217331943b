"""Masked patch prediction: hide patches of an image, predict the colour of each.

Axes: B batch, H W image, G patches a side, N patches (row by row), C classes.
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
    """Images from any source, half of their patches corrupted; labels are not used.

    Of each image round(`corrupted` * N) patches are corrupted, drawn uniformly without
    replacement. Whether a corrupted patch is masked, replaced or kept is drawn independently,
    as in BERT. Fixed numbers would miss the shares where an image has few patches (of 8, none
    would ever be replaced).

    In training the keys come from the step, in evaluation from the example's number:
    evaluations depend neither on the batch size nor on the step.

    The fields that say which images are read, and how, are those of
    `attn_jax.data.reading.CroppedImageReading`; crop and flip come before anything is
    hidden.

    Attributes:
        patch_size: of the model's patches, in pixels: one side or (height, width).
        corrupted: share of an image's patches that are corrupted and predicted.
        masked: of these, the share whose embedding becomes the mask token.
        replaced: of these, the share whose embedding becomes that of a random other patch
            of the same image. The rest keep theirs.
        bits: of each channel's mean colour; 2^(bits * channels) classes.

    Raises:
        ValueError: patches do not tile the image, or a value is out of range.

    Source: Dosovitskiy et al. 2021, sec. 4.6 and B.1.2. The original was never released.
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
                    f"{name}={getattr(self, name)} is a share; set config.task.{name} to a "
                    "number from 0 to 1."
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
                f"{self.corrupted_patches}; at least 1 must be corrupted and another be there to "
                "replace it. Raise config.task.corrupted or lower the patch_size."
            )

    @property
    def coefficients(self) -> dict[str, float]:
        return {"masked_patch_loss": 1.0}

    @property
    def patch(self) -> tuple[int, int]:
        return framing.sides(self.patch_size)

    @property
    def patches(self) -> int:
        """N, of an image."""
        (h, w), (ph, pw) = self.size, self.patch
        return (h // ph) * (w // pw)

    @property
    def corrupted_patches(self) -> int:
        """How many of an image's patches are corrupted."""
        return round(self.corrupted * self.patches)

    @property
    def classes(self) -> int:
        """Number of classes of mean colours."""
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
        """uint8 `images` [H, W, channels]; `rng` None means evaluation: no augmentation."""
        return {"images": self.read(record, rng)}

    def prepare(
        self, batch: Mapping[str, jax.Array], key: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Images to float32 in the model's range; corruption and target of each patch.

        Adds, all [B, N]: bool `patch_corrupted` (to be predicted) and `patch_mask` (its
        embedding becomes the mask token), int32 `patch_source` (the patch whose embedding
        it gets) and `patch_targets`.
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
        """(corrupted, masked, source) of one image's patches."""
        which, how, other = jax.random.split(key, 3)
        corrupted = jax.random.permutation(which, self.patches) < self.corrupted_patches
        draw = jax.random.uniform(how, (self.patches,))
        mask = corrupted & (draw < self.masked)
        replace = corrupted & ~mask & (draw < self.masked + self.replaced)
        numbers = jnp.arange(self.patches)
        # An offset from 1 to N - 1: uniform over the other patches, never the patch itself.
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
        """Cross-entropy in nats and accuracy over corrupted patches, the kept ones too.

        Padded rows never count.

        Raises:
            ValueError: the model has no head for patches, or one of another size.
        """
        logits = outputs.get("patch_logits")
        if logits is None or logits.shape[-1] != self.classes:
            found = (
                "no patch_logits" if logits is None else f"{logits.shape[-1]} classes"
            )
            raise ValueError(
                f"the model gives {found}; bits={self.bits} of channels={self.channels} "
                f"make 2^{self.bits * self.channels} mean colours: set "
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
