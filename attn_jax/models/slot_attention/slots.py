"""Slot Attention: slots compete for the inputs, iteration by iteration.

Axes: B batch, N inputs (pixels or features), K slots, D slot width, T iterations, H heads,
C = D / H channels per head.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from attn_jax.attention import attention_weights, layer_norm, mix
from attn_jax.bounds import Depth, NonNegativeFloat, PositiveFloat, Width
from attn_jax.models.slot_attention.keras import GRU, NORM_EPSILON, glorot


class SlotAttention(nn.Module):
    """T iterations in which slots compete for inputs and are updated by what they win.

    Sows the weights of every iteration, [B, H, K, N], as `attention`. Sums over inputs,
    the norms, the softmax and the GRU are float32 for any `dtype`: bfloat16 loses
    `epsilon`, and small addends in sums over thousands of inputs.

    Attributes:
        num_slots, iterations: defaults for the call's arguments.
        width: D, of a slot; it may differ from the width of the inputs.
        epsilon: added to every weight before the weights are normalized over inputs. A slot
            without attention then gets the mean of all inputs. (If it were added to the
            sum of the weights instead, such a slot would get almost zero.)
        normalizer: what a slot gets of the values that it has won. "paper": their mean with
            `epsilon` in every weight; "savi": their mean with `epsilon` in the divisor;
            "sum": their sum; "sum_norm": their sum, then a layer norm; "sum_over_inputs":
            their sum divided by N, so that the size of what was won is kept.
        over: the softmax is over "slots", which compete for each input, or over "inputs".
        num_heads: H; in each the slots compete for other channels. `attention` is the mean
            over heads. (In SLATE, slots and heads compete together.)
        scale: factor of the dot products. None: 1 / sqrt(C).
        initial: slots start from a normal distribution with one learned mean and deviation
            ("sampled"), or each from a learned vector of its own ("learned"), which
            `sample_keys` do not change.
        differentiate: "unrolled" goes back through all iterations. "implicit" takes the slots
            for a fixed point, with a Neumann series of one term: each iteration takes the
            slots before it as constants, so nothing before the last iteration gets a gradient
            from the result, mean and deviation of the start neither. "bilevel" does the same,
            but passes the gradient of those slots straight to the start.
        use_gru: False: what a slot gets replaces it.
        use_mlp: False: no residual MLP after it.
        use_norms: False: no layer norm of inputs, of slots and before the MLP.
        soft_kmeans: the mean of the keys that a slot has won replaces it, with distances in
            place of dot products, and nothing learned but start, keys and the inputs' norm.

    Call:
        inputs: [B, N, C].
        sample_keys: [B], one key per example. Its slots start at mu + sigma * normal,
            independently of the rest of the batch.
        initial_slots: [B, K, D], used instead of sampled ones.
        inputs_mask: [B, N], True where an input takes part. Others have no attention.
        every_iteration: also return the results of every iteration.

    Returns (call): `slots` [B, K, D]; `attention` [B, K, N] of the last iteration, the
    softmax before epsilon and renormalization. With `every_iteration` also
    `slots_per_iteration` [T + 1, B, K, D], starting with the initial slots, and
    `attention_per_iteration` [T, B, K, N]. Float32.

    Raises:
        ValueError: both or neither of `sample_keys` and `initial_slots` are given; the
            number of slots or iterations is below 1; `initial_slots` has another shape;
            the width is not divisible by `num_heads`; learned slots are fewer than asked for;
            `soft_kmeans` is combined with a field that it replaces.

    Source: paper sec. 2.1, algorithm 1, and the ablations of its supplement. Where the paper
    and its code (google-research, slot_attention/model.py) differ we follow the code: epsilon
    1e-3 in all norms, and the "reset after" form of the GRU in Keras. SAVi: Kipf et al. 2022.
    "sum_over_inputs": Krimmel et al. 2024. "implicit": Chang et al. 2022. "bilevel" with learned
    slots: Jia et al. 2023 (BO-QSA).
    """

    num_slots: Width
    iterations: Depth = 3
    width: Width = 64
    mlp_width: Width = 128
    epsilon: NonNegativeFloat = 1e-8
    dtype: str = "float32"
    normalizer: Literal["paper", "savi", "sum", "sum_norm", "sum_over_inputs"] = "paper"
    over: Literal["slots", "inputs"] = "slots"
    num_heads: Width = 1
    scale: PositiveFloat | None = None
    initial: Literal["sampled", "learned"] = "sampled"
    differentiate: Literal["unrolled", "implicit", "bilevel"] = "unrolled"
    use_gru: bool = True
    use_mlp: bool = True
    use_norms: bool = True
    soft_kmeans: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "B N C"],
        *,
        sample_keys: Key[Array, " B"] | None = None,
        initial_slots: Float[Array, "B K D"] | None = None,
        inputs_mask: Bool[Array, "B N"] | None = None,
        num_slots: int | None = None,
        iterations: int | None = None,
        every_iteration: bool = False,
    ) -> dict[str, Array]:
        self.check_fields()
        if num_slots is None and initial_slots is not None:
            num_slots = initial_slots.shape[1]
        num_slots = self.num_slots if num_slots is None else num_slots
        iterations = self.iterations if iterations is None else iterations
        for name, number in [("num_slots", num_slots), ("iterations", iterations)]:
            if number < 1:
                raise ValueError(f"{name}={number} must be at least 1.")
        slots = start = self.initialize_slots(
            (inputs.shape[0], num_slots), sample_keys, initial_slots
        )

        x = self.norm("norm_inputs")(inputs).astype(self.dtype)
        key = self.dense(self.width, "key", use_bias=False)(x)
        value = key
        if not self.soft_kmeans:
            value = self.dense(self.width, "value", use_bias=False)(x)
        # Float32, because values are summed over all inputs.
        key, value = self.split_heads(key), self.split_heads(value.astype(jnp.float32))

        compete, update = self.make_competition(), self.make_update()
        mask = None if inputs_mask is None else inputs_mask[:, None, None]
        every_slots, every_attention = [slots], []
        for _ in range(iterations):
            if self.differentiate != "unrolled":
                slots = jax.lax.stop_gradient(slots)
            if self.differentiate == "bilevel":
                slots = slots + (start - jax.lax.stop_gradient(start))
            attention = compete(slots, key, mask)
            self.sow("intermediates", "attention", attention)
            won = mix(self.normalize(attention, mask), value)
            slots = update(won.reshape(slots.shape), slots)
            every_slots.append(slots)
            every_attention.append(attention.mean(axis=1))

        outputs = {"slots": slots, "attention": every_attention[-1]}
        if every_iteration:
            outputs["slots_per_iteration"] = jnp.stack(every_slots)
            outputs["attention_per_iteration"] = jnp.stack(every_attention)
        return outputs

    def check_fields(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} must be divisible by num_heads={self.num_heads}; "
                "change one of them."
            )
        idle = {"use_gru": True, "use_mlp": True, "num_heads": 1, "over": "slots"}
        changed = [k for k, value in idle.items() if getattr(self, k) != value]
        if self.soft_kmeans and changed:
            name = changed[0]
            raise ValueError(
                f"{name}={getattr(self, name)!r} has no effect on soft_kmeans=True, which "
                f"has no such part; leave {name} out."
            )

    def dense(self, features: int, name: str, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(
            features, use_bias, dtype=self.dtype, kernel_init=glorot, name=name
        )

    def norm(self, name: str) -> Callable[[jax.Array], jax.Array]:
        return layer_norm(NORM_EPSILON, name) if self.use_norms else lambda x: x

    def split_heads(self, x: Float[Array, "B L D"]) -> Float[Array, "B L H C"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)

    def make_competition(self) -> Callable[..., jax.Array]:
        """Makes the function (slots, keys, mask) -> attention [B, H, K, N]."""
        scale = self.scale or (self.width // self.num_heads) ** -0.5
        axis: Literal["queries", "keys"] = "queries" if self.over == "slots" else "keys"
        norm: Any = None
        project: Any = None
        if not self.soft_kmeans:
            norm = self.norm("norm_slots")
            project = self.dense(self.width, "query", use_bias=False)

        def compete(slots: jax.Array, key: jax.Array, mask: Any) -> jax.Array:
            query, bias = slots, None
            if norm is None:
                # -|slot - key|^2 / 2, without |key|^2 / 2, which all slots share.
                half = jnp.square(slots).sum(axis=-1) / 2
                bias = -scale * half[:, None, :, None]
            else:
                query = project(norm(slots).astype(self.dtype))
            weights = attention_weights(
                self.split_heads(query),
                key,
                scale=scale,
                mask=mask,
                bias=bias,
                over=axis,
            )
            return weights if mask is None else jnp.where(mask, weights, 0)

        return compete

    def normalize(
        self, attention: Float[Array, "B H K N"], mask: Bool[Array, "B 1 1 N"] | None
    ) -> Float[Array, "B H K N"]:
        """The weights by which values are summed."""
        if self.normalizer in ("sum", "sum_norm"):
            return attention
        if self.normalizer == "sum_over_inputs":
            inputs = (
                attention.shape[-1] if mask is None else mask.sum(-1, keepdims=True)
            )
            return attention / jnp.maximum(inputs, 1)
        weights = attention
        if self.normalizer == "paper":
            weights = attention + self.epsilon
            weights = weights if mask is None else jnp.where(mask, weights, 0)
        total = weights.sum(axis=-1, keepdims=True)
        if self.normalizer == "savi":
            total = total + self.epsilon
        if mask is not None:  # an example may have no input
            total = jnp.where(total == 0, 1, total)
        return weights / total

    def make_update(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """Makes the function (what the slots get, slots) -> slots [B, K, D]."""
        replace = self.soft_kmeans or not self.use_gru
        norm_sum: Any = None
        gru: Any = None
        mlp: Any = None
        if self.normalizer == "sum_norm":
            norm_sum = layer_norm(NORM_EPSILON, "norm_sum")
        if not replace:
            gru = GRU(self.width, name="gru")
        if self.use_mlp and not self.soft_kmeans:
            norm = self.norm("norm_mlp")
            mlp = self.dense(self.mlp_width, "mlp_1"), self.dense(self.width, "mlp_2")

        def update(won: jax.Array, slots: jax.Array) -> jax.Array:
            if norm_sum is not None:
                won = norm_sum(won)
            slots = won if gru is None else gru(won, slots)
            if mlp is None:
                return slots
            hidden = jax.nn.relu(mlp[0](norm(slots).astype(self.dtype)))
            return slots + mlp[1](hidden).astype(jnp.float32)

        return update

    def initialize_slots(
        self,
        shape: tuple[int, int],
        sample_keys: Key[Array, " B"] | None,
        initial_slots: Float[Array, "B k d"] | None,
    ) -> Float[Array, "B K D"]:
        learned = self.initial == "learned"
        if learned:
            normal = nn.initializers.normal(1.0)
            slots = self.param("slots", normal, (1, self.num_slots, self.width))
        else:
            mu = self.param("slots_mu", glorot, (1, 1, self.width))
            log_sigma = self.param("slots_log_sigma", glorot, (1, 1, self.width))
        neither = sample_keys is None and initial_slots is None
        if (neither and not learned) or not (
            sample_keys is None or initial_slots is None
        ):
            given = "neither" if neither else "both"
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
        if learned:
            if shape[1] != self.num_slots:
                raise ValueError(
                    f"num_slots={shape[1]}, but initial='learned' has learned "
                    f"{self.num_slots} slots; leave out num_slots, or pass initial_slots."
                )
            return jnp.broadcast_to(slots, (*shape, self.width))
        noise = jax.vmap(lambda key: jax.random.normal(key, (shape[1], self.width)))(
            sample_keys
        )
        return mu + jnp.exp(log_sigma) * noise
