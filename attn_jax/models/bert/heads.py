"""Heads for fine-tuning BERT. Each is one linear layer on what the encoder returns.

A head is a field of `Bert`, and any module may be one:

    head(tokens [*B, S, D], pooled [*B, D], mask [*B, S], train=train) -> {name: array}

Weights start from a normal distribution with deviation 0.02, truncated at two deviations, and
logits are float32.

Axes: *B batch (and choices), S sequence, D width, C classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attn_jax.bounds import Probability, Width


class ClassHead(nn.Module):
    """`class_logits` [*B, C] of the pooled first token; C = 1 for a regression.

    Source: google-research/bert run_classifier.py, `create_model` (dropout 0.1).
    """

    num_classes: Width
    dropout: Probability = 0.1

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "*B S D"],
        pooled: Float[Array, "*B D"] | None,
        mask: Bool[Array, "*B S"] | None,
        *,
        train: bool = False,
    ) -> dict[str, Array]:
        del tokens, mask
        pooled = drop(require_pooled(pooled, self), self.dropout, train)
        return {"class_logits": project(pooled, self.num_classes)}


class ChoiceHead(nn.Module):
    """`choice_logits` [*B], one score per row; *B ends with the choices.

    Source: Devlin et al. 2019, sec. 4.4; transformers, BertForMultipleChoice.
    """

    dropout: Probability = 0.1

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "*B S D"],
        pooled: Float[Array, "*B D"] | None,
        mask: Bool[Array, "*B S"] | None,
        *,
        train: bool = False,
    ) -> dict[str, Array]:
        del tokens, mask
        pooled = drop(require_pooled(pooled, self), self.dropout, train)
        return {"choice_logits": project(pooled, 1)[..., 0]}


class TagHead(nn.Module):
    """`tag_logits` [*B, S, C] of every token.

    Source: Devlin et al. 2019, sec. 5.3; transformers, BertForTokenClassification.
    """

    num_tags: Width
    dropout: Probability = 0.1

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "*B S D"],
        pooled: Float[Array, "*B D"] | None,
        mask: Bool[Array, "*B S"] | None,
        *,
        train: bool = False,
    ) -> dict[str, Array]:
        del pooled, mask
        tokens = drop(tokens, self.dropout, train)
        return {"tag_logits": project(tokens, self.num_tags)}


class SpanHead(nn.Module):
    """`start_logits` and `end_logits` [*B, S]: where an answer starts and ends.

    Padding and the question have logits too; the task excludes them.

    Source: google-research/bert run_squad.py, `create_model` (no dropout).
    """

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "*B S D"],
        pooled: Float[Array, "*B D"] | None,
        mask: Bool[Array, "*B S"] | None,
        *,
        train: bool = False,
    ) -> dict[str, Array]:
        del pooled, mask, train
        logits = project(tokens, 2)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


def drop(x: jax.Array, rate: float, train: bool) -> jax.Array:
    return nn.Dropout(rate, deterministic=not train)(x)


def project(x: jax.Array, features: int) -> jax.Array:
    init = nn.initializers.truncated_normal(0.02)
    return nn.Dense(features, kernel_init=init, name="logits")(x.astype(jnp.float32))


def require_pooled(pooled: jax.Array | None, head: nn.Module) -> jax.Array:
    if pooled is None:
        raise ValueError(
            f"config.model.head: {type(head).__name__} reads the pooled token; set "
            "config.model.pooler to True."
        )
    return pooled
