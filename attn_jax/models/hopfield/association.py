"""The Hopfield layer: projections, norms, and the association with its updates.

Axes: B batch, Q states, K stored patterns, N heads, C channels per head, P channels of
a value per head, D width.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from attn_jax.attention import LayerNorm, mix
from attn_jax.bounds import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Width,
)
from attn_jax.models.hopfield.equations import SOFTMAX, associate
from attn_jax.models.hopfield.family import Member, Softmax
from attn_jax.models.hopfield.streaming import associate_in_chunks
from attn_jax.models.hopfield.updates import Differentiate, update_heads

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}

Normalization = Literal["off", "plain", "affine"]


class Hopfield(nn.Module):
    """Associates states with stored patterns, once or iteratively, and returns values.

    Per head, q = LN(state) W_Q, k = LN(stored) W_K, v = LN(projection) W_V and
    A = softmax(beta q k^T). Up to `max_updates` times, q <- A k and A is recomputed. The
    output is A v, heads concatenated, times W_out. `max_updates=0` is the attention of a
    Transformer.

    Attributes:
        head_dim: C, the width of the association space per head. None: state width /
            heads, or the width of a static state or static stored patterns.
        value_dim: P, the width of a projected value per head. None: `head_dim`, or the
            width of a static projection.
        output_width: None: the width of the state.
        beta: inverse temperature, one number or one per head. None: 1 / sqrt(C).
        trainable_beta: learn ln(beta), one per head, initialized from `beta`.
        max_updates: updates of the state after the first association, one number or one
            per head. None: until `eps` is met, at most 1,000; cannot be trained.
        eps: a head of a sample stops once an update changes its association matrix by
            at most this (Frobenius norm over states and patterns). One number or one per
            head. None: always `max_updates` updates.
        norm_stored, norm_state, norm_projection: layer normalization of the inputs
            before the projections, also of static inputs.
        norm_association: a layer norm over C, shared by q and k. Updated states are not
            normalized again.
        static_stored, static_state, static_projection: use the input without W_K, W_Q or
            W_V, the same for all heads.
        connected: v = (LN(projection) W_K) W_V, as in the paper. False: v =
            LN(projection) W_V.
        zero_association: append a pattern of zeros that is never masked.
        out_projection: multiply by W_out. False: the output has N * P channels.
        activation: applied to the output.
        dropout: rate on the final association weights.
        member: which weights over the patterns: `Softmax`, or a sparse member of
            `attn_jax.models.hopfield.family`.
        chunk: patterns of which the weights are computed at a time, so that memory does not grow
            with B N Q K; for bags of very many instances. None: all at once. Needs `Softmax`, no
            dropout, and `eps=None` if there are updates, as the association matrix is
            never whole. While `intermediates` are asked for, all are computed at once.
        differentiate: "unrolled" goes back through every update. "implicit" takes the state after
            them for a fixed point: the memory of training does not grow with `max_updates`, which
            may be None. Too few updates make its gradient wrong, and W_Q has none, because a state
            only selects the fixed point. Needs updates in every head, and no `chunk`.
        remat: recompute the updates in the backward pass to save memory.

    Args (call):
        stored, state, projection: `state` and `projection` default to `stored`.
        stored_mask: False masks a pattern. If all are masked, the output before W_out is
            zero.
        association_mask: True where a state may attend to a pattern.
        association_bias: added to beta q k^T; -inf masks the pattern.

    Sows the final association [B, N, Q, K] as `attention`.

    Raises:
        ValueError: widths, heads or per-head values do not agree; beta is not positive;
            `max_updates` is None in training; `differentiate` does not fit other fields.

    Source: paper eq. 10 and appendix A.6; ml-jku/hopfield-layers f56f929. Where the two
    differ we follow the code: v is not connected by default, and the stopping rule looks
    at the association, not at the state. Three bugs of the code are not reproduced: here a
    beta per head is applied per head, static inputs do not mix samples, and a sample
    stops independently of its batch (the code uses the largest change in the batch).
    """

    num_heads: Width = 1
    head_dim: Width | None = None
    value_dim: Width | None = None
    output_width: Width | None = None
    beta: PositiveFloat | Sequence[PositiveFloat] | np.ndarray | Array | None = None
    trainable_beta: bool = False
    max_updates: NonNegativeInt | Sequence[NonNegativeInt | None] | None = 0
    eps: NonNegativeFloat | Sequence[NonNegativeFloat] | np.ndarray | Array | None = (
        1e-4
    )
    norm_stored: Normalization = "affine"
    norm_state: Normalization = "affine"
    norm_projection: Normalization = "affine"
    norm_association: Normalization = "off"
    norm_stored_epsilon: NonNegativeFloat = 1e-5
    norm_state_epsilon: NonNegativeFloat = 1e-5
    norm_projection_epsilon: NonNegativeFloat = 1e-5
    norm_association_epsilon: NonNegativeFloat = 1e-5
    static_stored: bool = False
    static_state: bool = False
    static_projection: bool = False
    connected: bool = False
    zero_association: bool = False
    use_bias: bool = True
    out_projection: bool = True
    activation: Literal["relu", "selu", "sigmoid", "tanh"] | None = None
    dropout: Probability = 0.0
    dtype: str = "float32"
    remat: bool = False
    member: Member = SOFTMAX
    chunk: Width | None = None
    differentiate: Differentiate = "unrolled"

    def __post_init__(self) -> None:
        for field in ("beta", "max_updates", "eps"):
            value = getattr(self, field)
            if isinstance(value, Sequence | np.ndarray | jax.Array):
                value = tuple(np.asarray(value, dtype=object).reshape(-1).tolist())
                object.__setattr__(self, field, value)  # a module's fields are hashable
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        stored: Float[Array, "B K Dk"],
        state: Float[Array, "B Q Dq"] | None = None,
        projection: Float[Array, "B K Dv"] | None = None,
        *,
        stored_mask: Bool[Array, "B K"] | None = None,
        association_mask: Bool[Array, "#B #N #Q #K"] | None = None,
        association_bias: Float[Array, "#B #N #Q #K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B Q Do"]:
        state = stored if state is None else state
        projection = stored if projection is None else projection
        output_width = self.output_width or state.shape[-1]
        channels = self.association_width(stored, state)
        value_channels = self.value_width(projection, channels)

        stored = self.norm("stored", self.norm_stored, self.norm_stored_epsilon)(stored)
        state = self.norm("state", self.norm_state, self.norm_state_epsilon)(state)
        projection = self.norm(
            "projection", self.norm_projection, self.norm_projection_epsilon
        )(projection)

        if self.static_state:
            query = self.copy_to_heads(state)
        else:
            query = self.to_heads("query", channels)(state)
        to_key = None if self.static_stored else self.to_heads("key", channels)
        key = self.copy_to_heads(stored) if to_key is None else to_key(stored)
        if self.connected and to_key is not None:
            value = to_key(projection)
            if not self.static_projection:
                value = self.to_heads("value", value_channels, axis=(-2, -1))(value)
        elif self.static_projection:
            value = self.copy_to_heads(projection)
        else:
            value = self.to_heads("value", value_channels)(projection)

        if self.norm_association != "off":
            norm = self.norm(
                "association", self.norm_association, self.norm_association_epsilon
            )
            query, key = norm(query), norm(key)

        mask, bias = merge_masks(stored_mask, association_mask, association_bias)
        if self.zero_association:
            one_more = ((0, 0), (0, 1), (0, 0), (0, 0))
            patterns = key.shape[1]
            key, value = jnp.pad(key, one_more), jnp.pad(value, one_more)
            mask, bias = (
                append_pattern(mask, patterns, True),
                append_pattern(bias, patterns, 0),
            )

        scale = self.scale(channels)
        sown = self.is_mutable_collection("intermediates")
        if self.chunk is not None and not sown:
            self.check_chunk(self.chunk)
            stream = functools.partial(
                associate_in_chunks,
                key=key,
                scale=scale,
                mask=mask,
                bias=bias,
                chunk=self.chunk,
            )
            for _ in range(self.per_head("max_updates", self.max_updates)[0]):
                query = stream(query, value=key)
            output = stream(query, value=value)
        else:
            weights = self.associate_repeatedly(query, key, scale, mask, bias, train)
            self.sow("intermediates", "attention", weights)
            weights = nn.Dropout(self.dropout, deterministic=not train)(weights)
            output = mix(weights, value)  # [B, Q, N, P]
        if self.out_projection:
            output = nn.DenseGeneral(
                output_width,
                axis=(-2, -1),
                use_bias=self.use_bias,
                kernel_init=nn.initializers.normal(0.02),
                dtype=self.dtype,
                name="out",
            )(output)
        else:
            output = output.reshape(*output.shape[:2], -1)
        return ACTIVATIONS[self.activation](output) if self.activation else output

    def check_chunk(self, chunk: int) -> None:
        """Raises ValueError if another field needs all weights at once."""
        if not isinstance(self.member, Softmax) or self.dropout:
            raise ValueError(
                f"{chunk=} needs member=Softmax() and dropout=0.0, not {self.member} and "
                f"{self.dropout}."
            )
        if self.differentiate == "implicit":
            raise ValueError(
                f"{chunk=} needs differentiate='unrolled'; its updates keep no matrix of "
                "weights, only the states."
            )
        updates = set(self.per_head("max_updates", self.max_updates))
        stops = updates != {0} and self.eps is not None
        if len(updates) > 1 or None in updates or stops:
            raise ValueError(
                f"{chunk=} needs the same number of updates for all heads and eps=None, not "
                f"max_updates={self.max_updates!r} and eps={self.eps!r}: the stopping rule "
                "compares whole association matrices."
            )

    def associate_repeatedly(
        self,
        query: jax.Array,
        key: jax.Array,
        scale: float | jax.Array,
        mask: jax.Array | None,
        bias: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """The association weights [B, N, Q, K] after the updates of the states."""
        limits = self.per_head("max_updates", self.max_updates)
        if None in limits and train and self.differentiate == "unrolled":
            raise ValueError(
                f"max_updates={self.max_updates!r} cannot be trained: a loop without a "
                "fixed length has no gradient. Set max_updates to a number, or "
                "differentiate='implicit'."
            )
        if any(limit is not None and limit < 0 for limit in limits):
            raise ValueError(f"max_updates={self.max_updates!r} must be 0 or more.")
        if self.differentiate == "implicit" and 0 in limits:
            raise ValueError(
                f"differentiate='implicit' needs updates in every head, not max_updates="
                f"{self.max_updates!r}: without one no state is near a fixed point."
            )
        eps = None
        if self.eps is not None and limits != (0,) * self.num_heads:
            eps = self.per_head("eps", self.eps)
            if not all(distance >= 0 for distance in eps):
                raise ValueError(f"eps={self.eps!r} must be 0 or more.")
        if None in limits and eps is None:
            raise ValueError("max_updates=None needs a stopping rule; set eps.")
        step = functools.partial(
            associate, key=key, scale=scale, mask=mask, bias=bias, member=self.member
        )
        return update_heads(
            step,
            query,
            key,
            limits,
            eps,
            remat=self.remat,
            differentiate=self.differentiate,
        )

    def scale(self, channels: int) -> float | jax.Array:
        """beta as a float if it is fixed and the same for all heads, else as [N, 1]."""
        beta = channels**-0.5 if self.beta is None else self.beta
        heads = self.per_head("beta", beta)
        if not all(0 < value < math.inf for value in heads):
            raise ValueError(f"{beta=} must be positive and finite for every head.")
        if not self.trainable_beta and isinstance(beta, float):
            return beta
        values = jnp.array(heads)
        if self.trainable_beta:
            log_beta = self.param("log_beta", lambda key: jnp.log(values))
            values = jnp.exp(log_beta)
        return values.reshape(-1, 1)

    def per_head(self, field: str, value: Any) -> tuple:
        """The setting as a tuple with one entry per head."""
        if not isinstance(value, tuple):
            return (value,) * self.num_heads
        if len(value) != self.num_heads:
            raise ValueError(
                f"{field}={value!r} has {len(value)} entries for num_heads="
                f"{self.num_heads}; give one for each head, or a single number."
            )
        return value

    def association_width(self, stored: jax.Array, state: jax.Array) -> int:
        channels, width = self.head_dim, state.shape[-1]
        if channels is None and self.static_state:
            channels = width
        elif channels is None and self.static_stored:
            channels = stored.shape[-1]
        elif channels is None:
            if width % self.num_heads:
                raise ValueError(
                    f"state width {width} must be divisible by num_heads="
                    f"{self.num_heads}; change one of them, or set head_dim."
                )
            channels = width // self.num_heads
        for role, static, x in (
            ("state", self.static_state, state),
            ("stored", self.static_stored, stored),
        ):
            if static and x.shape[-1] != channels:
                raise ValueError(
                    f"static_{role}=True uses {role} without a projection, so its width "
                    f"{x.shape[-1]} must be head_dim={channels}."
                )
        return channels

    def value_width(self, projection: jax.Array, channels: int) -> int:
        width = self.value_dim or channels
        if self.connected and not self.static_stored:
            if self.static_projection and width != channels:
                raise ValueError(
                    f"value_dim={width} must be head_dim={channels} if connected and "
                    "static_projection are both True: W_K alone computes the values."
                )
        elif self.static_projection:
            if self.value_dim not in (None, projection.shape[-1]):
                raise ValueError(
                    "static_projection=True uses projection unchanged, so its width "
                    f"{projection.shape[-1]} must be value_dim={self.value_dim}."
                )
            width = projection.shape[-1]
        return width

    def norm(self, name: str, kind: Normalization, epsilon: float) -> Callable:
        if kind == "off":
            return lambda x: x
        return LayerNorm(
            epsilon,
            affine=kind == "affine",
            dtype=jnp.promote_types(self.dtype, jnp.float32).name,
            name=f"{name}_norm",
        )

    def to_heads(self, name: str, channels: int, axis: Any = -1) -> nn.DenseGeneral:
        return nn.DenseGeneral(
            (self.num_heads, channels),
            axis=axis,
            use_bias=self.use_bias,
            kernel_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name=name,
        )

    def copy_to_heads(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:2], self.num_heads, x.shape[-1])
        return jnp.broadcast_to(x[:, :, None].astype(self.dtype), shape)


def merge_masks(
    stored_mask: jax.Array | None,
    association_mask: jax.Array | None,
    association_bias: jax.Array | None,
) -> tuple[jax.Array | None, jax.Array | None]:
    """(all masks as one [#B, #N, #Q, K], the bias with its -inf moved into the mask)."""
    masks = [] if stored_mask is None else [stored_mask[:, None, None, :]]
    masks += [] if association_mask is None else [association_mask]
    if association_bias is not None:
        excluded = jnp.isneginf(association_bias)
        masks.append(~excluded)
        association_bias = jnp.where(excluded, 0, association_bias)
    mask = None
    for each in masks:
        mask = each if mask is None else mask & each
    return mask, association_bias


def append_pattern(x: jax.Array | None, patterns: int, value: float | bool) -> Any:
    """Appends the entry `value` for one more pattern to a mask or bias [#B, #N, #Q, #K]."""
    if x is None:
        return None
    x = jnp.broadcast_to(x, (*x.shape[:-1], patterns))
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=value)
