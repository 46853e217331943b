"""ResNet with group norm and standardized weights: a stem and a baseline for the ViT.

Axes: B batch, H W image, h w feature grid, C channels, K classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_jax.bounds import Depth, Width


class ResNetStem(nn.Module):
    """Images -> feature grid: a root with stride 4, then stages of bottlenecks.

    `stage_sizes` is the number of bottlenecks per stage. The first stage has 4 * `width`
    channels; each later one halves the grid and doubles the channels. Without stages only
    the root remains, with `width` channels at a quarter of the resolution. As the `stem` of
    a ViT it gives the paper's hybrid: R50+B/16 has stages (3, 4, 9) and patch size 1.

    Call: `images` [B, H, W, c]. Returns [B, h, w, C] in `dtype`.

    Raises:
        ValueError: the channels of a group norm are not divisible by 32.

    Source: ViT paper sec. 3.1, "Hybrid", and its code, vit_jax/models_resnet.py: ResNet v1
    with BiT's norms; max pooling is padded like the convolutions, and ReLU follows the sum.
    """

    stage_sizes: tuple[Depth, ...] = ()
    width: Width = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "B H W c"]) -> Float[Array, "B h w C"]:
        x = images.astype(self.dtype)
        x = StandardizedConv(self.width, 7, 2, self.dtype, name="conv_root")(x)
        x = nn.relu(group_norm("gn_root", self.width, self.dtype)(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, size in enumerate(self.stage_sizes):
            for unit in range(size):
                x = Bottleneck(
                    width=self.width * 2**stage,
                    stride=2 if stage and not unit else 1,
                    dtype=self.dtype,
                    name=f"stage_{stage}_unit_{unit}",
                )(x)
        return x


class ResNet(nn.Module):
    """`ResNetStem`, global average pooling, a linear head.

    Call: `images` [B, H, W, c]. Returns (call): `pooled` [B, C], the input of the head;
    `logits` [B, K]. Float32.

    Source: ViT paper sec. 4.1, "ResNet (BiT)". The norms are those of BiT (Kolesnikov et
    al., 2020), the order inside a bottleneck that of the hybrid's code.
    """

    num_classes: Width
    stage_sizes: tuple[Depth, ...] = (3, 4, 6, 3)
    width: Width = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W c"], *, train: bool = False
    ) -> dict[str, Array]:
        del train  # the same in training and evaluation
        stem = ResNetStem(self.stage_sizes, self.width, self.dtype, name="stem")
        pooled = stem(images).astype(jnp.float32).mean(axis=(1, 2))
        head = nn.Dense(
            self.num_classes, kernel_init=nn.initializers.zeros, name="head"
        )
        return {"pooled": pooled, "logits": head(pooled)}


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with a residual connection; outputs 4 * width channels.

    The scale of the last norm is initialized to zero, so the branch starts at zero.
    """

    width: Width
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"]) -> Float[Array, "B h w C"]:
        def conv_norm(
            x: jax.Array, name: str, features: int, size: int, stride: int
        ) -> jax.Array:
            conv = StandardizedConv(
                features, size, stride, self.dtype, name=f"conv{name}"
            )
            x = conv(x)
            zero = name == "3"
            return group_norm(f"gn{name}", features, self.dtype, zero)(x)

        shortcut, out = x, 4 * self.width
        if x.shape[-1] != out or self.stride > 1:
            shortcut = conv_norm(x, "_proj", out, 1, self.stride)
        x = nn.relu(conv_norm(x, "1", self.width, 1, 1))
        x = nn.relu(conv_norm(x, "2", self.width, 3, self.stride))
        return nn.relu(shortcut + conv_norm(x, "3", out, 1, 1))


class StandardizedConv(nn.Module):
    """A convolution whose kernel is standardized per output channel (mean 0, deviation 1).

    Source: Qiao et al. 2019 (arXiv:1903.10520). As in the ViT's code, 1e-5 is added to the
    deviation. (timm adds 1e-8 to the variance; the two differ by 6 % if it is 2e-4.)
    """

    features: int
    size: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"]) -> Float[Array, "B h w C"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        kernel = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
        kernel = kernel / (kernel.std(axis=(0, 1, 2), keepdims=True) + 1e-5)
        return jax.lax.conv_general_dilated(
            x,
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def group_norm(
    name: str, channels: int, dtype: str, zero: bool = False
) -> nn.GroupNorm:
    if channels % 32:
        raise ValueError(
            f"{name} has {channels} channels, which must be divisible by its 32 groups; "
            "make the width of the ResNet in config.model a multiple of 32."
        )
    return nn.GroupNorm(
        num_groups=32,
        epsilon=1e-6,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
        name=name,
    )
