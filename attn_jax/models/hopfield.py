"""Modern Hopfield networks: attention that may be repeated (Ramsauer et al., 2021).

`retrieve` and `energy` are the paper's equations; `Hopfield` puts projections and norms
around them; `HopfieldPooling` learns the states, `HopfieldLayer` the stored patterns.
Axes: B batch, Q states, K stored patterns, N heads, C channels per head, P channels of
a value per head, D width.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attn_jax.attention import LayerNorm, attention_weights, mix

UPDATES_AT_MOST = (
    1000  # where only `eps` ends the updates; convergence has no known rate
)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}

Normalisation = Literal["off", "plain", "affine"]


def retrieve(
    stored: Float[Array, "*B K D"],
    state: Float[Array, "*B Q D"],
    *,
    beta: float | Float[Array, ""],
    steps: int | None = 1,
    eps: float | None = None,
    stored_mask: Bool[Array, "*B K"] | None = None,
) -> Float[Array, "*B Q D"]:
    """The states after `steps` updates xi <- X softmax(beta X^T xi), X the `stored`.

    Args:
        beta: inverse temperature, more than 0; a large one retrieves single patterns.
        steps: number of updates, differentiable; None: until every state stands still,
            at most 1,000 updates, which JAX cannot differentiate in reverse.
        eps: a state stops once an update moves it by no more than this (Euclidean), and
            keeps its last value; no state depends on when another stops.
        stored_mask: True where a pattern takes part. Where none does, zeros are
            retrieved.

    Raises:
        ValueError: `steps` is negative, or None without `eps`.

    Source: paper eq. 3; the stopping rule is that of appendix A.6.2.
    """
    if steps is None and eps is None:
        raise ValueError("steps=None never ends without eps; give eps, such as 1e-4.")
    if steps is not None and steps < 0:
        raise ValueError(f"{steps=} must be 0 or more, or None with eps.")
    patterns = stored[..., :, None, :]
    scale = beta if isinstance(beta, float) else jnp.reshape(beta, (1, 1))
    mask = None if stored_mask is None else stored_mask[..., None, None, :]

    def update(xi: jax.Array) -> jax.Array:
        weights = associate(xi[..., :, None, :], patterns, scale, mask)
        return mix(weights, patterns)[..., 0, :].astype(xi.dtype)

    if eps is None:
        return jax.lax.fori_loop(0, steps, lambda _, xi: update(xi), state)

    def update_moving(carry: tuple, _: Any) -> tuple:
        xi, moving = carry
        new = jnp.where(moving[..., None], update(xi), xi)
        moved = jnp.linalg.norm(jax.lax.stop_gradient(new - xi), axis=-1)
        return (new, moving & (moved > eps)), None

    start = (state, jnp.ones(state.shape[:-1], bool))
    if steps is not None:
        return jax.lax.scan(update_moving, start, length=steps)[0][0]
    return until_still(lambda carry, step: update_moving(carry, step)[0], start)[0]


def energy(
    stored: Float[Array, "*B K D"],
    state: Float[Array, "*B Q D"],
    *,
    beta: float | Float[Array, ""],
    stored_mask: Bool[Array, "*B K"] | None = None,
) -> Float[Array, "*B Q"]:
    """-lse(beta, X^T xi) + xi.xi / 2 + ln(K) / beta + M^2 / 2; no update increases it.

    lse(beta, z) = ln(sum exp(beta z)) / beta; K counts the patterns that take part, M
    is the largest of their norms. Never negative; infinite where no pattern takes part.

    Source: paper eq. 2, with the constants of its section 2.
    """
    dtype = jnp.promote_types(jnp.result_type(stored, state), jnp.float32)
    stored, state = stored.astype(dtype), state.astype(dtype)
    if stored_mask is None:
        stored_mask = jnp.ones(stored.shape[:-1], bool)
    logits = beta * jnp.einsum("...QD,...KD->...QK", state, stored)
    logits = jnp.where(stored_mask[..., None, :], logits, -jnp.inf)
    lse = jax.nn.logsumexp(logits, axis=-1) / beta
    count = jnp.log(stored_mask.sum(axis=-1).astype(dtype)) / beta
    norms = jnp.where(stored_mask, (stored * stored).sum(axis=-1), 0)
    constant = count + norms.max(axis=-1, initial=0) / 2
    kinetic = (state * state).sum(axis=-1) / 2
    # Infinite minus infinite would be no number.
    total = kinetic - lse + constant[..., None]
    return jnp.where(stored_mask.any(axis=-1)[..., None], total, jnp.inf)


def associate(
    query: Float[Array, "*B Q N C"],
    key: Float[Array, "*B K N C"],
    scale: float | Float[Array, "N 1"],
    mask: Bool[Array, "*#B #N #Q #K"] | None = None,
    bias: Float[Array, "*#B #N #Q #K"] | None = None,
) -> Float[Array, "*B N Q K"]:
    """Attention over keys, but zero everywhere for a state that may see no pattern."""
    weights = attention_weights(query, key, scale=scale, mask=mask, bias=bias)
    if mask is None:
        return weights
    return jnp.where(mask.any(axis=-1, keepdims=True), weights, 0)


def until_still(update: Callable[[Any, jax.Array], Any], start: Any) -> Any:
    """`update(carry, number of the update)` while any of carry's last array is True."""

    def moving(carry: tuple) -> jax.Array:
        step, (*_, active) = carry
        return active.any() & (step <= UPDATES_AT_MOST)

    def one(carry: tuple) -> tuple:
        step, inner = carry
        return step + 1, update(inner, step)

    return jax.lax.while_loop(moving, one, (jnp.int32(1), start))[1]


