"""Vision Transformer: an image is worth 16x16 words (Dosovitskiy et al., 2021).

Axes: B batch, H W image, P patch, G patches a side, T tokens, D width, C classes.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attn_jax.attention import MultiHeadAttention

GELU: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "erf": lambda x: jax.nn.gelu(x, approximate=False),
}


class ViT(nn.Module):
    """Patches -> tokens -> pre-norm encoder -> pooled representation -> logits.

    `num_classes` 0 leaves out the head. `pool`: "cls" takes a learned token, "gap" the mean
    of the patches, "map" attends from a learned probe (Zhai et al., 2022). The class token
    is concatenated before the learned position embedding is added, which so has a
    row for it (google-research/vision_transformer); "sincos2d" is fixed (Beyer et al.,
    2022) and has no row for it. A `pooling` module, all tokens to [B, D], replaces what
    `pool` does to them; with "gap" there is no class token among them.
    A `stem` module, images to a feature grid, comes before the patches, which are then
    patches of that grid. `representation_size` inserts a tanh layer before the head.
    `stochastic_depth` is the last block's rate; it grows linearly from 0 in the first.

    Returns (call): `tokens` [B, T, D] after the final norm, class token first; `pooled`
    [B, D], exactly what the head multiplies; `logits` [B, C]. Float32.

    Raises:
        ValueError: the patch does not divide the image; heads do not divide the width.

    Source: paper sec. 3.1, eq. 1-4; initialisation as in the paper's code.
    """

    num_classes: int
    patch_size: int | tuple[int, int]
    width: int
    depth: int
    mlp_width: int
    num_heads: int
    pool: Literal["cls", "gap", "map"] = "cls"
    stem: nn.Module | None = None
    pooling: nn.Module | None = None
    position: Literal["learned", "sincos2d"] = "learned"
    representation_size: int | None = None
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    norm_epsilon: float = 1e-6
    gelu: Literal["tanh", "erf"] = "tanh"
    head_bias_init: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W channels"], *, train: bool = False
    ) -> dict[str, Array]:
        x = images if self.stem is None else self.stem(images)
        x = PatchEmbedding(self.patch_size, self.width, self.dtype, name="embedding")(x)
        rows, columns = x.shape[1:3]
        x = x.reshape(x.shape[0], -1, self.width)  # [B, T, D]
        if self.position == "sincos2d":
            x = x + sincos2d(rows, columns, self.width).astype(x.dtype)
        if self.pool == "cls":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
            cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([cls, x], axis=1)
        if self.position == "learned":
            shape = (1, x.shape[1], self.width)
            normal = nn.initializers.normal(0.02)  # as in BERT
            x = x + self.param("pos_embedding", normal, shape).astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        # `train` is Python control flow inside, so remat must not trace it.
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for layer in range(self.depth):
            x = block(
                num_heads=self.num_heads,
                mlp_width=self.mlp_width,
                dropout=self.dropout,
                drop_path=self.stochastic_depth * layer / max(self.depth - 1, 1),
                norm_epsilon=self.norm_epsilon,
                gelu=self.gelu,
                dtype=self.dtype,
                name=f"block_{layer}",
            )(x, train)
        tokens = layer_norm(self.norm_epsilon, "encoder_norm")(x)

        if self.pooling is not None:
            pooled = self.pooling(tokens, train=train).astype(jnp.float32)
        elif self.pool == "cls":
            pooled = tokens[:, 0]
        elif self.pool == "gap":
            pooled = tokens.mean(axis=1)
        else:
            pooled = AttentionPooling(
                num_heads=self.num_heads,
                mlp_width=self.mlp_width,
                norm_epsilon=self.norm_epsilon,
                gelu=self.gelu,
                dtype=self.dtype,
                name="attention_pooling",
            )(tokens)
        if self.representation_size is not None:
            pooled = jnp.tanh(
                nn.Dense(self.representation_size, name="pre_logits")(pooled)
            )
        outputs = {"tokens": tokens, "pooled": pooled}
        if self.num_classes:
            outputs["logits"] = nn.Dense(
                self.num_classes,
                kernel_init=nn.initializers.zeros,
                bias_init=nn.initializers.constant(self.head_bias_init),
                name="head",
            )(pooled)
        return outputs


class PatchEmbedding(nn.Module):
    """Each P x P patch times one matrix: a convolution with stride P (paper eq. 1).

    Computed as reshape and matrix product, which on a CPU is twice as fast as the
    convolution; the kernel [P, P, channels, D] is the convolution's own.
    """

    patch_size: int | tuple[int, int]
    width: int
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
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        x = images.astype(self.dtype).reshape(b, h // ph, ph, w // pw, pw, c)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // ph, w // pw, ph * pw * c)
        x = x @ kernel.reshape(-1, self.width).astype(self.dtype)
        return x + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class Block(nn.Module):
    """x + MSA(LN(x)), then x + MLP(LN(x)) (paper eq. 2 and 3): the norm comes first.

    `drop_path` leaves out a branch for a whole example (Huang et al., 2016).
    """

    num_heads: int
    mlp_width: int
    dropout: float
    drop_path: float
    norm_epsilon: float
    gelu: str
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], train: bool) -> Float[Array, "B T D"]:
        def residual(branch: jax.Array) -> jax.Array:
            branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
            per_example = nn.Dropout(self.drop_path, broadcast_dims=(1, 2))
            return per_example(branch, deterministic=not train)

        y = layer_norm(self.norm_epsilon, "norm_1")(x).astype(self.dtype)
        x = x + residual(
            MultiHeadAttention(self.num_heads, dtype=self.dtype, name="attention")(y, y)
        )
        y = layer_norm(self.norm_epsilon, "norm_2")(x).astype(self.dtype)
        mlp = MLP(self.mlp_width, self.dropout, self.gelu, self.dtype, name="mlp")
        x = x + residual(mlp(y, train))
        self.sow("intermediates", "block_output", x)
        return x


class MLP(nn.Module):
    """Dense -> GELU -> Dense, dropout between them."""

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
    """A learned probe attends to all tokens, then x + MLP(LN(x)) (big_vision MAPHead)."""

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


def layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    """Two-pass layer normalisation in float32.

    The paper's code computes the variance as E[x^2] - E[x]^2, which loses digits where the
    mean is large; the two agree within the golden numbers' tolerance.
    """
    return nn.LayerNorm(epsilon, use_fast_variance=False, dtype="float32", name=name)


def sincos2d(height: int, width: int, channels: int) -> Float[Any, "1 T D"]:
    """[sin x, cos x, sin y, cos y] at channels/4 frequencies from 1 to 1/10000, both
    ends included.

    Raises:
        ValueError: `channels` is not divisible by 4.

    Source: Beyer et al. 2022; big_vision `posemb_sincos_2d` (MAE and scenic leave out the
    last frequency).
    """
    if channels % 4:
        raise ValueError(
            f"position='sincos2d' needs a width divisible by 4, not {channels}; change "
            "config.model.width or use position='learned'."
        )
    y, x = np.mgrid[:height, :width]
    omega = 1e4 ** -(np.arange(channels // 4) / max(channels // 4 - 1, 1))
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return jnp.asarray(table[None], jnp.float32)
