"""The Hopfield layer: projections, norms, and the association with its updates.

Axes: B batch, Q states, K stored patterns, N heads, C channels per head, P channels of
a value per head, D width.
"""

import functools
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
from attn_jax.models.hopfield.arguments import (
    append_zeros,
    check_beta,
    check_chunk,
    check_matrix,
    check_updates,
    find_widths,
    merge_masks,
)
from attn_jax.models.hopfield.equations import SOFTMAX, associate
from attn_jax.models.hopfield.family import Member
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
        ValueError: widths, heads or per-head values do not agree; beta is not positive; the
            association matrix is larger than the memory, without `chunk`; `max_updates` is None in training; `differentiate` does not fit other fields.

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
        channels, value_channels = find_widths(
            *(x.shape for x in (stored, state, projection)),
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            static_stored=self.static_stored,
            static_state=self.static_state,
            static_projection=self.static_projection,
            connected=self.connected,
        )
        stored = self.norm("stored")(stored)
        state = self.norm("state")(state)
        projection = self.norm("projection")(projection)

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

        norm = self.norm("association")
        query, key = norm(query), norm(key)

        mask, bias = merge_masks(stored_mask, association_mask, association_bias)
        if self.zero_association:
            key, value, mask, bias = append_zeros(key, value, mask, bias)

        given: dict[str, Any] = {"key": key, "mask": mask, "bias": bias}
        given["scale"] = self.scale(channels)
        sown = self.is_mutable_collection("intermediates")
        if self.chunk is not None and not sown:
            updates = check_chunk(
                self.chunk,
                self.max_updates,
                self.eps,
                self.num_heads,
                self.member,
                self.dropout,
                self.differentiate,
            )
            for _ in range(updates):
                query = associate_in_chunks(query, value=key, chunk=self.chunk, **given)
            output = associate_in_chunks(query, value=value, chunk=self.chunk, **given)
        else:
            weights = self.associate_repeatedly(query, given, train)
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

    def associate_repeatedly(
        self, query: jax.Array, given: dict[str, Any], train: bool
    ) -> jax.Array:
        """The association weights [B, N, Q, K] after the updates of the states.

        Args:
            given: arguments of `associate`.
        """
        check_matrix(query, given["key"])
        limits, eps = check_updates(
            self.max_updates, self.eps, self.num_heads, self.differentiate, train
        )
        return update_heads(
            functools.partial(associate, member=self.member, **given),
            query,
            given["key"],
            limits,
            eps,
            remat=self.remat,
            differentiate=self.differentiate,
        )

    def scale(self, channels: int) -> float | jax.Array:
        """beta as a float if it is fixed and the same for all heads, else as [N, 1]."""
        beta = channels**-0.5 if self.beta is None else self.beta
        heads = check_beta(beta, self.num_heads)
        if not self.trainable_beta and isinstance(beta, float):
            return beta
        values = jnp.array(heads)
        if self.trainable_beta:
            log_beta = self.param("log_beta", lambda key: jnp.log(values))
            values = jnp.exp(log_beta)
        return values.reshape(-1, 1)

    def norm(self, name: str) -> Callable:
        kind, epsilon = {
            "stored": (self.norm_stored, self.norm_stored_epsilon),
            "state": (self.norm_state, self.norm_state_epsilon),
            "projection": (self.norm_projection, self.norm_projection_epsilon),
            "association": (self.norm_association, self.norm_association_epsilon),
        }[name]
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
