"""Images to features and slots to images: the encoder and the broadcast decoder.

Axes: B batch, H W image, N grid cells, S = B * K slots of all images, D slot width, C
channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attn_jax.attention import layer_norm
from attn_jax.convolution import convolve, convolve_transposed
from attn_jax.models.slot_attention.keras import NORM_EPSILON, glorot


class Encoder(nn.Module):
    """Convolutions, position embedding, norm, MLP: one feature vector per grid cell."""

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    positions: bool = True

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B N C"]:
        check_lengths("encoder", self.channels, self.kernels, self.strides)
        x = images.astype(self.dtype)
        layers = zip(self.channels, self.kernels, self.strides, strict=True)
        for i, (channels, kernel, stride) in enumerate(layers):
            x = nn.Conv(
                channels,
                (kernel, kernel),
                (stride, stride),
                kernel_init=glorot,
                dtype=self.dtype,
                conv_general_dilated=convolve,
                name=f"conv_{i}",
            )(x)
            x = jax.nn.relu(x)
        B, H, W, C = x.shape
        if self.positions:
            x = x + PositionEmbedding((H, W), C, self.dtype, name="position")()
        return norm_and_mlp(x.reshape(B, H * W, C), C, self.dtype)


class Adapter(nn.Module):
    """The norm and the MLP of the encoder, for features of another model."""

    dtype: str

    @nn.compact
    def __call__(self, features: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        return norm_and_mlp(features, features.shape[-1], self.dtype)


def read_patches(
    backbone: nn.Module, images: Float[Array, "B H W c"]
) -> Float[Array, "B N C"]:
    """The final tokens of a ViT's patches, without those before them, in float32."""
    tokens = backbone(images, train=False)["tokens"].astype(jnp.float32)
    return tokens[:, getattr(backbone, "prefix", 0) :]


def norm_and_mlp(x: jax.Array, width: int, dtype: str) -> jax.Array:
    """Applies new submodules `norm`, `mlp_1` and `mlp_2` of the calling module."""
    x = layer_norm(NORM_EPSILON, "norm")(x).astype(dtype)
    for name in ("mlp_1", "mlp_2"):
        x = nn.Dense(width, dtype=dtype, kernel_init=glorot, name=name)(x)
        x = jax.nn.relu(x) if name == "mlp_1" else x
    return x


class Decoder(nn.Module):
    """Spatial broadcast decoder: each slot is copied to a grid and decoded to an image.

    The grid gets a position embedding and goes through transposed convolutions.

    Source: Watters et al., 2019.
    """

    initial_size: tuple[int, int]
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, slots: Float[Array, "S D"]) -> Float[Array, "S H W C"]:
        check_lengths("decoder", self.channels, self.kernels, self.strides)
        position = PositionEmbedding(
            self.initial_size, slots.shape[-1], self.dtype, name="position"
        )()
        x = SpreadConvTranspose(
            self.channels[0],
            self.kernels[0],
            self.strides[0],
            self.dtype,
            name="conv_0",
        )(slots.astype(self.dtype), position)
        layers = zip(self.channels, self.kernels, self.strides, strict=True)
        for i, (channels, kernel, stride) in list(enumerate(layers))[1:]:
            x = ConvTranspose(channels, kernel, stride, self.dtype, name=f"conv_{i}")(
                jax.nn.relu(x)
            )
        return x


class ConvTranspose(nn.Module):
    """`nn.ConvTranspose` with the kernel of Keras, [h, w, out, in]."""

    features: int
    kernel_size: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "S h w D"]) -> Float[Array, "S H W C"]:
        size = self.kernel_size
        kernel = self.param("kernel", glorot, (size, size, self.features, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = convolve_transposed(
            x.astype(self.dtype), kernel.astype(self.dtype), self.stride
        )
        return x + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class SpreadConvTranspose(nn.Module):
    """A transposed convolution of (slot copied to every cell + positions), but faster.

    The layer is linear, and a slot is constant over the grid. Therefore the positions are
    convolved once for all slots, and a slot is multiplied by one matrix per pixel: the sum
    of the kernel's taps inside the grid. Computed directly, this layer would take half of
    all operations of a decoder at full resolution.
    """

    features: int
    kernel_size: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(
        self, slots: Float[Array, "S D"], position: Float[Array, "1 h w D"]
    ) -> Float[Array, "S H W C"]:
        D = slots.shape[-1]
        size = self.kernel_size
        kernel = self.param("kernel", glorot, (size, size, self.features, D))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)

        ones = jnp.ones((*position.shape[:3], 1), kernel.dtype)
        taps = kernel.reshape(size, size, -1, 1)  # of C * D output channels
        taps = convolve_transposed(ones, taps, self.stride)[0]
        taps = taps.reshape(*taps.shape[:2], self.features, D)
        x = jnp.einsum("SD,HWCD->SHWC", slots, taps)
        x = x + convolve_transposed(position, kernel, self.stride)
        return x + bias.reshape(1, 1, 1, -1)


class PositionEmbedding(nn.Module):
    """A linear map of (row, column, 1 - row, 1 - column) of each cell, all in [0, 1]."""

    size: tuple[int, int]
    features: int
    dtype: str

    @nn.compact
    def __call__(self) -> Float[Array, "1 H W C"]:
        rows, columns = (np.linspace(0, 1, side) for side in self.size)
        grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
        grid = np.concatenate([grid, 1 - grid], axis=-1)[None]
        return nn.Dense(
            self.features, dtype=self.dtype, kernel_init=glorot, name="dense"
        )(jnp.asarray(grid, jnp.float32))


def check_lengths(part: str, *layers: tuple[int, ...]) -> None:
    names = ("channels", "kernels", "strides")
    if len({len(values) for values in layers}) > 1 or not layers[0]:
        shown = ", ".join(
            f"{len(values)} {name}" for name, values in zip(names, layers, strict=True)
        )
        last = " (the decoder's last channels are RGB and mask)"
        raise ValueError(
            f"the {part} has {shown}{last if part == 'decoder' else ''}; each layer "
            f"needs one of each. Change config.model.{part}_channels, _kernels "
            "or _strides."
        )
