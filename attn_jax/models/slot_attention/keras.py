"""What the original takes from Keras: epsilon of norms, initialization of kernels, the GRU.

Axes: B batch, K slots, D slot width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attn_jax.bounds import Width

NORM_EPSILON = 1e-3  # of every layer norm
glorot = nn.initializers.glorot_uniform()  # of every kernel


class GRU(nn.Module):
    """z * state + (1 - z) * tanh(x W + r * (state R + b)), in float32 throughout.

    The gates z and r and the candidate share one matrix, as in Keras. The recurrent kernel
    is therefore initialized orthogonal as a whole; its norm is smaller by sqrt(3) than that
    of the three orthogonal kernels of Flax's cell.
    """

    width: Width

    @nn.compact
    def __call__(
        self, x: Float[Array, "B K D"], state: Float[Array, "B K D"]
    ) -> Float[Array, "B K D"]:
        shape = (self.width, 3 * self.width)
        kernel = self.param("kernel", glorot, shape)
        recurrent = self.param("recurrent_kernel", nn.initializers.orthogonal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (2, shape[1]))
        bias = bias.reshape(2, 1, 1, -1)
        z, r, n = jnp.split(x @ kernel + bias[0], 3, axis=-1)
        z_state, r_state, n_state = jnp.split(state @ recurrent + bias[1], 3, axis=-1)
        z, r = jax.nn.sigmoid(z + z_state), jax.nn.sigmoid(r + r_state)
        return z * state + (1 - z) * jnp.tanh(n + r * n_state)
