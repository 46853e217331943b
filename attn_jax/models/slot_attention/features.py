"""Object discovery in the features of a frozen encoder (DINOSAUR; Seitzer et al., 2023).

Axes: B batch, H W image, N patches (row by row), K slots, D slot width, F feature width, h heads.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from attn_jax.attention import (
    MultiHeadAttention,
    attention_weights,
    layer_norm,
    mix,
)
from attn_jax.bounds import Depth, Width
from attn_jax.models.slot_attention.grids import Adapter, read_patches
from attn_jax.models.slot_attention.keras import NORM_EPSILON


class SlotAttentionFeatureAutoEncoder(nn.Module):
    """Image -> features of a backbone -> slots -> features and a mask per slot -> features.

    Real images have too many details for slots to explain every pixel; features of a trained
    ViT are alike where the objects are. `config.freeze=["backbone/.*"]` keeps the backbone as
    `config.init_from=[[CHECKPOINT, "backbone", "auto"]]` loads it. Whether or not it is
    frozen, the features to be reconstructed have no gradient, because equal features everywhere
    would be the easiest to reconstruct.

    Attributes:
        backbone: images [B, H, W, 3] -> {"tokens"} [B, T, F], such as a ViT, whose tokens
            before the patches are left out.
        grouping: a `SlotAttention`, or a module with its call.
        decoder: a `FeatureMLPDecoder` or a `FeatureTransformerDecoder`.
        remat: recompute the decoder in the backward pass.

    Call: `images` as the backbone takes them; the rest as in `SlotAttention`.

    Returns (call): those of `grouping`, where N are the patches; `features` and
    `feature_reconstruction` [B, N, F]; `masks` [B, K, H, W], the decoder's for each patch,
    enlarged bilinearly, which sum to 1 over slots. Float32.

    Raises:
        ValueError: the patches form no grid of the image's shape; see also `SlotAttention`.

    Source: Seitzer et al. 2023, sec. 3.
    """

    backbone: nn.Module
    grouping: nn.Module
    decoder: nn.Module
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W c"],
        *,
        sample_keys: Key[Array, " B"] | None = None,
        initial_slots: Float[Array, "B K D"] | None = None,
        num_slots: int | None = None,
        iterations: int | None = None,
        every_iteration: bool = False,
        train: bool = False,
    ) -> dict[str, Array]:
        del train  # the backbone is no object of training
        features = read_patches(self.backbone, images)
        found = self.grouping(
            Adapter(self.dtype, name="adapter")(features),
            sample_keys=sample_keys,
            initial_slots=initial_slots,
            num_slots=num_slots,
            iterations=iterations,
            every_iteration=every_iteration,
        )

        def decode(decoder: nn.Module, *arrays: jax.Array) -> Any:
            return decoder(*arrays)

        decode = nn.remat(decode) if self.remat else decode
        target = jax.lax.stop_gradient(features)
        reconstruction, masks = decode(self.decoder, found["slots"], target)
        return found | {
            "features": target,
            "feature_reconstruction": reconstruction,
            "masks": enlarge(masks, images.shape[1:3]),
        }


class FeatureMLPDecoder(nn.Module):
    """The same MLP at every patch, from slot plus learned position to features and mask.

    Attributes:
        widths: of its hidden layers.

    Call: slots [B, K, D] and the features [B, N, F], of which it takes only the shape.

    Returns (call): features [B, N, F]; masks [B, K, N], which sum to 1 over slots. Float32.

    Source: Seitzer et al. 2023, sec. 3.2 and supplement; after Watters et al. 2019.
    """

    widths: tuple[Width, ...] = (1024, 1024, 1024)
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, slots: Float[Array, "B K D"], features: Float[Array, "B N F"]
    ) -> tuple[Float[Array, "B N F"], Float[Array, "B K N"]]:
        _, N, F = features.shape
        shape = (1, 1, N, slots.shape[-1])
        position = self.param("position", nn.initializers.normal(0.02), shape)
        x = (slots[:, :, None] + position).astype(self.dtype)
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(x)
            x = jax.nn.relu(x)
        x = nn.Dense(F + 1, dtype=self.dtype, name="out")(x).astype(jnp.float32)
        masks = jax.nn.softmax(x[..., -1], axis=1)
        return (masks[..., None] * x[..., :-1]).sum(axis=1), masks


class FeatureTransformerDecoder(nn.Module):
    """Predicts the features of each patch from those of the patches before it and the slots.

    Pre-norm blocks: causal attention to patches, attention to slots, MLP. The mask of a slot is
    its attention in the last block, the mean over heads.

    Call, returns: as in `FeatureMLPDecoder`.

    Source: Seitzer et al. 2023, sec. 3.2 and supplement; after Singh et al. 2022 (SLATE).
    """

    depth: Depth = 4
    num_heads: Width = 4
    mlp_width: Width = 1024
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, slots: Float[Array, "B K D"], features: Float[Array, "B N F"]
    ) -> tuple[Float[Array, "B N F"], Float[Array, "B K N"]]:
        B, N, F = features.shape
        normal = nn.initializers.normal(0.02)
        first = self.param("first", normal, (1, 1, F))
        position = self.param("position", normal, (1, N, F))
        # A patch must not see itself, so everything moves by one.
        before = jnp.concatenate(
            [jnp.broadcast_to(first, (B, 1, F)), features[:, :-1]], axis=1
        )
        x: Any = before + position
        weights: Any = None
        for i in range(self.depth):
            block = FeatureDecoderBlock(
                self.num_heads, self.mlp_width, self.dtype, name=f"block_{i}"
            )
            x, weights = block(x, slots)
        x = layer_norm(NORM_EPSILON, "norm")(x)
        return nn.Dense(F, name="out")(x), weights.mean(axis=1).swapaxes(1, 2)


class FeatureDecoderBlock(nn.Module):
    """A block of `FeatureTransformerDecoder`; returns also the attention to slots."""

    num_heads: Width
    mlp_width: Width
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N F"], slots: Float[Array, "B K D"]
    ) -> tuple[Float[Array, "B N F"], Float[Array, "B h N K"]]:
        _, N, F = x.shape
        if F % self.num_heads:
            raise ValueError(
                f"the features' width {F} must be divisible by num_heads={self.num_heads}; "
                "change config.model.decoder.num_heads."
            )

        def norm(name: str) -> jax.Array:
            return layer_norm(NORM_EPSILON, name)(x).astype(self.dtype)

        def heads(y: jax.Array, name: str) -> jax.Array:
            shape = (self.num_heads, F // self.num_heads)
            return nn.DenseGeneral(shape, dtype=self.dtype, name=name)(y)

        attend = MultiHeadAttention(self.num_heads, dtype=self.dtype, name="attention")
        y = norm("norm_attention")
        causal = jnp.tri(N, dtype=bool)[None, None]
        x = x + attend(y, y, causal).astype(jnp.float32)
        query = heads(norm("norm_slots"), "query")
        key, value = heads(slots, "key"), heads(slots, "value")
        weights = attention_weights(query, key, scale=query.shape[-1] ** -0.5)
        won = mix(weights, value).reshape(x.shape)
        x = x + nn.Dense(F, dtype=self.dtype, name="out")(won).astype(jnp.float32)
        hidden = nn.Dense(self.mlp_width, dtype=self.dtype, name="mlp_1")(
            norm("norm_mlp")
        )
        y = nn.Dense(F, dtype=self.dtype, name="mlp_2")(jax.nn.gelu(hidden))
        return x + y.astype(jnp.float32), weights


def enlarge(
    masks: Float[Array, "B K N"], size: tuple[int, ...]
) -> Float[Array, "B K H W"]:
    """The masks of patches as masks of pixels, bilinearly."""
    N, (H, W) = masks.shape[-1], size
    rows = round((N * H / W) ** 0.5)
    if rows == 0 or N % rows or H * (N // rows) != W * rows:
        raise ValueError(
            f"{N} features form no grid of the shape of {H}x{W} pixels; the backbone must have "
            "square patches."
        )
    grid = masks.reshape(*masks.shape[:2], rows, N // rows)
    return jax.image.resize(grid, (*masks.shape[:2], H, W), "bilinear")
