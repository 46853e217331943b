"""Slot Attention: slots compete for the parts of an image (Locatello et al., 2020).

Axes: B batch, N inputs (pixels or features), K slots, D slot width, T iterations, H W
image, P properties of an object.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from attn_jax.attention import attention_weights, layer_norm, mix

NORM_EPSILON = 1e-3  # of every layer norm, as in Keras
glorot = nn.initializers.glorot_uniform()  # of every kernel, as Keras has it


class SlotAttention(nn.Module):
    """T rounds in which slots compete for inputs and each is updated by what it won.

    Sows the weights of every iteration, [B, 1, K, N], as `attention`. What sums over
    inputs, the norms, the softmax and the GRU stay float32 whatever `dtype` is:
    `epsilon` vanishes in bfloat16, and so does a small addend in a sum over thousands
    of inputs.

    Attributes:
        num_slots, iterations: where the call names no others.
        width: D. The slots need not be as wide as the inputs.
        epsilon: added to every weight before the mean over inputs is taken, so that a
            slot that won nothing reads the mean of all inputs. (Not to the sum: there
            it would read almost zero.)

    Call:
        inputs: [B, N, C].
        sample_keys: [B], one key an example: its slots start at mu + sigma * normal.
            They do not depend on which other examples are in the batch.
        initial_slots: [B, K, D] to start from instead.
        every_iteration: return all of them too.

    Returns (call): `slots` [B, K, D]; `attention` [B, K, N] of the last iteration,
    softmax over slots, before epsilon and renormalisation; if asked for,
    `slots_per_iteration` [T + 1, B, K, D], the first the initial ones, and
    `attention_per_iteration` [T, B, K, N]. Float32.

    Raises:
        ValueError: not exactly one of `sample_keys` and `initial_slots` is given; a
            number of slots or iterations below 1, or one that disagrees with
            `initial_slots`.

    Source: paper sec. 2.1, algorithm 1. Where the paper and its code differ we follow
    the code (google-research, slot_attention/model.py): one 1e-3 epsilon in all norms,
    GRU in Keras' "reset after" form.
    """

    num_slots: int
    iterations: int = 3
    width: int = 64
    mlp_width: int = 128
    epsilon: float = 1e-8
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
        slots = self.start(
            mu, log_sigma, (inputs.shape[0], num_slots), sample_keys, initial_slots
        )

        x = layer_norm(NORM_EPSILON, "norm_inputs")(inputs).astype(self.dtype)
        key = dense(self.width, "key", use_bias=False)(x)
        # Float32, for it is summed over all inputs.
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

    def start(
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
                "batch_size), or initial_slots [B, K, D]."
            )
        if initial_slots is not None:
            if initial_slots.shape != (*shape, self.width):
                raise ValueError(
                    f"initial_slots are {list(initial_slots.shape)}, but the call and "
                    f"the module say [B, num_slots, width] = {[*shape, self.width]}; "
                    "leave out num_slots, or give slots of that shape."
                )
            return initial_slots.astype(jnp.float32)
        noise = jax.vmap(lambda key: jax.random.normal(key, (shape[1], self.width)))(
            sample_keys
        )
        return mu + jnp.exp(log_sigma) * noise


class GRU(nn.Module):
    """z * state + (1 - z) * tanh(x W + r * (state R + b)), in float32 throughout.

    The gates z, r and the candidate lie side by side in one matrix, as Keras has them:
    initialised that way the recurrent kernel is orthogonal as a whole, and smaller by
    sqrt(3) than three orthogonal ones, which Flax' own cell would start with.
    """

    width: int

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


class SlotAttentionAutoEncoder(nn.Module):
    """Object discovery: image -> slots -> a picture and a mask each -> image.

    The defaults are the paper's for CLEVR at 128 x 128. `decoder_channels` are those of
    all transposed convolutions but the last, which gives RGB and the mask's logit;
    kernels and strides are of all. Images are as large as the decoder makes them: its
    initial size times its strides. `remat` computes the decoder again for the gradient:
    its activations are by far the largest, [B * K, H, W, C] a layer.

    Call: `images` [B, H, W, 3] in [-1, 1]; the rest as in `SlotAttention`.

    Returns (call): those of `SlotAttention`, N in rows of the encoder's grid;
    `reconstruction` [B, H, W, 3]; `slot_reconstructions` [B, K, H, W, 3]; `masks`
    [B, K, H, W], which sum to 1 over slots. Float32.

    Raises:
        ValueError: the image is not of the decoder's size; lengths of layers differ;
            what `SlotAttention` raises.

    Source: paper sec. 2.2 and supplement; its code's object discovery model.
    """

    num_slots: int
    iterations: int = 3
    width: int = 64
    mlp_width: int = 128
    epsilon: float = 1e-8
    encoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    encoder_kernels: tuple[int, ...] = (5, 5, 5, 5)
    encoder_strides: tuple[int, ...] = (1, 1, 1, 1)
    decoder_initial_size: tuple[int, int] = (8, 8)
    decoder_channels: tuple[int, ...] = (64, 64, 64, 64, 64)
    decoder_kernels: tuple[int, ...] = (5, 5, 5, 5, 5, 3)
    decoder_strides: tuple[int, ...] = (2, 2, 2, 2, 1, 1)
    dtype: str = "float32"
    remat: bool = False

    def setup(self) -> None:
        self.encoder = Encoder(
            self.encoder_channels,
            self.encoder_kernels,
            self.encoder_strides,
            self.dtype,
        )
        self.slot_attention = SlotAttention(
            self.num_slots,
            self.iterations,
            self.width,
            self.mlp_width,
            self.epsilon,
            self.dtype,
        )
        decoder = nn.remat(Decoder) if self.remat else Decoder
        self.decoder = decoder(
            self.decoder_initial_size,
            (*self.decoder_channels, 4),
            self.decoder_kernels,
            self.decoder_strides,
            self.dtype,
        )

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        sample_keys: Key[Array, " B"] | None = None,
        initial_slots: Float[Array, "B K D"] | None = None,
        num_slots: int | None = None,
        iterations: int | None = None,
        every_iteration: bool = False,
        train: bool = False,
    ) -> dict[str, Array]:
        del train  # nothing here differs in training
        scale = math.prod(self.decoder_strides)
        size = tuple(side * scale for side in self.decoder_initial_size)
        check_size(
            images,
            size,
            f"the decoder makes {size[0]}x{size[1]} (decoder_initial_size "
            "times decoder_strides)",
            "config.model.decoder_initial_size",
        )
        found = self.slot_attention(
            self.encoder(images),
            sample_keys=sample_keys,
            initial_slots=initial_slots,
            num_slots=num_slots,
            iterations=iterations,
            every_iteration=every_iteration,
        )
        return found | self.decode(found["slots"])

    def decode(self, slots: Float[Array, "B K D"]) -> dict[str, Array]:
        """The images that slots stand for: `reconstruction`, `slot_reconstructions` and
        `masks` as in the call. Slots of any iteration may be decoded, in any number."""
        B, K, D = slots.shape
        decoded = self.decoder(slots.reshape(B * K, D)).astype(jnp.float32)
        decoded = decoded.reshape(B, K, *decoded.shape[1:])
        pictures, logits = decoded[..., :3], decoded[..., 3]
        masks = jax.nn.softmax(logits, axis=1)
        return {
            "reconstruction": (masks[..., None] * pictures).sum(axis=1),
            "slot_reconstructions": pictures,
            "masks": masks,
        }


class SlotAttentionClassifier(nn.Module):
    """Set prediction: image -> slots -> the properties of one object each.

    The defaults are the paper's for CLEVR10 at 128 x 128. `num_outputs` is P. `remat`
    computes the encoder again for the gradient.

    Call: `images` [B, H, W, 3] in [-1, 1]; the rest as in `SlotAttention`.

    Returns (call): those of `SlotAttention`, N in rows of the encoder's grid;
    `predictions` [B, K, P] in [0, 1]. Float32.

    Raises:
        ValueError: the image is not of `resolution`; lengths of layers differ; what
            `SlotAttention` raises.

    Source: paper sec. 2.3 and supplement; its code's set prediction model.
    """

    num_slots: int
    num_outputs: int = 19
    iterations: int = 3
    width: int = 64
    mlp_width: int = 128
    head_width: int = 64
    epsilon: float = 1e-8
    resolution: tuple[int, int] = (128, 128)
    encoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    encoder_kernels: tuple[int, ...] = (5, 5, 5, 5)
    encoder_strides: tuple[int, ...] = (1, 2, 2, 1)
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        sample_keys: Key[Array, " B"] | None = None,
        initial_slots: Float[Array, "B K D"] | None = None,
        num_slots: int | None = None,
        iterations: int | None = None,
        every_iteration: bool = False,
        train: bool = False,
    ) -> dict[str, Array]:
        del train  # nothing here differs in training
        height, width = self.resolution
        check_size(
            images,
            self.resolution,
            f"the model is made for {height}x{width}",
            "config.model.resolution",
        )
        encoder = nn.remat(Encoder) if self.remat else Encoder
        features = encoder(
            self.encoder_channels,
            self.encoder_kernels,
            self.encoder_strides,
            self.dtype,
            name="encoder",
        )(images)
        found = SlotAttention(
            self.num_slots,
            self.iterations,
            self.width,
            self.mlp_width,
            self.epsilon,
            self.dtype,
            name="slot_attention",
        )(
            features,
            sample_keys=sample_keys,
            initial_slots=initial_slots,
            num_slots=num_slots,
            iterations=iterations,
            every_iteration=every_iteration,
        )
        hidden = nn.Dense(
            self.head_width, dtype=self.dtype, kernel_init=glorot, name="head_1"
        )(found["slots"])
        logits = nn.Dense(self.num_outputs, kernel_init=glorot, name="head_2")(
            jax.nn.relu(hidden).astype(jnp.float32)
        )
        return found | {"predictions": jax.nn.sigmoid(logits)}


class Encoder(nn.Module):
    """Convolutions, position embedding, norm, MLP: a feature vector a grid cell."""

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B N C"]:
        check_lengths("encoder", self.channels, self.kernels, self.strides)
        x = images.astype(self.dtype)
        layers = zip(self.channels, self.kernels, self.strides, strict=True)
        for i, (channels, kernel, stride) in enumerate(layers):
            x = nn.Conv(
                channels,
                (kernel, kernel),
                (stride, stride),
                kernel_init=glorot,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            x = jax.nn.relu(x)
        B, H, W, C = x.shape
        x = x + PositionEmbedding((H, W), C, self.dtype, name="position")()
        x = layer_norm(NORM_EPSILON, "norm")(x.reshape(B, H * W, C)).astype(self.dtype)
        for name in ("mlp_1", "mlp_2"):
            x = nn.Dense(C, dtype=self.dtype, kernel_init=glorot, name=name)(x)
            x = jax.nn.relu(x) if name == "mlp_1" else x
        return x


class Decoder(nn.Module):
    """Each slot spread over a grid, positions added, transposed convolutions (spatial
    broadcast decoder, Watters et al., 2019)."""

    initial_size: tuple[int, int]
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @nn.compact
    def __call__(self, slots: Float[Array, "S D"]) -> Float[Array, "S H W C"]:
        check_lengths("decoder", self.channels, self.kernels, self.strides)
        position = PositionEmbedding(
            self.initial_size, slots.shape[-1], self.dtype, name="position"
        )()
        x = SpreadConvTranspose(
            self.channels[0],
            self.kernels[0],
            self.strides[0],
            self.dtype,
            name="conv_0",
        )(slots.astype(self.dtype), position)
        layers = zip(self.channels, self.kernels, self.strides, strict=True)
        for i, (channels, kernel, stride) in list(enumerate(layers))[1:]:
            x = nn.ConvTranspose(
                channels,
                (kernel, kernel),
                (stride, stride),
                transpose_kernel=True,  # [h, w, out, in], as Keras
                kernel_init=glorot,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(jax.nn.relu(x))
        return x


class SpreadConvTranspose(nn.Module):
    """A transposed convolution of (slots spread over the grid + positions), cheaply.

    It is linear, and every slot is the same wherever it is spread to. So the positions
    are convolved once for all slots, and for the slots it is one matrix a pixel: the
    kernel's taps that fall inside, summed. In a decoder of the full resolution this
    layer would else be half of all operations.
    """

    features: int
    kernel_size: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(
        self, slots: Float[Array, "S D"], position: Float[Array, "1 h w D"]
    ) -> Float[Array, "S H W C"]:
        D = slots.shape[-1]
        size = self.kernel_size
        kernel = self.param("kernel", glorot, (size, size, self.features, D))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)

        def transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
            strides = (self.stride, self.stride)
            return jax.lax.conv_transpose(
                x, kernel, strides, "SAME", transpose_kernel=True
            )

        ones = jnp.ones((*position.shape[:3], 1), kernel.dtype)
        taps = transposed(ones, kernel.reshape(size, size, -1, 1))[0]  # [H, W, C * D]
        taps = taps.reshape(*taps.shape[:2], self.features, D)
        x = jnp.einsum("SD,HWCD->SHWC", slots, taps) + transposed(position, kernel)
        return x + bias.reshape(1, 1, 1, -1)


class PositionEmbedding(nn.Module):
    """A linear map of each cell's (row, column, 1 - row, 1 - column), all in [0, 1]."""

    size: tuple[int, int]
    features: int
    dtype: str

    @nn.compact
    def __call__(self) -> Float[Array, "1 H W C"]:
        rows, columns = (np.linspace(0, 1, side) for side in self.size)
        grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
        grid = np.concatenate([grid, 1 - grid], axis=-1)[None]
        return nn.Dense(
            self.features, dtype=self.dtype, kernel_init=glorot, name="dense"
        )(jnp.asarray(grid, jnp.float32))


def check_size(images: Any, size: tuple[int, ...], rule: str, remedy: str) -> None:
    if images.shape[1:3] != tuple(size):
        found = "x".join(map(str, images.shape[1:3]))
        raise ValueError(
            f"images are {found}, but {rule}; change {remedy} or "
            "config.task.image_size."
        )


def check_lengths(part: str, *layers: tuple[int, ...]) -> None:
    names = ("channels", "kernels", "strides")
    if len({len(values) for values in layers}) > 1 or not layers[0]:
        shown = ", ".join(
            f"{len(values)} {name}" for name, values in zip(names, layers, strict=True)
        )
        last = " (the decoder's last channels are RGB and mask)"
        raise ValueError(
            f"the {part} has {shown}{last if part == 'decoder' else ''}; each layer "
            f"needs one of each. Change config.model.{part}_channels, _kernels "
            "or _strides."
        )
