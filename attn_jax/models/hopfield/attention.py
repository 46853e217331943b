"""A Hopfield association as the attention of a Transformer's block.

Axes: B batch, Q queries, K keys, N heads, D width.
"""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from attn_jax.bounds import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Width,
)
from attn_jax.models.hopfield.association import Hopfield
from attn_jax.models.hopfield.family import Entmax, Member, Softmax


class HopfieldAttention(nn.Module):
    """Has the call and the parameters of `MultiHeadAttention`, and associates repeatedly.

    Each query is updated `max_updates` times before the values are mixed. With the defaults it
    computes what `MultiHeadAttention` does, except that a query all of whose keys are masked
    gets zeros. Matrices start from a normal distribution of deviation 0.02.

    Attributes:
        beta, trainable_beta, max_updates, eps, remat: as in `Hopfield`; the only parameter
            that an attention does not have is `log_beta` [N], with `trainable_beta`.
        alpha: the weights are those of `Entmax(alpha)`: 1.5 and 2 (sparsemax) leave
            keys out. 1: softmax.
        member: the weights of any member of `attn_jax.models.hopfield.family`. None: those of
            `alpha`.
        dropout: rate on the final weights.

    Args (call):
        mask: True where a query may attend to a key.

    Sows the final weights [B, N, Q, K] as `attention`.

    Raises:
        ValueError: `alpha` is below 1, or given with `member`; what `Hopfield` raises.

    Source: Ramsauer et al. 2021, section 3 ("Hopfield layers"); attention is the
    association with `max_updates=0`.
    """

    num_heads: Width
    beta: PositiveFloat | Sequence[PositiveFloat] | None = None
    trainable_beta: bool = False
    max_updates: NonNegativeInt | Sequence[NonNegativeInt] = 0
    eps: NonNegativeFloat | None = None
    alpha: PositiveFloat = 1.0
    member: Member | None = None
    use_bias: bool = True
    dropout: Probability = 0.0
    dtype: str = "float32"
    remat: bool = False

    def setup(self) -> None:
        if self.member is not None and self.alpha != 1:
            raise ValueError(
                f"alpha={self.alpha} and member={self.member} both choose the weights; leave "
                "one of them out."
            )
        entmax = Softmax() if self.alpha == 1 else Entmax(self.alpha)
        self.hopfield = Hopfield(
            num_heads=self.num_heads,
            beta=self.beta,
            trainable_beta=self.trainable_beta,
            max_updates=self.max_updates,
            eps=self.eps,
            norm_stored="off",
            norm_state="off",
            norm_projection="off",
            use_bias=self.use_bias,
            dropout=self.dropout,
            dtype=self.dtype,
            remat=self.remat,
            member=self.member or entmax,
        )
        # Parameters are named as those of an attention, so that checkpoints and sharding
        # rules fit both.
        nn.share_scope(self, self.hopfield)

    def __call__(
        self,
        query_input: Float[Array, "B Q D"],
        key_input: Float[Array, "B K D"],
        mask: Bool[Array, "#B #N #Q #K"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B Q D"]:
        return self.hopfield(key_input, query_input, association_mask=mask, train=train)