class Hopfield(nn.Module):
    """States are associated with stored patterns, once or often; they read projections.

    q = LN(state) W_Q, k = LN(stored) W_K, v = LN(projection) W_V, per head; then
    A = softmax(beta q k^T), `max_updates` times q <- A k and A anew; A v, all heads
    side by side, times W_out. With `max_updates` 0 this is a Transformer's attention.

    Attributes:
        head_dim: C, of the association space per head; None: state width / heads (the
            width of the static input where there is one).
        value_dim: P, of a projected value per head; None: as `head_dim` (the width of a
            static projection).
        output_width: of the output; None: the state's.
        beta: inverse temperature, one or one per head; None: 1 / sqrt(C).
        trainable_beta: learn ln(beta), one per head, starting at `beta`.
        max_updates: of the state beyond the first association, one or one per head;
            None: until `eps` alone ends them, at most 1,000, and not in training.
        eps: a head of a sample stops once an update changes its association matrix by
            no more than this (Frobenius norm over states and patterns), one or one per
            head; None: never before `max_updates`.
        norm_stored, norm_state, norm_projection: layer normalisation of the inputs,
            before the projections and of static inputs too.
        norm_association: one for q and k together, over C; updated states are not
            normalised again.
        static_stored, static_state, static_projection: the input is used as it is, the
            same for all heads, without W_K, W_Q, W_V.
        connected: v = (LN(projection) W_K) W_V, as in the paper; else v =
            LN(projection) W_V.
        zero_association: one more pattern, all zeros, that is never masked.
        out_projection: multiply by W_out; else the output has N * P channels.
        activation: of the output.
        dropout: share of the last association that is dropped in training.
        remat: compute the updates anew for the gradient, to save memory.

    Args (call):
        stored, state, projection: a missing one is `stored`.
        stored_mask: True where a pattern takes part. A state that may see none reads 0.
        association_mask: True where a state may see a pattern.
        association_bias: added to beta q k^T; -inf bars as a mask does.

    Sows the last association [B, N, Q, K] as `attention`.

    Raises:
        ValueError: widths, heads or per-head values that do not fit; `max_updates` None
            in training.

    Source: paper eq. 10 and appendix A.6; ml-jku/hopfield-layers f56f929, which we
    follow where the two differ: v is unconnected by default, and the stopping rule
    looks at the association, not at the state. We differ from its code where that errs:
    one beta per head means that, static inputs never mix samples, and no sample's
    stopping depends on the others of its batch (the code takes the largest change).
    """

    num_heads: int = 1
    head_dim: int | None = None
    value_dim: int | None = None
    output_width: int | None = None
    beta: float | tuple[float, ...] | None = None
    trainable_beta: bool = False
    max_updates: int | tuple[int | None, ...] | None = 0
    eps: float | tuple[float, ...] | None = 1e-4
    norm_stored: Normalisation = "affine"
    norm_state: Normalisation = "affine"
    norm_projection: Normalisation = "affine"
    norm_association: Normalisation = "off"
    norm_stored_epsilon: float = 1e-5
    norm_state_epsilon: float = 1e-5
    norm_projection_epsilon: float = 1e-5
    norm_association_epsilon: float = 1e-5
    static_stored: bool = False
    static_state: bool = False
    static_projection: bool = False
    connected: bool = False
    zero_association: bool = False
    use_bias: bool = True
    out_projection: bool = True
    activation: Literal["relu", "selu", "sigmoid", "tanh"] | None = None
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False

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
            query = self.shared_by_heads(state)
        else:
            query = self.to_heads("query", channels)(state)
        to_key = None if self.static_stored else self.to_heads("key", channels)
        key = self.shared_by_heads(stored) if to_key is None else to_key(stored)
        if self.connected and to_key is not None:
            value = to_key(projection)
            if not self.static_projection:
                value = self.to_heads("value", value_channels, axis=(-2, -1))(value)
        elif self.static_projection:
            value = self.shared_by_heads(projection)
        else:
            value = self.to_heads("value", value_channels)(projection)

        if self.norm_association != "off":
            norm = self.norm(
                "association", self.norm_association, self.norm_association_epsilon
            )
            query, key = norm(query), norm(key)

        mask, bias = merged(stored_mask, association_mask, association_bias)
        if self.zero_association:
            one_more = ((0, 0), (0, 1), (0, 0), (0, 0))
            patterns = key.shape[1]
            key, value = jnp.pad(key, one_more), jnp.pad(value, one_more)
            mask, bias = widened(mask, patterns, True), widened(bias, patterns, 0)

        weights = self.settle(query, key, self.scale(channels), mask, bias, train)
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

    def settle(
        self,
        query: jax.Array,
        key: jax.Array,
        scale: float | jax.Array,
        mask: jax.Array | None,
        bias: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """The association after the updates of the states."""
        weights = associate(query, key, scale, mask, bias)
        limits = self.per_head("max_updates", self.max_updates)
        if None in limits and train:
            raise ValueError(
                f"max_updates={self.max_updates!r} cannot be trained: a loop without a "
                "fixed length has no gradient. Set max_updates to a number."
            )
        if limits == (0,) * self.num_heads:
            return weights
        known = [UPDATES_AT_MOST if limit is None else limit for limit in limits]
        limit = jnp.array(known).reshape(1, -1)
        if None in limits and self.eps is None:
            raise ValueError("max_updates=None never ends without eps; set eps.")
        eps = None
        if self.eps is not None:
            eps = jnp.array(self.per_head("eps", self.eps), weights.dtype)
            eps = eps.reshape(1, -1)

        def update(carry: tuple, step: jax.Array) -> tuple:
            query, weights, active = carry  # active: [B, N]
            moved = mix(weights, key)
            query = jnp.where(active[:, None, :, None], moved, query)
            new = associate(query, key, scale, mask, bias)
            new = jnp.where(active[:, :, None, None], new, weights)
            active &= step < limit
            if eps is not None:
                change = jax.lax.stop_gradient(new - weights)
                active &= jnp.sqrt((change * change).sum(axis=(-2, -1))) > eps
            return query, new, active

        active = jnp.broadcast_to(limit > 0, weights.shape[:2])
        start = (query, weights, active)
        if None in limits:
            return until_still(update, start)[1]
        body = jax.checkpoint(update) if self.remat else update
        steps = jnp.arange(1, max(known) + 1)
        return jax.lax.scan(lambda c, step: (body(c, step), None), start, steps)[0][1]

    def scale(self, channels: int) -> float | jax.Array:
        """beta: a float where all heads share it and it is fixed, else [N, 1]."""
        beta = channels**-0.5 if self.beta is None else self.beta
        if not self.trainable_beta and isinstance(beta, float):
            return beta
        values = jnp.array(self.per_head("beta", beta))
        if self.trainable_beta:
            log_beta = self.param("log_beta", lambda key: jnp.log(values))
            values = jnp.exp(log_beta)
        return values.reshape(-1, 1)

    def per_head(self, field: str, value: Any) -> tuple:
        """The value of every head."""
        if not isinstance(value, tuple | list):
            return (value,) * self.num_heads
        if len(value) != self.num_heads:
            raise ValueError(
                f"{field}={value!r} has {len(value)} entries for num_heads="
                f"{self.num_heads}; give one for each head, or a single number."
            )
        return tuple(value)

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
                    f"static_{role}=True takes {role} into the association space as it "
                    f"is: its width {x.shape[-1]} must be head_dim={channels}."
                )
        return channels

    def value_width(self, projection: jax.Array, channels: int) -> int:
        width = self.value_dim or channels
        if self.connected and not self.static_stored:
            if self.static_projection and width != channels:
                raise ValueError(
                    f"value_dim={width} must be head_dim={channels} where a static "
                    "projection is connected: W_K alone makes its values."
                )
        elif self.static_projection:
            if self.value_dim not in (None, projection.shape[-1]):
                raise ValueError(
                    "static_projection=True takes projection as it is: its width "
                    f"{projection.shape[-1]} must be value_dim={self.value_dim}."
                )
            width = projection.shape[-1]
        return width

    def norm(self, name: str, kind: Normalisation, epsilon: float) -> Callable:
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

    def shared_by_heads(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:2], self.num_heads, x.shape[-1])
        return jnp.broadcast_to(x[:, :, None].astype(self.dtype), shape)


