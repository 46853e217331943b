"""Four landmark attention models in Flax Linen, trained by one sharded loop."""

from attn_jax.predict import predict
from attn_jax.restore import evaluate, restore
from attn_jax.version import __version__

__all__ = ["__version__", "evaluate", "predict", "restore"]
