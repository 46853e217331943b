"""The baseline of the paper: slots without attention.

Axes: B batch, N inputs, K slots, D slot width, C channels.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from attn_jax.bounds import GridSide, Width
from attn_jax.models.slot_attention.keras import glorot


class SlotMLP(nn.Module):
    """All slots at once from all inputs by an MLP, with weights for each place and slot.

    So neither the order of the inputs nor that of the slots is free, and the number of both
    is fixed. It takes the place of `SlotAttention` in a model.

    Attributes:
        num_slots, width: K and D.
        grid: side to which the grid of inputs is resized, bilinearly.
        widths: of the hidden layers. The paper has (512, 512) for set prediction and
            (512, 1024, 1024) for object discovery.
        slot_widths: of an MLP after it, the same for every slot; (64, 64) in object discovery.

    Call: `inputs` [B, N, C], a square grid row by row; `sample_keys` is not used.

    Returns (call): `slots` [B, K, D]. Float32.

    Raises:
        ValueError: N is no square; another number of slots, initial slots or iterations are
            asked for, as it has none.

    Source: paper, supplement ("Slot MLP").
    """

    num_slots: Width
    width: Width = 64
    grid: GridSide = 16
    widths: tuple[Width, ...] = (512, 512)
    slot_widths: tuple[Width, ...] = ()
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
        del sample_keys  # nothing random
        B, N, C = inputs.shape
        side = math.isqrt(N)
        if side * side != N:
            raise ValueError(f"{N} inputs are no square grid, which SlotMLP needs.")
        asked = {
            "initial_slots": initial_slots is not None,
            "num_slots": num_slots not in (None, self.num_slots),
            "iterations": iterations is not None,
            "every_iteration": every_iteration,
        }
        if any(asked.values()):
            name = next(name for name, given in asked.items() if given)
            raise ValueError(
                f"SlotMLP has {self.num_slots} slots and no iterations, so {name} cannot be "
                "chosen; leave it out."
            )
        x = inputs.reshape(B, side, side, C)
        shape = (B, self.grid, self.grid, C)
        x = jax.image.resize(x, shape, "bilinear", antialias=False).reshape(B, -1)
        x = self.apply_layers(x, (*self.widths, self.num_slots * self.width), "dense")
        slots = x.reshape(B, self.num_slots, self.width)
        if self.slot_widths:
            slots = self.apply_layers(jax.nn.relu(slots), self.slot_widths, "slot")
        return {"slots": slots.astype(jnp.float32)}

    def apply_layers(
        self, x: jax.Array, widths: tuple[int, ...], name: str
    ) -> jax.Array:
        """Dense layers with ReLU between them."""
        for i, width in enumerate(widths):
            x = jax.nn.relu(x) if i else x
            x = nn.Dense(
                width, dtype=self.dtype, kernel_init=glorot, name=f"{name}_{i + 1}"
            )(x)
        return x