def merged(
    stored_mask: jax.Array | None,
    association_mask: jax.Array | None,
    association_bias: jax.Array | None,
) -> tuple[jax.Array | None, jax.Array | None]:
    """(all that bars as one mask [#B, #N, #Q, K], the bias without its -inf)."""
    masks = [] if stored_mask is None else [stored_mask[:, None, None, :]]
    masks += [] if association_mask is None else [association_mask]
    if association_bias is not None:
        barred = jnp.isneginf(association_bias)
        masks.append(~barred)
        association_bias = jnp.where(barred, 0, association_bias)
    mask = None
    for each in masks:
        mask = each if mask is None else mask & each
    return mask, association_bias


def widened(x: jax.Array | None, patterns: int, value: float | bool) -> Any:
    """A mask or bias [#B, #N, #Q, #K] with one more pattern at the end."""
    if x is None:
        return None
    x = jnp.broadcast_to(x, (*x.shape[:-1], patterns))
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=value)


class HopfieldPooling(nn.Module):
    """A bag in, one vector out: `quantity` learned states are associated with the bag.

    Attributes:
        hopfield: the `Hopfield` inside.
        quantity: of learned states; their outputs come side by side.
        width: of a learned state; None: of the stored patterns. A static state needs
            the `head_dim` of `hopfield`.
        trainable: False keeps the states at their random start.

    Args (call): as of `Hopfield`, without a state.

    Source: paper section 3 (layer type "HopfieldPooling"); the official code.
    """

    hopfield: nn.Module
    quantity: int = 1
    width: int | None = None
    trainable: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        stored: Float[Array, "B K Dk"],
        projection: Float[Array, "B K Dv"] | None = None,
        *,
        stored_mask: Bool[Array, "B K"] | None = None,
        association_mask: Bool[Array, "#B #N #Q #K"] | None = None,
        association_bias: Float[Array, "#B #N #Q #K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B pooled"]:
        width = self.width or stored.shape[-1]
        state = learned(self, "state", self.quantity, width, self.trainable)
        output = self.hopfield(
            stored,
            repeated(state, stored.shape[0], self.dtype),
            projection,
            stored_mask=stored_mask,
            association_mask=association_mask,
            association_bias=association_bias,
            train=train,
        )
        return output.reshape(output.shape[0], -1)


