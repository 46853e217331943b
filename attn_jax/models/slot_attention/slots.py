"""Slot Attention: slots compete for the inputs, iteration by iteration.

Axes: B batch, N inputs (pixels or features), K slots, D slot width, T iterations.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from attn_jax.attention import attention_weights, layer_norm, mix
from attn_jax.bounds import Depth, NonNegativeFloat, Width

NORM_EPSILON = 1e-3  # of every layer norm, as in Keras
glorot = nn.initializers.glorot_uniform()  # of every kernel, as in Keras


class SlotAttention(nn.Module):
    """T iterations in which slots compete for inputs and are updated by what they win.

    Sows the weights of every iteration, [B, 1, K, N], as `attention`. Sums over inputs,
    the norms, the softmax and the GRU are float32 for any `dtype`: bfloat16 loses
    `epsilon`, and small addends in sums over thousands of inputs.

    Attributes:
        num_slots, iterations: defaults for the call's arguments.
        width: D, of a slot; it may differ from the width of the inputs.
        epsilon: added to every weight before the weights are normalized over inputs. A slot
            without attention then gets the mean of all inputs. (If it were added to the
            sum of the weights instead, such a slot would get almost zero.)

    Call:
        inputs: [B, N, C].
        sample_keys: [B], one key per example. Its slots start at mu + sigma * normal,
            independently of the rest of the batch.
        initial_slots: [B, K, D], used instead of sampled ones.
        every_iteration: also return the results of every iteration.

    Returns (call): `slots` [B, K, D]; `attention` [B, K, N] of the last iteration, the
    softmax over slots before epsilon and renormalization. With `every_iteration` also
    `slots_per_iteration` [T + 1, B, K, D], starting with the initial slots, and
    `attention_per_iteration` [T, B, K, N]. Float32.

    Raises:
        ValueError: both or neither of `sample_keys` and `initial_slots` are given; the
            number of slots or iterations is below 1; `initial_slots` has another shape.

    Source: paper sec. 2.1, algorithm 1. Where the paper and its code (google-research,
    slot_attention/model.py) differ we follow the code: epsilon 1e-3 in all norms, and the
    "reset after" form of the GRU in Keras.
    """

    num_slots: Width
    iterations: Depth = 3
    width: Width = 64
    mlp_width: Width = 128
    epsilon: NonNegativeFloat = 1e-8
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "B N C"],
        *,
        sample_keys: Key[Array, " B"] | None = None,
        initial_slots: Float[Array, "B K D"] | None = None,
        num_slots: int | None = None,
        iterations: int | None = None,
        every_iteration: bool = False,
    ) -> dict[str, Array]:
        if num_slots is None and initial_slots is not None:
            num_slots = initial_slots.shape[1]
        num_slots = self.num_slots if num_slots is None else num_slots
        iterations = self.iterations if iterations is None else iterations
        for name, number in [("num_slots", num_slots), ("iterations", iterations)]:
            if number < 1:
                raise ValueError(f"{name}={number} must be at least 1.")

        def dense(features: int, name: str, use_bias: bool = True) -> nn.Dense:
            return nn.Dense(
                features, use_bias, dtype=self.dtype, kernel_init=glorot, name=name
            )

        mu = self.param("slots_mu", glorot, (1, 1, self.width))
        log_sigma = self.param("slots_log_sigma", glorot, (1, 1, self.width))
        slots = self.initialize_slots(
            mu, log_sigma, (inputs.shape[0], num_slots), sample_keys, initial_slots
        )

        x = layer_norm(NORM_EPSILON, "norm_inputs")(inputs).astype(self.dtype)
        key = dense(self.width, "key", use_bias=False)(x)
        # Float32, because values are summed over all inputs.
        value = dense(self.width, "value", use_bias=False)(x).astype(jnp.float32)
        key, value = (part[:, :, None] for part in (key, value))  # one head

        norm_slots = layer_norm(NORM_EPSILON, "norm_slots")
        norm_mlp = layer_norm(NORM_EPSILON, "norm_mlp")
        project = dense(self.width, "query", use_bias=False)
        gru = GRU(self.width, name="gru")
        mlp_1, mlp_2 = dense(self.mlp_width, "mlp_1"), dense(self.width, "mlp_2")
        every_slots, every_attention = [slots], []
        for _ in range(iterations):
            query = project(norm_slots(slots).astype(self.dtype))[:, :, None]
            attention = attention_weights(
                query, key, scale=self.width**-0.5, over="queries"
            )  # [B, 1, K, N]
            self.sow("intermediates", "attention", attention)
            weights = attention + self.epsilon
            weights = weights / weights.sum(axis=-1, keepdims=True)
            slots = gru(mix(weights, value)[:, :, 0], slots)
            hidden = jax.nn.relu(mlp_1(norm_mlp(slots).astype(self.dtype)))
            slots = slots + mlp_2(hidden).astype(jnp.float32)
            every_slots.append(slots)
            every_attention.append(attention[:, 0])

        outputs = {"slots": slots, "attention": every_attention[-1]}
        if every_iteration:
            outputs["slots_per_iteration"] = jnp.stack(every_slots)
            outputs["attention_per_iteration"] = jnp.stack(every_attention)
        return outputs

    def initialize_slots(
        self,
        mu: Float[Array, "1 1 D"],
        log_sigma: Float[Array, "1 1 D"],
        shape: tuple[int, int],
        sample_keys: Key[Array, " B"] | None,
        initial_slots: Float[Array, "B k d"] | None,
    ) -> Float[Array, "B K D"]:
        if (sample_keys is None) == (initial_slots is None):
            given = "neither" if sample_keys is None else "both"
            raise ValueError(
                f"{given} of sample_keys and initial_slots given; slots start from "
                "exactly one of them. Pass sample_keys=jax.random.split(key, "
                "batch_size) or initial_slots [B, K, D]."
            )
        if initial_slots is not None:
            if initial_slots.shape != (*shape, self.width):
                raise ValueError(
                    f"initial_slots has the shape {list(initial_slots.shape)}, but [B, "
                    f"num_slots, width] is {[*shape, self.width]}; leave out num_slots, "
                    "or pass slots of that shape."
                )
            return initial_slots.astype(jnp.float32)
        noise = jax.vmap(lambda key: jax.random.normal(key, (shape[1], self.width)))(
            sample_keys
        )
        return mu + jnp.exp(log_sigma) * noise


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
