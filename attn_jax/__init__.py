"""Four landmark attention models in Flax Linen, trained by one sharded loop."""

from attn_jax.workdir import evaluate, restore

__version__ = "0.1.0"
__all__ = ["evaluate", "restore"]
