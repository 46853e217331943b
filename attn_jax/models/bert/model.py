"""BERT: a bidirectional Transformer encoder (Devlin et al., 2019).

Axes: *B batch, S sequence, D width, V vocabulary, P positions predicted, K sequences packed
in one row. The batch may have several axes: with multiple choice it is [questions, choices].
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attn_jax.attention import MultiHeadAttention, check_attention, layer_norm
from attn_jax.bounds import Depth, NonNegativeFloat, Probability, Width
from attn_jax.layers import apply_layers

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
    and "nsp", next-sentence prediction from the pooled first token. `head` is a module for
    fine-tuning, such as `ClassHead`; see `attn_jax.models.bert.heads`. `dropout` applies to the
    embeddings and to each branch, `attention_dropout` to the attention weights. `attention` is a
    module with the call of `MultiHeadAttention`, such as
    `attn_jax.models.hopfield.HopfieldAttention`, of which each block has its own copy; its own
    `dropout` replaces `attention_dropout`, which must be 0. `remat` computes the values of a block
    again in the backward pass; `scan_layers` compiles one block, as a loop over all (see
    `attn_jax.layers.apply_layers`).

    Several sequences may be packed in one row: `sequence_ids` numbers them from 1 (0 is padding),
    and tokens attend only to tokens of their own sequence; `position_ids` starts again in each;
    `cls_positions` are the places of their first tokens. Then `pooled` is [*B, K, D] and
    `nsp_logits` [*B, K, 2].

    Returns (call): `tokens` [*B, S, D]; with `pooler`: `pooled` [*B, D]; `mlm_logits`
    [*B, P, V] at `mlm_positions`, or [*B, S, V] without them; `nsp_logits` [*B, 2], class 0
    if the second sentence follows the first, 1 if it was drawn at random; the outputs of
    `head`. Float32.

    Raises:
        ValueError: the sequence is longer than the position table (not checked if
            `position_ids` are given: JAX reads the last row for a position that is too large);
            a head is unknown; "nsp" is used without the pooler; the width is not divisible by
            `num_heads`; `attention` has another number of heads, or `attention_dropout` is set
            beside it.

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
    head: nn.Module | None = None
    attention: nn.Module | None = None
    pooler: bool = True
    dialect: Literal["google", "hf"] = "google"
    gelu: Literal["tanh", "erf"] | None = None
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    norm_epsilon: NonNegativeFloat = 1e-12
    dtype: str = "float32"
    remat: bool = False
    scan_layers: bool = False

    @nn.compact
    def __call__(
        self,
        token_ids: Int[Array, "*B S"],
        segment_ids: Int[Array, "*B S"] | None = None,
        mask: Bool[Array, "*B S"] | None = None,
        mlm_positions: Int[Array, "*B P"] | None = None,
        *,
        sequence_ids: Int[Array, "*B S"] | None = None,
        position_ids: Int[Array, "*B S"] | None = None,
        cls_positions: Int[Array, "*B K"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        self.check(token_ids, position_ids)
        lead = token_ids.shape[:-1]

        def flatten(x: Any) -> Any:  # None stays None
            return None if x is None else x.reshape(-1, x.shape[-1])

        table = self.embed(self.vocab_size, "token_embedding")
        x = self.add_embeddings(
            table,
            flatten(token_ids),
            flatten(segment_ids),
            flatten(position_ids),
            train,
        )
        x = self.encode(x, make_mask(flatten(mask), flatten(sequence_ids)), train)
        outputs = {"tokens": x}
        pooled = None
        if self.pooler:
            first = x[:, 0]
            if cls_positions is not None:
                first = take_tokens(x, flatten(cls_positions))
            pooled = jnp.tanh(self.dense(self.width, "pooler")(first))
            outputs["pooled"] = pooled.astype(jnp.float32)
        if "mlm" in self.heads:
            # Computing only the masked positions takes a fifth of the time and memory.
            if mlm_positions is not None:
                x = take_tokens(x, flatten(mlm_positions))
            outputs["mlm_logits"] = self.decode(x, table)
        if "nsp" in self.heads:
            nsp_logits = self.dense(2, "nsp")(pooled)
            outputs["nsp_logits"] = nsp_logits.astype(jnp.float32)
        if len(lead) != 1:
            outputs = {
                name: array.reshape(*lead, *array.shape[1:])
                for name, array in outputs.items()
            }
        if self.head is not None:
            tokens, pooled = outputs["tokens"], outputs.get("pooled")
            outputs |= self.head(tokens, pooled, mask, train=train)
        return outputs

    def check(self, token_ids: jax.Array, position_ids: jax.Array | None) -> None:
        """Raises ValueError for heads or a length that this model cannot have."""
        if unknown := sorted(set(self.heads) - {"mlm", "nsp"}):
            raise ValueError(
                f"config.model.heads: {unknown[0]!r} is not a head; use 'mlm' or 'nsp', or "
                "config.model.head for a module."
            )
        if "nsp" in self.heads and not self.pooler:
            raise ValueError(
                "config.model.heads: 'nsp' reads the pooled token; set "
                "config.model.pooler to True or leave out 'nsp'."
            )
        length = token_ids.shape[-1]
        if length > self.max_positions and position_ids is None:
            raise ValueError(
                f"the sequence has {length} tokens, but max_positions="
                f"{self.max_positions}; shorten config.task.sequence_length or raise "
                "config.model.max_positions (a trained table cannot grow)."
            )

    def embed(self, size: int, name: str) -> nn.Embed:
        _, init = DIALECTS[self.dialect]
        return nn.Embed(size, self.width, embedding_init=init, name=name)

    def dense(self, features: int, name: str) -> nn.Dense:
        _, init = DIALECTS[self.dialect]
        return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

    @property
    def gelu_kind(self) -> str:
        """The GELU in use: "tanh" or "erf"."""
        return self.gelu or DIALECTS[self.dialect][0]

    def add_embeddings(
        self,
        table: nn.Embed,
        token_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | None,
        position_ids: Int[Array, "B S"] | None,
        train: bool,
    ) -> Float[Array, "B S D"]:
        """The normalized sum of token, segment and position embeddings."""
        if segment_ids is None:
            segment_ids = jnp.zeros_like(token_ids)
        if position_ids is None:
            position_ids = jnp.arange(token_ids.shape[1])[None]
        x = table(token_ids)
        x = x + self.embed(self.num_segments, "segment_embedding")(segment_ids)
        x = x + self.embed(self.max_positions, "position_embedding")(position_ids)
        x = layer_norm(self.norm_epsilon, "embedding_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        self.sow("intermediates", "embedding_output", x)
        return x

    def encode(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B 1 #S S"] | None,
        train: bool,
    ) -> Float[Array, "B S D"]:
        return apply_layers(
            self,
            Block,
            self.make_block_fields,
            self.depth,
            x,
            mask,
            train=train,
            scan=self.scan_layers,
            remat=self.remat,
        )

    def make_block_fields(self) -> dict[str, Any]:
        return {
            "attention": self.make_attention(),
            "mlp_width": self.mlp_width,
            "activation": GELU[self.gelu_kind],
            "kernel_init": DIALECTS[self.dialect][1],
            "dropout": self.dropout,
            "norm_epsilon": self.norm_epsilon,
            "dtype": self.dtype,
        }

    def make_attention(self) -> nn.Module:
        """The attention of one block, which becomes its submodule."""
        if self.attention is None:
            return MultiHeadAttention(
                self.num_heads,
                dropout=self.attention_dropout,
                kernel_init=DIALECTS[self.dialect][1],
                dtype=self.dtype,
                parent=None,
            )
        replaced = {"attention_dropout": (self.attention_dropout, 0.0)}
        check_attention(self.attention, replaced, self.num_heads)
        return self.attention.clone(parent=None)

    def decode(
        self, x: Float[Array, "B P D"], table: nn.Embed
    ) -> Float[Array, "B P V"]:
        """The logits of masked tokens; the token table is the decoder."""
        hidden = GELU[self.gelu_kind](self.dense(self.width, "mlm_dense")(x))
        hidden = layer_norm(self.norm_epsilon, "mlm_norm")(hidden)
        decoder = table.embedding.astype(self.dtype)
        logits = jnp.einsum("bpd,vd->bpv", hidden.astype(self.dtype), decoder)
        bias = self.param("mlm_bias", nn.initializers.zeros, (self.vocab_size,))
        return logits.astype(jnp.float32) + bias[None, None]


def make_mask(
    mask: Bool[Array, "B S"] | None, sequence_ids: Int[Array, "B S"] | None
) -> Bool[Array, "B 1 #S S"] | None:
    """True where a query may attend to a key: a token of its own sequence, and no padding."""
    keys = None if mask is None else mask[:, None, None, :]
    if sequence_ids is None:
        return keys
    same = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
    return same if keys is None else same & keys


def take_tokens(
    x: Float[Array, "B S D"], positions: Int[Array, "B P"]
) -> Float[Array, "B P D"]:
    return jnp.take_along_axis(x, positions[:, :, None], axis=1)


class Block(nn.Module):
    """Post-norm: LN(x + attention(x)), then LN(x + MLP(x)) (paper sec. 3).

    As in the original code, there is no dropout inside the MLP. `attention` has the call of
    `MultiHeadAttention`.
    """

    attention: nn.Module
    mlp_width: Width
    activation: Activation
    kernel_init: Initializer
    dropout: Probability
    norm_epsilon: NonNegativeFloat
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B 1 #S S"] | None,
        train: bool,
    ) -> Float[Array, "B S D"]:
        def drop(branch: jax.Array) -> jax.Array:
            branch = nn.Dropout(self.dropout, deterministic=not train)(branch)
            return branch.astype(jnp.float32)

        y = x.astype(self.dtype)
        x = x + drop(self.attention(y, y, mask, train=train))
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
