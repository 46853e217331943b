"""BERT: a bidirectional Transformer encoder (Devlin et al., 2019).

Axes: B batch, S sequence, D width, V vocabulary, P positions predicted.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attn_jax.attention import MultiHeadAttention, layer_norm
from attn_jax.bounds import Depth, NonNegativeFloat, Probability, Width

Activation = Callable[[jax.Array], jax.Array]
Initializer = nn.initializers.Initializer

GELU: dict[str, Activation] = {
    "tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "erf": lambda x: jax.nn.gelu(x, approximate=False),
}
# {dialect: (GELU, initializer of all matrices and embedding tables)}
DIALECTS: dict[str, tuple[str, Initializer]] = {
    "google": ("tanh", nn.initializers.truncated_normal(0.02)),
    "hf": ("erf", nn.initializers.normal(0.02)),
}


class Bert(nn.Module):
    """Token, position and segment embeddings -> post-norm encoder -> heads.

    `dialect` names the code that is followed: "google" uses the tanh GELU and truncated
    normal initialization, "hf" (transformers) the exact GELU and normal initialization.
    `gelu` overrides it, for a Hugging Face model trained with `gelu_new`.

    `heads` may contain "mlm", masked language modeling with the token table as decoder,
    and "nsp", next-sentence prediction from the pooled first token. `dropout` applies to
    the embeddings and to each branch, `attention_dropout` to the attention weights.

    Returns (call): `tokens` [B, S, D]; with `pooler`: `pooled` [B, D]; `mlm_logits`
    [B, P, V] at `mlm_positions`, or [B, S, V] without them; `nsp_logits` [B, 2], class 0
    if the second sentence follows the first, 1 if it was drawn at random. Float32.

    Raises:
        ValueError: the sequence is longer than the position table; a head is unknown; "nsp"
            is used without the pooler; the width is not divisible by `num_heads`.

    Source: google-research/bert modeling.py, run_pretraining.py; paper sec. 3.
    """

    vocab_size: Width
    width: Width
    depth: Depth
    mlp_width: Width
    num_heads: Width
    max_positions: Width = 512
    num_segments: Width = 2
    heads: tuple[str, ...] = ("mlm", "nsp")
    pooler: bool = True
    dialect: Literal["google", "hf"] = "google"
    gelu: Literal["tanh", "erf"] | None = None
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    norm_epsilon: NonNegativeFloat = 1e-12
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        token_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | None = None,
        mask: Bool[Array, "B S"] | None = None,
        mlm_positions: Int[Array, "B P"] | None = None,
        *,
        train: bool = False,
    ) -> dict[str, Array]:
        if unknown := sorted(set(self.heads) - {"mlm", "nsp"}):
            raise ValueError(
                f"config.model.heads: {unknown[0]!r} is not a head; use 'mlm' or 'nsp'."
            )
        if "nsp" in self.heads and not self.pooler:
            raise ValueError(
                "config.model.heads: 'nsp' reads the pooled token; set "
                "config.model.pooler to True or leave out 'nsp'."
            )
        length = token_ids.shape[1]
        if length > self.max_positions:
            raise ValueError(
                f"the sequence has {length} tokens, but max_positions="
                f"{self.max_positions}; shorten config.task.sequence_length or raise "
                "config.model.max_positions (a trained table cannot grow)."
            )
        default_gelu, init = DIALECTS[self.dialect]
        gelu = GELU[self.gelu or default_gelu]

        def embed(size: int, name: str) -> nn.Embed:
            return nn.Embed(size, self.width, embedding_init=init, name=name)

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

        if segment_ids is None:
            segment_ids = jnp.zeros_like(token_ids)
        table = embed(self.vocab_size, "token_embedding")
        x = table(token_ids)
        x = x + embed(self.num_segments, "segment_embedding")(segment_ids)
        places = jnp.arange(length)[None]
        x = x + embed(self.max_positions, "position_embedding")(places)
        x = layer_norm(self.norm_epsilon, "embedding_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        self.sow("intermediates", "embedding_output", x)

        keys = None if mask is None else mask[:, None, None, :]
        # `train` must stay a Python bool inside remat.
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        for layer in range(self.depth):
            x = block(
                num_heads=self.num_heads,
                mlp_width=self.mlp_width,
                activation=gelu,
                kernel_init=init,
                dropout=self.dropout,
                attention_dropout=self.attention_dropout,
                norm_epsilon=self.norm_epsilon,
                dtype=self.dtype,
                name=f"block_{layer}",
            )(x, keys, train)

        outputs = {"tokens": x}
        if self.pooler:
            pooled = jnp.tanh(dense(self.width, "pooler")(x[:, 0]))
            outputs["pooled"] = pooled.astype(jnp.float32)
        if "mlm" in self.heads:
            # Computing only the masked positions takes a fifth of the time and memory.
            if mlm_positions is not None:
                x = jnp.take_along_axis(x, mlm_positions[:, :, None], axis=1)
            hidden = gelu(dense(self.width, "mlm_dense")(x))
            hidden = layer_norm(self.norm_epsilon, "mlm_norm")(hidden)
            decoder = table.embedding.astype(self.dtype)
            logits = jnp.einsum("bpd,vd->bpv", hidden.astype(self.dtype), decoder)
            bias = self.param("mlm_bias", nn.initializers.zeros, (self.vocab_size,))
            outputs["mlm_logits"] = logits.astype(jnp.float32) + bias[None, None]
        if "nsp" in self.heads:
            outputs["nsp_logits"] = dense(2, "nsp")(pooled).astype(jnp.float32)
        return outputs


class Block(nn.Module):
    """Post-norm: LN(x + attention(x)), then LN(x + MLP(x)) (paper sec. 3).

    As in the original code, there is no dropout inside the MLP.
    """

    num_heads: Width
    mlp_width: Width
    activation: Activation
    kernel_init: Initializer
    dropout: Probability
    attention_dropout: Probability
    norm_epsilon: NonNegativeFloat
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        keys: Bool[Array, "B 1 1 S"] | None,
        train: bool,
    ) -> Float[Array, "B S D"]:
        def drop(branch: jax.Array) -> jax.Array:
            branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
            return branch.astype(jnp.float32)

        y = x.astype(self.dtype)
        attend = MultiHeadAttention(
            self.num_heads,
            dropout=self.attention_dropout,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="attention",
        )
        x = x + drop(attend(y, y, keys, train=train))
        x = layer_norm(self.norm_epsilon, "norm_1")(x)
        mlp = MLP(
            self.mlp_width, self.activation, self.kernel_init, self.dtype, name="mlp"
        )
        x = x + drop(mlp(x.astype(self.dtype)))
        x = layer_norm(self.norm_epsilon, "norm_2")(x)
        self.sow("intermediates", "block_output", x)
        return x


class MLP(nn.Module):
    """Dense -> GELU -> Dense."""

    mlp_width: Width
    activation: Activation
    kernel_init: Initializer
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features, kernel_init=self.kernel_init, dtype=self.dtype, name=name
            )

        hidden = self.activation(dense(self.mlp_width, "dense_1")(x))
        return dense(x.shape[-1], "dense_2")(hidden)
