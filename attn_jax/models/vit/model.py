"""The Vision Transformer, with the options of the code bases that publish ViTs.

Axes: B batch, H W image, P patches, T tokens, D width, C classes.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from attn_jax.attention import MultiHeadAttention, check_attention, layer_norm
from attn_jax.bounds import (
    Classes,
    Count,
    Depth,
    NonNegativeFloat,
    Pixels,
    Probability,
    Width,
)
from attn_jax.layers import apply_layers
from attn_jax.models.vit.blocks import AttentionPooling, Block, PatchEmbedding


class Dialect(NamedTuple):
    """What differs between the four code bases that publish ViTs."""

    gelu: Literal["tanh", "erf"]
    norm_epsilon: float
    position_on: Literal["all", "patches"]  # which tokens have a learned position
    norm_after_pool: bool  # has an effect only if pool="gap"


DIALECTS = {
    "google": Dialect("tanh", 1e-6, "all", False),
    "big_vision": Dialect("tanh", 1e-6, "patches", False),
    "hf": Dialect("erf", 1e-12, "all", False),
    "timm": Dialect("erf", 1e-6, "all", True),
}


class ViT(nn.Module):
    """Patches -> tokens -> pre-norm encoder -> pooled representation -> logits.

    Tokens are the class token, the registers, and the patches row by row.

    Attributes:
        num_classes: C; 0 omits the head.
        pool: "cls" takes the class token, "gap" the mean of the patches; "map" attends from
            a learned probe to the patches (Zhai et al., 2022).
        stem: a module from images to a feature grid, from which patches are taken.
        pooling: a module from all tokens to [B, D] that replaces `pool`.
        attention: a module with the call of `MultiHeadAttention`, such as
            `attn_jax.models.hopfield.HopfieldAttention`; each block has its own copy. None:
            that of the paper. It replaces `qkv_bias`, `qk_norm` and `attention_dropout`.
        class_token: whether there is one. None: only if `pool` is "cls".
        registers: number of extra learned tokens (Darcet et al., 2024).
        position: "sincos2d" is fixed and added to patches only (Beyer et al., 2022).
        representation_size: width of a tanh layer before the head. None: no such layer.
        dialect: which code base is followed where they differ, see `DIALECTS`. `gelu`,
            `norm_epsilon`, `norm_after_pool` and `position_on` ("all" tokens or
            "patches" have a learned position) override its choices.
        norm_after_pool: normalize the pooled mean instead of every token.
        pre_norm: normalize before the first block; the patch embedding has no bias.
        layer_scale: initial factor per channel on each branch (Touvron et al., 2021).
            None: no factor.
        qk_norm: normalize queries and keys over the channels of a head.
        stochastic_depth: rate of the last block; it rises linearly from 0 at the first.
        mask_token: declare a learned embedding for masked patches.
        patch_outputs: width of a linear head on every patch. 0: no such head.
        remat: compute the values of a block again in the backward pass instead of keeping them.
        scan_layers: compile one block, as a loop over all; see `attn_jax.layers.apply_layers`.

    Call: `images` [B, H, W, c] in [-1, 1]. `patch_source` [B, P]: index of the patch whose
    embedding each position gets. `patch_mask` [B, P]: where to replace the embedding by the
    mask token, after `patch_source`.

    Returns (call): `tokens` [B, T, D] after the final norm (before it if
    `norm_after_pool`); `pooled` [B, D], the input of the head; `logits` [B, C];
    `patch_logits` [B, P, patch_outputs]. Float32.

    Raises:
        ValueError: the image is not divisible by `patch_size`, or the width by
            `num_heads`; `pool` needs a class token, or `patch_mask` a mask token, that the
            model does not have; a field that `attention` replaces is set, too.

    Source: paper sec. 3.1, eq. 1-4; initialization as in the paper's code.
    """

    num_classes: Classes
    patch_size: Pixels | tuple[Pixels, Pixels]
    width: Width
    depth: Depth
    mlp_width: Width
    num_heads: Width
    pool: Literal["cls", "gap", "map"] = "cls"
    stem: nn.Module | None = None
    pooling: nn.Module | None = None
    attention: nn.Module | None = None
    class_token: bool | None = None
    registers: Count = 0
    position: Literal["learned", "sincos2d"] = "learned"
    representation_size: Width | None = None
    dialect: Literal["google", "big_vision", "hf", "timm"] = "google"
    gelu: Literal["tanh", "erf", "quick"] | None = None
    norm_epsilon: NonNegativeFloat | None = None
    position_on: Literal["all", "patches"] | None = None
    norm_after_pool: bool | None = None
    pre_norm: bool = False
    layer_scale: float | None = None
    qkv_bias: bool = True
    qk_norm: bool = False
    dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    stochastic_depth: Probability = 0.0
    head_bias_init: float = 0.0
    mask_token: bool = False
    patch_outputs: Classes = 0
    dtype: str = "float32"
    remat: bool = False
    scan_layers: bool = False

    @property
    def rules(self) -> Dialect:
        """The dialect with the overrides of this module's fields."""
        rules = DIALECTS[self.dialect]
        changed = {name: getattr(self, name) for name in Dialect._fields}
        rules = rules._replace(**{k: v for k, v in changed.items() if v is not None})
        return rules._replace(
            norm_after_pool=rules.norm_after_pool and self.pool == "gap"
        )

    @property
    def prefix(self) -> int:
        """Number of tokens before the first patch."""
        given = self.class_token
        return int(self.pool == "cls" if given is None else given) + self.registers

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W channels"],
        *,
        patch_mask: Bool[Array, "B P"] | None = None,
        patch_source: Int[Array, "B P"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        rules, prefix = self.rules, self.prefix
        if self.pool == "cls" and prefix == self.registers:
            raise ValueError(
                "pool='cls' needs the class token; set config.model.class_token to True "
                "or config.model.pool to 'gap' or 'map'."
            )
        x = images if self.stem is None else self.stem(images)
        x = PatchEmbedding(
            self.patch_size,
            self.width,
            use_bias=not self.pre_norm,
            dtype=self.dtype,
            name="embedding",
        )(x)
        rows, columns = x.shape[1:3]
        x = x.reshape(x.shape[0], -1, self.width)
        if patch_source is not None:
            x = jnp.take_along_axis(x, patch_source[..., None], axis=1)
        x = self.mask_patches(x, patch_mask)
        x = self.add_prefix_and_positions(x, (rows, columns))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if self.pre_norm:
            x = layer_norm(rules.norm_epsilon, "pre_norm")(x).astype(self.dtype)

        last = max(self.depth - 1, 1)
        x = apply_layers(
            self,
            Block,
            self.make_block_fields,
            self.depth,
            x,
            train=train,
            scan=self.scan_layers,
            remat=self.remat,
            rates=[self.stochastic_depth * i / last for i in range(self.depth)],
        )
        norm = layer_norm(rules.norm_epsilon, "encoder_norm")
        tokens = x.astype(jnp.float32) if rules.norm_after_pool else norm(x)

        patches = tokens[:, prefix:]
        if self.pooling is not None:
            pooled = self.pooling(tokens, train=train).astype(jnp.float32)
        elif self.pool == "cls":
            pooled = tokens[:, 0]
        elif self.pool == "gap":
            pooled = patches.mean(axis=1)
            pooled = norm(pooled) if rules.norm_after_pool else pooled
        else:
            pooled = AttentionPooling(
                num_heads=self.num_heads,
                mlp_width=self.mlp_width,
                norm_epsilon=rules.norm_epsilon,
                gelu=rules.gelu,
                dtype=self.dtype,
                name="attention_pooling",
            )(patches)
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
        if self.patch_outputs:
            head = nn.Dense(self.patch_outputs, name="patch_head")
            outputs["patch_logits"] = head(patches)
        return outputs

    def make_block_fields(self) -> dict[str, Any]:
        return {
            "attention": self.make_attention(),
            "mlp_width": self.mlp_width,
            "layer_scale": self.layer_scale,
            "dropout": self.dropout,
            "norm_epsilon": self.rules.norm_epsilon,
            "gelu": self.rules.gelu,
            "dtype": self.dtype,
        }

    def make_attention(self) -> nn.Module:
        """The attention of one block, which becomes its submodule."""
        if self.attention is None:
            return MultiHeadAttention(
                self.num_heads,
                dropout=self.attention_dropout,
                qkv_bias=self.qkv_bias,
                qk_norm=self.rules.norm_epsilon if self.qk_norm else None,
                dtype=self.dtype,
                parent=None,
            )
        replaced = {
            "attention_dropout": (self.attention_dropout, 0.0),
            "qkv_bias": (self.qkv_bias, True),
            "qk_norm": (self.qk_norm, False),
        }
        check_attention(self.attention, replaced, self.num_heads)
        return self.attention.clone(parent=None)

    def mask_patches(
        self, x: Float[Array, "B P D"], mask: Bool[Array, "B P"] | None
    ) -> Float[Array, "B P D"]:
        if not self.mask_token:
            if mask is None:
                return x
            raise ValueError(
                "patch_mask is given, but the model has no mask token; set "
                "config.model.mask_token to True."
            )
        normal = nn.initializers.normal(0.02)
        token = self.param("mask_token", normal, (1, 1, self.width)).astype(x.dtype)
        return x if mask is None else jnp.where(mask[..., None], token, x)

    def add_prefix_and_positions(
        self, x: Float[Array, "B P D"], grid: tuple[int, int]
    ) -> Float[Array, "B T D"]:
        """Prepends class token and registers, and adds the position embeddings."""
        prefix = []
        if self.prefix > self.registers:
            prefix.append(self.param("cls", nn.initializers.zeros, (1, 1, self.width)))
        if self.registers:
            normal = nn.initializers.normal(0.02)
            shape = (1, self.registers, self.width)
            prefix.append(self.param("registers", normal, shape))

        def prepend(x: jax.Array) -> jax.Array:
            rows = [jnp.broadcast_to(p, (x.shape[0], *p.shape[1:])) for p in prefix]
            return jnp.concatenate([*(r.astype(x.dtype) for r in rows), x], axis=1)

        if self.position == "sincos2d":
            return prepend(x + sincos2d(*grid, self.width).astype(x.dtype))
        normal = nn.initializers.normal(0.02)  # as in BERT
        length = x.shape[1] + (self.prefix if self.rules.position_on == "all" else 0)
        positions = self.param("pos_embedding", normal, (1, length, self.width))
        if self.rules.position_on == "all":
            return prepend(x) + positions.astype(x.dtype)
        return prepend(x + positions.astype(x.dtype))


def sincos2d(height: int, width: int, channels: int) -> Float[Any, "1 T D"]:
    """[sin x, cos x, sin y, cos y] at channels/4 frequencies from 1 to 1/10000 inclusive.

    Raises:
        ValueError: `channels` is not divisible by 4.

    Source: Beyer et al. 2022; big_vision `posemb_sincos_2d`. (MAE and scenic omit the last
    frequency.)
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
