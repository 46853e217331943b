"""The two models of the paper: object discovery and set prediction.

Axes: B batch, N grid cells, K slots, D slot width, H W image, P properties of an object.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from attn_jax.attention import check_idle
from attn_jax.bounds import Depth, GridSide, NonNegativeFloat, Pixels, Width
from attn_jax.models.slot_attention.grids import (
    Adapter,
    Decoder,
    Encoder,
    read_patches,
)
from attn_jax.models.slot_attention.keras import glorot
from attn_jax.models.slot_attention.slots import SlotAttention


class SlotAttentionAutoEncoder(nn.Module):
    """Object discovery: image -> slots -> one image and one mask per slot -> image.

    The defaults are the paper's for CLEVR at 128 x 128. The image size is the decoder's
    initial size times its strides.

    Attributes:
        decoder_channels: without the last transposed convolution, which outputs RGB and the
            mask's logit; kernels and strides include it.
        remat: recompute the decoder in the backward pass: its activations, [B * K, H, W, C]
            per layer, are by far the largest.
        grouping: a module with the call of `SlotAttention`: one with other fields, or a
            `SlotMLP`. It has `num_slots` slots and replaces `iterations`, `width`,
            `mlp_width` and `epsilon`. None: Slot Attention with these.
        encoder_positions: False: the encoder, not the decoder, has no position embedding.
        backbone: a ViT, or a module with its call, whose patches take the place of the encoder's
            convolutions; see `SlotAttentionFeatureAutoEncoder`.

    Call: `images` [B, H, W, 3] in [-1, 1]; the rest as in `SlotAttention`.

    Returns (call): those of `SlotAttention`, where N is the encoder's grid row by row;
    `reconstruction` [B, H, W, 3]; `slot_reconstructions` [B, K, H, W, 3]; `masks`
    [B, K, H, W], which sum to 1 over slots. With `every_iteration` also these three as
    decoded after every iteration, `NAME_per_iteration` [T, B, ...]. Float32.

    Raises:
        ValueError: the image does not have the decoder's size; the lists of layers differ
            in length; a field that `grouping` or `backbone` replaces is set, too; see also
            `SlotAttention`.

    Source: paper sec. 2.2 and supplement; its code's object discovery model.
    """

    num_slots: Width
    iterations: Depth = 3
    width: Width = 64
    mlp_width: Width = 128
    epsilon: NonNegativeFloat = 1e-8
    encoder_channels: tuple[Width, ...] = (64, 64, 64, 64)
    encoder_kernels: tuple[Pixels, ...] = (5, 5, 5, 5)
    encoder_strides: tuple[Pixels, ...] = (1, 1, 1, 1)
    decoder_initial_size: tuple[GridSide, GridSide] = (8, 8)
    decoder_channels: tuple[Width, ...] = (64, 64, 64, 64, 64)
    decoder_kernels: tuple[Pixels, ...] = (5, 5, 5, 5, 5, 3)
    decoder_strides: tuple[Pixels, ...] = (2, 2, 2, 2, 1, 1)
    dtype: str = "float32"
    remat: bool = False
    grouping: nn.Module | None = None
    encoder_positions: bool = True
    backbone: nn.Module | None = None

    def setup(self) -> None:
        convolutions = (
            self.encoder_channels,
            self.encoder_kernels,
            self.encoder_strides,
        )
        encoder: nn.Module
        if self.backbone is None:
            encoder = Encoder(*convolutions, self.dtype, self.encoder_positions)
        else:
            usual = (64,) * 4, (5,) * 4, (1,) * 4
            names = "encoder_channels", "encoder_kernels", "encoder_strides"
            pairs = zip(convolutions, usual, strict=True)
            check_idle("backbone", dict(zip(names, pairs, strict=True)))
            encoder = Adapter(self.dtype)
        self.encoder = encoder
        self.slot_attention = make_grouping(
            self.grouping,
            self.num_slots,
            self.dtype,
            iterations=self.iterations,
            width=self.width,
            mlp_width=self.mlp_width,
            epsilon=self.epsilon,
        )
        decoder = nn.remat(Decoder) if self.remat else Decoder
        self.decoder = decoder(
            self.decoder_initial_size,
            (*self.decoder_channels, 4),
            self.decoder_kernels,
            self.decoder_strides,
            self.dtype,
        )

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        sample_keys: Key[Array, " B"] | None = None,
        initial_slots: Float[Array, "B K D"] | None = None,
        num_slots: int | None = None,
        iterations: int | None = None,
        every_iteration: bool = False,
        train: bool = False,
    ) -> dict[str, Array]:
        del train  # the same in training and evaluation
        scale = math.prod(self.decoder_strides)
        size = tuple(side * scale for side in self.decoder_initial_size)
        check_size(
            images,
            size,
            f"the decoder outputs {size[0]}x{size[1]} (decoder_initial_size "
            "times decoder_strides)",
            "config.model.decoder_initial_size",
        )
        seen = images
        if self.backbone is not None:
            seen = read_patches(self.backbone, images)
        found = self.slot_attention(
            self.encoder(seen),
            sample_keys=sample_keys,
            initial_slots=initial_slots,
            num_slots=num_slots,
            iterations=iterations,
            every_iteration=every_iteration,
        )
        if not every_iteration:
            return found | self.decode(found["slots"])
        slots = found["slots_per_iteration"][1:]  # [T, B, K, D]
        each = {
            name: array.reshape(*slots.shape[:2], *array.shape[1:])
            for name, array in self.decode(slots.reshape(-1, *slots.shape[2:])).items()
        }
        found |= {f"{name}_per_iteration": array for name, array in each.items()}
        return found | {name: array[-1] for name, array in each.items()}

    def decode(self, slots: Float[Array, "B K D"]) -> dict[str, Array]:
        """Decodes any number of slots to images.

        Returns `reconstruction`, `slot_reconstructions` and `masks` as in the call.
        """
        B, K, D = slots.shape
        decoded = self.decoder(slots.reshape(B * K, D)).astype(jnp.float32)
        decoded = decoded.reshape(B, K, *decoded.shape[1:])
        pictures, logits = decoded[..., :3], decoded[..., 3]
        masks = jax.nn.softmax(logits, axis=1)
        return {
            "reconstruction": (masks[..., None] * pictures).sum(axis=1),
            "slot_reconstructions": pictures,
            "masks": masks,
        }


class SlotAttentionClassifier(nn.Module):
    """Set prediction: image -> slots -> the properties of one object per slot.

    The defaults are the paper's for CLEVR10 at 128 x 128. `num_outputs` is P. `grouping` and
    `encoder_positions` are those of `SlotAttentionAutoEncoder`. `remat` recomputes the
    encoder in the backward pass.

    Call: `images` [B, H, W, 3] in [-1, 1]; the rest as in `SlotAttention`.

    Returns (call): those of `SlotAttention`, where N is the encoder's grid row by row;
    `predictions` [B, K, P] in [0, 1], and with `every_iteration` `predictions_per_iteration`
    [T, B, K, P]. Float32.

    Raises:
        ValueError: the image does not have the size `resolution`; the lists of layers
            differ in length; a field that `grouping` replaces is set, too; see also
            `SlotAttention`.

    Source: paper sec. 2.3 and supplement; its code's set prediction model.
    """

    num_slots: Width
    num_outputs: Width = 19
    iterations: Depth = 3
    width: Width = 64
    mlp_width: Width = 128
    head_width: Width = 64
    epsilon: NonNegativeFloat = 1e-8
    resolution: tuple[Pixels, Pixels] = (128, 128)
    encoder_channels: tuple[Width, ...] = (64, 64, 64, 64)
    encoder_kernels: tuple[Pixels, ...] = (5, 5, 5, 5)
    encoder_strides: tuple[Pixels, ...] = (1, 2, 2, 1)
    dtype: str = "float32"
    remat: bool = False
    grouping: nn.Module | None = None
    encoder_positions: bool = True

    def setup(self) -> None:
        encoder = nn.remat(Encoder) if self.remat else Encoder
        self.encoder = encoder(
            self.encoder_channels,
            self.encoder_kernels,
            self.encoder_strides,
            self.dtype,
            self.encoder_positions,
        )
        self.slot_attention = make_grouping(
            self.grouping,
            self.num_slots,
            self.dtype,
            iterations=self.iterations,
            width=self.width,
            mlp_width=self.mlp_width,
            epsilon=self.epsilon,
        )
        self.head_1 = nn.Dense(self.head_width, dtype=self.dtype, kernel_init=glorot)
        self.head_2 = nn.Dense(self.num_outputs, kernel_init=glorot)

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        sample_keys: Key[Array, " B"] | None = None,
        initial_slots: Float[Array, "B K D"] | None = None,
        num_slots: int | None = None,
        iterations: int | None = None,
        every_iteration: bool = False,
        train: bool = False,
    ) -> dict[str, Array]:
        del train  # the same in training and evaluation
        height, width = self.resolution
        check_size(
            images,
            self.resolution,
            f"the model expects {height}x{width}",
            "config.model.resolution",
        )
        found = self.slot_attention(
            self.encoder(images),
            sample_keys=sample_keys,
            initial_slots=initial_slots,
            num_slots=num_slots,
            iterations=iterations,
            every_iteration=every_iteration,
        )
        found["predictions"] = self.predict(found["slots"])
        if every_iteration:
            each = found["slots_per_iteration"][1:]
            found["predictions_per_iteration"] = self.predict(each)
        return found

    def predict(self, slots: Float[Array, "*B K D"]) -> Float[Array, "*B K P"]:
        """Predicts the properties of any number of slots, as in the call."""
        hidden = jax.nn.relu(self.head_1(slots)).astype(jnp.float32)
        return jax.nn.sigmoid(self.head_2(hidden))


def make_grouping(
    grouping: nn.Module | None, num_slots: int, dtype: str, **fields: Any
) -> nn.Module:
    """A copy of `grouping`, or Slot Attention with the fields of the model."""
    if grouping is None:
        return SlotAttention(num_slots, dtype=dtype, **fields)
    defaults = SlotAttention.__dataclass_fields__
    check_idle("grouping", {k: (v, defaults[k].default) for k, v in fields.items()})
    given = getattr(grouping, "num_slots", num_slots)
    if given != num_slots:
        raise ValueError(
            f"config.model.grouping.num_slots={given} must be config.model.num_slots="
            f"{num_slots}; change one of them."
        )
    return grouping.clone(parent=None, name=None)


def check_size(images: Any, size: tuple[int, ...], rule: str, remedy: str) -> None:
    if images.shape[1:3] != tuple(size):
        found = "x".join(map(str, images.shape[1:3]))
        raise ValueError(
            f"images are {found}, but {rule}; change {remedy} or "
            "config.task.image_size."
        )