class HopfieldLayer(nn.Module):
    """States in, as many out: each is associated with `quantity` learned patterns.

    Attributes:
        hopfield: the `Hopfield` inside.
        quantity: of learned patterns. With a single one the output is constant: a
            softmax over one pattern is 1 whatever the state.
        width: of a learned pattern; None: of the state. A static stored pattern needs
            the `head_dim` of `hopfield`.
        separate_projection: learn what is read apart from what is compared.
        projection_width: of the former; None: as `width`.
        trainable, trainable_projection: False keeps them at their random start.

    Args (call): as of `Hopfield`, of which only the state is given.

    Source: paper section 3 (layer type "HopfieldLayer"); the official code.
    """

    hopfield: nn.Module
    quantity: int
    width: int | None = None
    separate_projection: bool = False
    projection_width: int | None = None
    trainable: bool = True
    trainable_projection: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        state: Float[Array, "B Q Dq"],
        *,
        stored_mask: Bool[Array, "B K"] | None = None,
        association_mask: Bool[Array, "#B #N #Q #K"] | None = None,
        association_bias: Float[Array, "#B #N #Q #K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B Q Do"]:
        batch, width = state.shape[0], self.width or state.shape[-1]
        stored = learned(self, "stored", self.quantity, width, self.trainable)
        projection = stored
        if self.separate_projection:
            projection = learned(
                self,
                "projection",
                self.quantity,
                self.projection_width or width,
                self.trainable_projection,
            )
        return self.hopfield(
            repeated(stored, batch, self.dtype),
            state,
            repeated(projection, batch, self.dtype),
            stored_mask=stored_mask,
            association_mask=association_mask,
            association_bias=association_bias,
            train=train,
        )


