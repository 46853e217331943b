"""The parts of a Vision Transformer: patch embedding, encoder block, attention pooling.

Axes: B batch, H W image, Gh Gw patches down and across, T tokens, D width, c channels.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_jax.attention import MultiHeadAttention, layer_norm

GELU: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "erf": lambda x: jax.nn.gelu(x, approximate=False),
    "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


class PatchEmbedding(nn.Module):
    """A convolution with kernel size and stride P: one linear map per patch (paper eq. 1).

    Implemented as a reshape and a matrix product, which is twice as fast on a CPU. The
    kernel has the shape of the convolution's, [P, P, channels, D].
    """

    patch_size: int | tuple[int, int]
    width: int
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "B H W c"]) -> Float[Array, "B Gh Gw D"]:
        patch = self.patch_size
        ph, pw = (patch, patch) if isinstance(patch, int) else patch
        b, h, w, c = images.shape
        if h % ph or w % pw:
            raise ValueError(
                f"image is {h}x{w}; patch_size={patch} must divide both sides. Change "
                "config.task.image_size or config.model.patch_size."
            )
        init = nn.initializers.lecun_normal(in_axis=(0, 1, 2))
        kernel = self.param("kernel", init, (ph, pw, c, self.width))
        x = images.astype(self.dtype).reshape(b, h // ph, ph, w // pw, pw, c)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // ph, w // pw, ph * pw * c)
        x = x @ kernel.reshape(-1, self.width).astype(self.dtype)
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return x + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class Block(nn.Module):
    """Pre-norm: x + MSA(LN(x)), then x + MLP(LN(x)) (paper eq. 2 and 3).

    `layer_scale` multiplies a branch by a learned factor per channel; `rate` is the
    probability that an example skips a branch. `attention` has the call of
    `MultiHeadAttention`.
    """

    attention: nn.Module
    mlp_width: int
    layer_scale: float | None
    dropout: float
    norm_epsilon: float
    gelu: str
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rate: float | Float[Array, ""],
        train: bool,
    ) -> Float[Array, "B T D"]:
        def residual(branch: jax.Array, number: int) -> jax.Array:
            # The names tell the random numbers of one from those of the other.
            first, second = (f"Dropout_{2 * number - i}" for i in (2, 1))
            drop = nn.Dropout(self.dropout, deterministic=not train, name=first)
            branch = drop(branch)
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                scale = self.param(f"scale_{number}", init, branch.shape[-1:])
                branch = branch * scale.astype(branch.dtype).reshape(1, 1, -1)
            return SkippedBranch(name=second)(branch, rate, train)

        y = layer_norm(self.norm_epsilon, "norm_1")(x).astype(self.dtype)
        x = x + residual(self.attention(y, y, train=train), 1)
        y = layer_norm(self.norm_epsilon, "norm_2")(x).astype(self.dtype)
        mlp = MLP(self.mlp_width, self.dropout, self.gelu, self.dtype, name="mlp")
        x = x + residual(mlp(y, train), 2)
        self.sow("intermediates", "block_output", x)
        return x


class SkippedBranch(nn.Module):
    """Zero for a share `rate` of the examples, the others divided by 1 - rate.

    `nn.Dropout` over examples, whose rate may be an array.

    Source: Huang et al. 2016, scaled as in timm.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], rate: float | Float[Array, ""], train: bool
    ) -> Float[Array, "B T D"]:
        if not train or (isinstance(rate, float) and rate == 0):
            return x
        keep = jnp.asarray(1 - rate, jnp.float32)
        chosen = jax.random.bernoulli(
            self.make_rng("dropout"), keep, (x.shape[0], 1, 1)
        )
        # With rate 1, no gradient of an excluded branch may be 0 / 0.
        return jnp.where(chosen, x / jnp.maximum(keep, 1e-6).astype(x.dtype), 0)


class MLP(nn.Module):
    """Dense -> GELU -> dropout -> Dense."""

    mlp_width: int
    dropout: float
    gelu: str
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], train: bool) -> Float[Array, "B T D"]:
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features,
                kernel_init=nn.initializers.xavier_uniform(),
                bias_init=nn.initializers.normal(1e-6),
                dtype=self.dtype,
                name=name,
            )

        width = x.shape[-1]
        x = GELU[self.gelu](dense(self.mlp_width, "dense_1")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return dense(width, "dense_2")(x)


class AttentionPooling(nn.Module):
    """Attention from a learned probe to all tokens, then x + MLP(LN(x)).

    Source: big_vision, models/vit.py, MAPHead.
    """

    num_heads: int
    mlp_width: int
    norm_epsilon: float
    gelu: str
    dtype: str

    @nn.compact
    def __call__(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        width = tokens.shape[-1]
        init = nn.initializers.xavier_uniform()
        probe = self.param("probe", init, (1, 1, width)).astype(self.dtype)
        probe = jnp.broadcast_to(probe, (tokens.shape[0], 1, width))
        attend = MultiHeadAttention(self.num_heads, dtype=self.dtype, name="attention")
        x = attend(probe, tokens.astype(self.dtype))
        y = layer_norm(self.norm_epsilon, "norm")(x).astype(self.dtype)
        x = x + MLP(self.mlp_width, 0.0, self.gelu, self.dtype, name="mlp")(y, False)
        return x[:, 0].astype(jnp.float32)
