"""Vision Transformer: an image is worth 16x16 words (Dosovitskiy et al., 2021).

Axes: B batch, H W image, P patches, T tokens, D width, C classes.

The paper's code takes the variance of a layer norm as E[x^2] - E[x]^2, which loses digits
where the mean is large; here it takes two passes. The two agree within the golden numbers'
tolerance.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from attn_jax.attention import MultiHeadAttention, layer_norm

GELU: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "erf": lambda x: jax.nn.gelu(x, approximate=False),
    "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


class Dialect(NamedTuple):
    """What differs between the four code bases that ViTs are published in."""

    gelu: Literal["tanh", "erf"]
    norm_epsilon: float
    position_on: Literal["all", "patches"]  # tokens with a learned position
    norm_after_pool: bool  # where the patches' mean is the pooled representation


DIALECTS = {
    "google": Dialect("tanh", 1e-6, "all", False),
    "big_vision": Dialect("tanh", 1e-6, "patches", False),
    "hf": Dialect("erf", 1e-12, "all", False),
    "timm": Dialect("erf", 1e-6, "all", True),
}


class ViT(nn.Module):
    """Patches -> tokens -> pre-norm encoder -> pooled representation -> logits.

    Tokens are the class token, the registers, the patches in rows. `pool`: "cls" takes
    the class token, "gap" the mean of the patches, "map" attends from a learned probe to
    the patches (Zhai et al., 2022). `num_classes` 0 leaves out the head.

    Attributes:
        stem: a module, images to a feature grid, whose patches are then taken.
        pooling: a module, all tokens to [B, D], in place of what `pool` does to them.
        class_token: None: where `pool` is "cls".
        registers: learned tokens that nothing reads (Darcet et al., 2024).
        position: "sincos2d" is fixed and on patches only (Beyer et al., 2022).
        representation_size: width of a tanh layer before the head; None: none.
        dialect: whose code is followed where they differ, see `DIALECTS`; its choices
            are overruled by `gelu`, `norm_epsilon`, `norm_after_pool` and `position_on`,
            which says whether learned positions are "all" tokens' or the "patches'".
        norm_after_pool: one norm of the pooled mean instead of one of every token.
        pre_norm: a norm before the first block; the patches then have no bias.
        layer_scale: start of a factor per channel on each branch; None: no factor
            (Touvron et al., 2021).
        qk_norm: a norm of queries and keys over the channels of a head.
        stochastic_depth: the last block's rate; it grows linearly from 0 in the first.
        mask_token: there is a learned embedding for patches that are hidden.
        patch_outputs: width of a linear head on every patch; 0: none.

    Call: `images` [B, H, W, c] in [-1, 1]. `patch_source` [B, P]: the patch of the same
    image whose embedding stands at each place. `patch_mask` [B, P]: True puts the mask
    token there, after that.

    Returns (call): `tokens` [B, T, D] after the final norm (before it, where the norm
    follows pooling); `pooled` [B, D], exactly what the head multiplies; `logits` [B, C];
    `patch_logits` [B, P, patch_outputs]. Float32.

    Raises:
        ValueError: the patch does not divide the image; heads do not divide the width;
            a class token is pooled or masks are asked for where there are none.

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
    class_token: bool | None = None
    registers: int = 0
    position: Literal["learned", "sincos2d"] = "learned"
    representation_size: int | None = None
    dialect: Literal["google", "big_vision", "hf", "timm"] = "google"
    gelu: Literal["tanh", "erf", "quick"] | None = None
    norm_epsilon: float | None = None
    position_on: Literal["all", "patches"] | None = None
    norm_after_pool: bool | None = None
    pre_norm: bool = False
    layer_scale: float | None = None
    qkv_bias: bool = True
    qk_norm: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    head_bias_init: float = 0.0
    mask_token: bool = False
    patch_outputs: int = 0
    dtype: str = "float32"
    remat: bool = False

    @property
    def rules(self) -> Dialect:
        """The dialect with what the fields overrule."""
        rules = DIALECTS[self.dialect]
        changed = {name: getattr(self, name) for name in Dialect._fields}
        rules = rules._replace(**{k: v for k, v in changed.items() if v is not None})
        return rules._replace(
            norm_after_pool=rules.norm_after_pool and self.pool == "gap"
        )

    @property
    def prefix(self) -> int:
        """How many tokens come before the first patch."""
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
        x = self.hide(x, patch_mask)
        x = self.with_prefix_and_positions(x, (rows, columns))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if self.pre_norm:
            x = layer_norm(rules.norm_epsilon, "pre_norm")(x).astype(self.dtype)

        # `train` is Python control flow inside, so remat must not trace it.
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for layer in range(self.depth):
            x = block(
                num_heads=self.num_heads,
                mlp_width=self.mlp_width,
                qkv_bias=self.qkv_bias,
                qk_norm=self.qk_norm,
                layer_scale=self.layer_scale,
                dropout=self.dropout,
                attention_dropout=self.attention_dropout,
                drop_path=self.stochastic_depth * layer / max(self.depth - 1, 1),
                norm_epsilon=rules.norm_epsilon,
                gelu=rules.gelu,
                dtype=self.dtype,
                name=f"block_{layer}",
            )(x, train)
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

    def hide(
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

    def with_prefix_and_positions(
        self, x: Float[Array, "B P D"], grid: tuple[int, int]
    ) -> Float[Array, "B T D"]:
        """Class token and registers before the patches; positions on what has one."""
        prefix = []
        if self.prefix > self.registers:
            prefix.append(self.param("cls", nn.initializers.zeros, (1, 1, self.width)))
        if self.registers:
            normal = nn.initializers.normal(0.02)
            shape = (1, self.registers, self.width)
            prefix.append(self.param("registers", normal, shape))

        def behind_prefix(x: jax.Array) -> jax.Array:
            rows = [jnp.broadcast_to(p, (len(x), *p.shape[1:])) for p in prefix]
            return jnp.concatenate([*(r.astype(x.dtype) for r in rows), x], axis=1)

        if self.position == "sincos2d":
            return behind_prefix(x + sincos2d(*grid, self.width).astype(x.dtype))
        normal = nn.initializers.normal(0.02)  # as in BERT
        length = x.shape[1] + (self.prefix if self.rules.position_on == "all" else 0)
        positions = self.param("pos_embedding", normal, (1, length, self.width))
        if self.rules.position_on == "all":
            return behind_prefix(x) + positions.astype(x.dtype)
        return behind_prefix(x + positions.astype(x.dtype))


class PatchEmbedding(nn.Module):
    """Each P x P patch times one matrix: a convolution with stride P (paper eq. 1).

    Computed as reshape and matrix product, which on a CPU is twice as fast as the
    convolution; the kernel [P, P, channels, D] is the convolution's own.
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
    """x + MSA(LN(x)), then x + MLP(LN(x)) (paper eq. 2 and 3): the norm comes first.

    `layer_scale` multiplies a branch by a learned factor per channel; `drop_path` leaves it
    out for a whole example (Huang et al., 2016).
    """

    num_heads: int
    mlp_width: int
    qkv_bias: bool
    qk_norm: bool
    layer_scale: float | None
    dropout: float
    attention_dropout: float
    drop_path: float
    norm_epsilon: float
    gelu: str
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], train: bool) -> Float[Array, "B T D"]:
        def residual(branch: jax.Array, number: int) -> jax.Array:
            branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                scale = self.param(f"scale_{number}", init, branch.shape[-1:])
                branch = branch * scale.astype(branch.dtype).reshape(1, 1, -1)
            per_example = nn.Dropout(self.drop_path, broadcast_dims=(1, 2))
            return per_example(branch, deterministic=not train)

        y = layer_norm(self.norm_epsilon, "norm_1")(x).astype(self.dtype)
        attend = MultiHeadAttention(
            self.num_heads,
            dropout=self.attention_dropout,
            qkv_bias=self.qkv_bias,
            qk_norm=self.norm_epsilon if self.qk_norm else None,
            dtype=self.dtype,
            name="attention",
        )
        x = x + residual(attend(y, y, train=train), 1)
        y = layer_norm(self.norm_epsilon, "norm_2")(x).astype(self.dtype)
        mlp = MLP(self.mlp_width, self.dropout, self.gelu, self.dtype, name="mlp")
        x = x + residual(mlp(y, train), 2)
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
