"""Four landmark attention models in Flax Linen, trained by one sharded loop."""

from attn_jax.predict import predict
from attn_jax.restore import evaluate, restore

__version__ = "0.1.0"
__all__ = ["evaluate", "predict", "restore"]
