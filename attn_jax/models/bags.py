"""Multiple instance learning: encode each instance of a bag, pool, predict one logit.

Axes: B bags, K instances, H W image, C channels, F features, D width.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attn_jax.bounds import Pixels, Probability, Width


class MeanPooling(nn.Module):
    """The mean of the unmasked patterns; zero if all are masked."""

    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        stored: Float[Array, "B K D"],
        *,
        stored_mask: Bool[Array, "B K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B D"]:
        del train  # the same in training and evaluation
        if stored_mask is None:
            stored_mask = jnp.ones(stored.shape[:2], bool)
        present = stored_mask[:, :, None].astype(jnp.float32)
        # Float32, because a sum in bfloat16 loses small addends.
        total = (stored.astype(jnp.float32) * present).sum(axis=1)
        return (total / jnp.maximum(present.sum(axis=1), 1)).astype(self.dtype)


class FlatPooling(nn.Module):
    """All patterns in one vector, zeros where they are masked.

    So a place in the bag has a weight of its own in the head: the order of the instances
    matters, and K must always be the same.

    Attributes:
        hopfield: associates the patterns with each other before, such as a `Hopfield`. None:
            they are taken as they are.
    """

    hopfield: nn.Module | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        stored: Float[Array, "B K D"],
        *,
        stored_mask: Bool[Array, "B K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B pooled"]:
        if self.hopfield is not None:
            stored = self.hopfield(stored, stored_mask=stored_mask, train=train)
        if stored_mask is not None:
            stored = jnp.where(stored_mask[:, :, None], stored, 0)
        return stored.reshape(stored.shape[0], -1).astype(self.dtype)


class GatedAttentionPooling(nn.Module):
    """The mean of the patterns, weighted by a softmax over a gated two-layer network.

    The weight of a pattern h follows from w^T (tanh(V h) * sigmoid(U h)).

    Attributes:
        width: outputs of V and of U.

    Sows the weights [B, 1, 1, K] as `attention`. A bag without instances gives zeros.

    Source: Ilse et al. 2018, eq. 9, where V, U and w have no biases.
    """

    width: Width = 128
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        stored: Float[Array, "B K D"],
        *,
        stored_mask: Bool[Array, "B K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B D"]:
        del train  # the same in training and evaluation
        if stored_mask is None:
            stored_mask = jnp.ones(stored.shape[:2], bool)

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)

        gate = nn.sigmoid(dense(self.width, "gate")(stored))
        logits = dense(1, "out")(jnp.tanh(dense(self.width, "value")(stored)) * gate)
        # Not -inf, whose softmax is nan if all are masked.
        smallest = jnp.finfo(jnp.float32).min
        logits = jnp.where(stored_mask, logits[:, :, 0].astype(jnp.float32), smallest)
        weights = jnp.where(stored_mask, nn.softmax(logits), 0)
        self.sow("intermediates", "attention", weights[:, None, None])
        pooled = jnp.einsum("bk,bkd->bd", weights, stored.astype(jnp.float32))
        return pooled.astype(self.dtype)


class ImageEncoder(nn.Module):
    """Encodes an image: convolutions with ReLU and 2x2 max-pooling, then a dense layer.

    Attributes:
        channels: output channels of each convolution.
        kernel_size: side of the kernels, in pixels.
        width: D, of the output.

    Source: adapted from Ilse et al. 2018 (table 8), where the widths are (20, 50) and 500.
    """

    channels: tuple[Width, ...]
    width: Width
    kernel_size: Pixels = 3
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "*B H W c"]) -> Float[Array, "*B D"]:
        x = images.reshape(-1, *images.shape[-3:])
        kernel = (self.kernel_size, self.kernel_size)
        for i, channels in enumerate(self.channels):
            x = nn.Conv(channels, kernel, dtype=self.dtype, name=f"conv_{i}")(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = x.reshape(*images.shape[:-3], -1)
        return nn.relu(nn.Dense(self.width, dtype=self.dtype, name="dense")(x))


class FeatureEncoder(nn.Module):
    """Encodes a vector: dense layers with ReLU (Ramsauer et al. 2021, app. A.5.2), or with SELU.

    Without widths, the vector as it is.
    """

    widths: tuple[Width, ...]
    activation: Literal["relu", "selu"] = "relu"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: Float[Array, "*B F"]) -> Float[Array, "*B D"]:
        x = features
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(x)
            x = nn.relu(x) if self.activation == "relu" else nn.selu(x)
        return x


class BagClassifier(nn.Module):
    """Encodes each instance, pools the bag, and predicts one logit per bag.

    Attributes:
        encoder: maps instances [B, K, ...] to [B, K, D], each independently.
        pooling: maps [B, K, D] with `stored_mask` [B, K] to one vector per bag.
        dropout: rate on the pooled vector.
        remat: recompute the encoder in the backward pass to save memory.

    Args (call):
        instances: images [B, K, H, W, C] or features [B, K, F], padded to K.
        mask: True at instances, False at padding, which has no influence.

    Returns (call): `pooled` [B, D], the input of the head; `logits` [B]. Float32. While
        `intermediates` are asked for, also `weights` [B, K] of the instances in the pooling, averaged
        over its heads and states; not of a pooling that sows none, such as the mean.

    Source: Ramsauer et al. 2021 section 4, "multiple instance learning"; Ilse et al.
    2018.
    """

    encoder: nn.Module
    pooling: nn.Module
    dropout: Probability = 0.0
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        instances: Float[Array, "B K *instance"],
        mask: Bool[Array, "B K"],
        *,
        train: bool = False,
    ) -> dict[str, Array]:
        def encode(encoder: nn.Module, x: jax.Array) -> jax.Array:
            return encoder(x)

        encode = nn.remat(encode) if self.remat else encode
        encoded = encode(self.encoder, instances.astype(self.dtype))
        pooled = self.pooling(encoded, stored_mask=mask, train=train)
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        pooled = pooled.astype(jnp.float32)
        logits = nn.Dense(1, name="head")(pooled)[:, 0]
        outputs = {"logits": logits, "pooled": pooled}
        sown = jax.tree.leaves(self.pooling.variables.get("intermediates", {}))
        if len(sown) == 1:
            # A pattern of zeros that a pooling appends is no instance.
            outputs["weights"] = sown[0][..., : mask.shape[1]].mean(axis=(1, 2))
        return outputs