def learned(
    module: nn.Module, name: str, quantity: int, width: int, trainable: bool
) -> jax.Array:
    """A parameter [1, quantity, D] of the calling module, N(0, 0.02)."""
    normal = nn.initializers.normal(0.02)
    patterns = module.param(name, normal, (1, quantity, width))
    return patterns if trainable else jax.lax.stop_gradient(patterns)


def repeated(patterns: jax.Array, batch: int, dtype: str) -> jax.Array:
    shape = (batch, *patterns.shape[1:])
    return jnp.broadcast_to(patterns.astype(dtype), shape)


class MeanPooling(nn.Module):
    """The mean of the patterns that take part; zeros where none does."""

    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        stored: Float[Array, "B K D"],
        *,
        stored_mask: Bool[Array, "B K"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B D"]:
        del train  # nothing random
        if stored_mask is None:
            stored_mask = jnp.ones(stored.shape[:2], bool)
        present = stored_mask[:, :, None].astype(jnp.float32)
        total = (stored.astype(jnp.float32) * present).sum(axis=1)  # sums in float32
        return (total / jnp.maximum(present.sum(axis=1), 1)).astype(self.dtype)


class ImageEncoder(nn.Module):
    """An image to a vector: convolutions, each with ReLU and 2x2 max-pooling; a layer.

    Attributes:
        channels: of each convolution.
        kernel_size: in pixels, its side.
        width: of the result.

    Source: after Ilse et al. 2018 (table 8), whose widths are (20, 50) and 500.
    """

    channels: tuple[int, ...]
    width: int
    kernel_size: int = 3
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "*B H W c"]) -> Float[Array, "*B D"]:
        x = images.reshape(-1, *images.shape[-3:])
        kernel = (self.kernel_size, self.kernel_size)
        for i, channels in enumerate(self.channels):
            x = nn.Conv(channels, kernel, dtype=self.dtype, name=f"conv_{i}")(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = x.reshape(*images.shape[:-3], -1)
        return nn.relu(nn.Dense(self.width, dtype=self.dtype, name="dense")(x))


class FeatureEncoder(nn.Module):
    """A vector to a vector: dense layers, each with ReLU (paper appendix A.5.2)."""

    widths: tuple[int, ...]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: Float[Array, "*B F"]) -> Float[Array, "*B D"]:
        x = features
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(x))
        return x


class BagClassifier(nn.Module):
    """Instances -> encoder -> pooling -> one logit a bag (multiple instance learning).

    Attributes:
        encoder: instances [B, K, ...] to [B, K, D], each by itself.
        pooling: [B, K, D] and `stored_mask` [B, K] to [B, D].
        dropout: share of the pooled channels dropped in training.
        remat: encode the instances anew for the gradient, to save memory.

    Args (call):
        instances: images [B, K, H, W, C] or features [B, K, F], padded to K.
        mask: True at instances, False at padding, which then changes nothing.

    Returns (call): `pooled` [B, D], what the head multiplies; `logits` [B]. Float32.

    Source: Ramsauer et al. 2021 section 4, "multiple instance learning"; Ilse et al.
    2018.
    """

    encoder: nn.Module
    pooling: nn.Module
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        instances: Float[Array, "B K *instance"],
        mask: Bool[Array, "B K"],
        *,
        train: bool = False,
    ) -> dict[str, Array]:
        def encode(encoder: nn.Module, x: jax.Array) -> jax.Array:
            return encoder(x)

        encode = nn.remat(encode) if self.remat else encode
        encoded = encode(self.encoder, instances.astype(self.dtype))
        pooled = self.pooling(encoded, stored_mask=mask, train=train)
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        pooled = pooled.astype(jnp.float32)
        logits = nn.Dense(1, name="head")(pooled)[:, 0]
        return {"logits": logits, "pooled": pooled}
