"""BERT (Devlin et al., 2019), and its heads."""

from attn_jax.models.bert.heads import ChoiceHead, ClassHead, SpanHead, TagHead
from attn_jax.models.bert.model import Bert

__all__ = ["Bert", "ChoiceHead", "ClassHead", "SpanHead", "TagHead"]
