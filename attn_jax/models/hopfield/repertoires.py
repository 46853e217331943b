"""Immune repertoires: sequences are embedded, pooled by one learned state, and classified.

Axes: B repertoires, K sequences, L letters, F features of a letter, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attn_jax.attention import attention_weights
from attn_jax.bounds import Depth, Width
from attn_jax.models.hopfield.streaming import associate_in_chunks

LETTERS = 20  # amino acids


def position_features(lengths: Int[Array, "*B"], size: int) -> Float[Array, "*B L 3"]:
    """How near each of L = `size` letters is to start, end and centre of its sequence.

    With v = |2 i / (n - 1) - 1| for letter i of n: the start is v in the first half (and in the
    middle), the end v in the second one, the centre 1 - v. Zeros behind the sequence.

    Source: Widrich et al. 2020; ml-jku/DeepRC 108d08d.
    """
    place = jnp.arange(size)
    length = lengths[..., None]
    place = place.reshape((1,) * lengths.ndim + (size,))
    far = jnp.abs(2 * place / jnp.maximum(length - 1, 1) - 1)
    first = place < (length + 1) // 2
    found = jnp.stack([far * first, far * ~first, 1 - far], axis=-1)
    return jnp.where((place < length)[..., None], found, 0).astype(jnp.float32)


def letter_features(
    sequences: Int[Array, "*B L"], factors: Float[Array, "*B"]
) -> Float[Array, "*B L F"]:
    """One-hot letters, multiplied by the factor of their sequence, and the three of its positions."""
    letters = jax.nn.one_hot(sequences, LETTERS) * factors[..., None, None]
    lengths = count_letters(sequences)
    places = position_features(lengths, sequences.shape[-1])
    return jnp.concatenate([letters, places], axis=-1)


def count_letters(sequences: Int[Array, "*B L"]) -> Int[Array, "*B"]:
    return (sequences >= 0).sum(axis=-1)


def feature_deviation(
    sequences: Int[Array, "B K L"],
    factors: Float[Array, "B K"],
    mask: Bool[Array, "B K"],
) -> Float[Array, " B"]:
    """The standard deviation of all features of a repertoire, of which each sequence is padded to L.

    From the lengths alone: no feature of a letter is computed. 1 for a repertoire whose features are
    all equal. L must be that of training.

    Source: ml-jku/DeepRC 108d08d, which divides the features by it.
    """
    size = sequences.shape[-1]
    lengths = jnp.where(mask, count_letters(sequences), 0)
    places = position_features(jnp.arange(size + 1), size)  # for every length
    total = lengths * factors + places.sum(axis=(1, 2))[lengths]
    squares = lengths * factors**2 + jnp.square(places).sum(axis=(1, 2))[lengths]
    total, squares = (
        jnp.where(mask, x, 0).sum(axis=1, dtype=jnp.float32) for x in (total, squares)
    )
    count = mask.sum(axis=1).astype(jnp.float32) * (size * (LETTERS + 3))
    count = jnp.maximum(count, 2)
    variance = (squares - total**2 / count) / (count - 1)
    return jnp.where(variance > 0, jnp.sqrt(jnp.maximum(variance, 1e-12)), 1)


class WindowDense(nn.Module):
    """A convolution without padding, as one matrix product over all windows.

    Equal to `nn.Conv` with the same parameters, whose gradient within a scan (`chunk`) takes XLA ten
    times as long on a CPU.
    """

    width: Width
    kernel_size: Width
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B L F"]) -> Float[Array, "B W D"]:
        shape = (self.kernel_size, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        count = x.shape[1] - self.kernel_size + 1
        parts = [x[:, i : i + count] for i in range(self.kernel_size)]
        windows = jnp.concatenate(parts, axis=-1).astype(self.dtype)
        matrix = kernel.reshape(-1, self.width).astype(self.dtype)
        return windows @ matrix + bias.astype(self.dtype)[None, None]


class SequenceEncoder(nn.Module):
    """Convolutions over the letters with SELU, then the largest value of each channel.

    Only windows inside a sequence count; a sequence shorter than a window has one, filled up with
    zeros. So what follows a sequence changes nothing, unlike in the original, which takes windows
    over padding, too.

    Attributes:
        width: D, channels of each convolution.
        kernel_size: letters of a kernel.
        layers: number of convolutions.

    Source: Widrich et al. 2020; ml-jku/DeepRC 108d08d.
    """

    width: Width = 32
    kernel_size: Width = 9
    layers: Depth = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, features: Float[Array, "*B L F"], lengths: Int[Array, "*B"]
    ) -> Float[Array, "*B D"]:
        spare = self.layers * (self.kernel_size - 1)
        *batch, letters, _ = features.shape
        x = features.reshape(-1, *features.shape[-2:])
        x = jnp.pad(x, ((0, 0), (0, max(spare + 1 - letters, 0)), (0, 0)))
        for i in range(self.layers):
            conv = WindowDense(
                self.width, self.kernel_size, self.dtype, name=f"conv_{i}"
            )
            x = nn.selu(conv(x))
        windows = jnp.maximum(lengths.reshape(-1, 1) - spare, 1)
        inside = jnp.arange(x.shape[1])[None] < windows
        smallest = jnp.finfo(x.dtype).min
        x = jnp.where(inside[:, :, None], x, smallest).max(axis=1)
        return x.reshape(*batch, self.width)


class SelfNormalizingNetwork(nn.Module):
    """Dense layers with SELU, then one of `outputs` channels without (None: no such layer).

    Source: Klambauer et al. 2017, whose initialization is Flax's default.
    """

    widths: tuple[Width, ...]
    outputs: Width | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B O"]:
        for i, width in enumerate(self.widths):
            x = nn.selu(nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(x))
        if self.outputs is None:
            return x
        return nn.Dense(self.outputs, dtype=self.dtype, name="out")(x)


class RepertoireClassifier(nn.Module):
    """DeepRC: is one of very many sequences that of a disease?

    Each sequence is embedded (`SequenceEncoder`); a network makes its key; one learned state is
    associated with all keys, with beta = 1, and reads the embeddings; a network classifies the result.
    The original keeps only the tenth of the sequences with the largest weights. Here all take part,
    `chunk` at a time: values and gradients are those of the whole softmax.

    Attributes:
        width, kernel_size, layers: of `SequenceEncoder`.
        attention_widths: layers of the network that makes the keys.
        output_widths: hidden layers of the network that classifies.
        outputs: logits of a repertoire.
        chunk: sequences of which letters are embedded at a time. The backward pass computes a chunk again,
            so memory grows with the embeddings [B, K, D] only. None: all at once.

    Args (call):
        instances: numbers of the letters, -1 behind a sequence. L is that of training.
        mask: False at sequences that are padding.
        factors: by which the one-hot letters of a sequence are multiplied: the logarithm of how often
            it was seen. None: 1.

    Returns (call): `pooled` [B, D]; `logits` [B], or [B, outputs] of several. Float32.

    Sows the weights [B, 1, 1, K] as `attention`.

    Source: Widrich et al. 2020; Ramsauer et al. 2021, section 4; ml-jku/DeepRC 108d08d, of which the
    initialization (smaller weights), and the constant added to all weights before their softmax, are not
    taken over.
    """

    width: Width = 32
    kernel_size: Width = 9
    layers: Depth = 1
    attention_widths: tuple[Width, ...] = (32, 32)
    output_widths: tuple[Width, ...] = ()
    outputs: Width = 1
    chunk: Width | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        self.encoder = SequenceEncoder(
            self.width, self.kernel_size, self.layers, self.dtype
        )
        self.key = SelfNormalizingNetwork(self.attention_widths, dtype=self.dtype)
        key_width = (self.width, *self.attention_widths)[-1]
        self.state = self.param(
            "state", nn.initializers.normal(key_width**-0.5), (key_width,)
        )
        self.head = SelfNormalizingNetwork(self.output_widths, self.outputs)

    def __call__(
        self,
        instances: Int[Array, "B K L"],
        mask: Bool[Array, "B K"],
        factors: Float[Array, "B K"] | None = None,
        *,
        train: bool = False,
    ) -> dict[str, Array]:
        del train  # the same in training and evaluation
        if factors is None:
            factors = jnp.ones(mask.shape, jnp.float32)
        deviation = feature_deviation(instances, factors, mask)
        value, key = self.embed_in_chunks(instances, factors, deviation)
        query = jnp.broadcast_to(
            self.state[None, None, None].astype(key.dtype),
            (instances.shape[0], 1, 1, key.shape[-1]),
        )
        value, key = value[:, :, None], key[:, :, None]  # one head
        masks = mask[:, None, None, :]
        if self.is_mutable_collection("intermediates"):
            weights = attention_weights(query, key, scale=1.0, mask=masks)
            self.sow("intermediates", "attention", weights)
        chunk = self.chunk or instances.shape[1]
        pooled = associate_in_chunks(query, key, value, 1.0, masks, chunk=chunk)
        pooled = pooled[:, 0, 0].astype(jnp.float32)
        logits = self.head(pooled)
        if self.outputs == 1:
            logits = logits[:, 0]
        return {"logits": logits, "pooled": pooled}

    def embed(
        self, sequences: jax.Array, factors: jax.Array, deviation: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Embeddings and keys [B, K, D] of some sequences of each repertoire."""
        features = letter_features(sequences, factors) / deviation[:, None, None, None]
        value = self.encoder(features, count_letters(sequences))
        return value, self.key(value)

    def embed_in_chunks(
        self, sequences: jax.Array, factors: jax.Array, deviation: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        batch, count, _ = sequences.shape
        if self.chunk is None or self.is_initializing():
            return self.embed(sequences, factors, deviation)
        missing = -count % self.chunk

        def split(x: jax.Array) -> jax.Array:
            """[B, K, ...] -> [K / chunk, B, chunk, ...]; what is missing is no letter."""
            pads = ((0, 0), (0, missing), (0, 0))[: x.ndim]
            x = jnp.pad(x, pads, constant_values=-1)
            return jnp.moveaxis(x.reshape(batch, -1, self.chunk, *x.shape[2:]), 1, 0)

        def step(
            module: "RepertoireClassifier", carry: tuple, part: tuple
        ) -> tuple[tuple, tuple[jax.Array, jax.Array]]:
            some, their_factors = part
            return carry, module.embed(some, their_factors, deviation)

        scan = nn.scan(
            nn.remat(step, prevent_cse=False),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        _, found = scan(self, (), (split(sequences), split(factors)))
        value, key = (
            jnp.moveaxis(x, 0, 1).reshape(batch, -1, x.shape[-1])[:, :count]
            for x in found
        )
        return value, key
