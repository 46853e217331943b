"""Rows of a table by lookup: the stored patterns are the training rows, the values their labels.

Axes: B rows asked about, K stored rows, F features, C classes, D width.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SMALLEST = 1e-6  # probability of a class that no associated row has


class RowLookup(nn.Module):
    """Gives a row the labels of the stored rows that it is associated with.

    p = A Y: A [B, K] are the association weights of the encoded rows with the encoded stored rows, and Y
    [K, C] holds a one for the class of each stored row. So the labels are data, not parameters, and a
    new class needs no new head. A stored row that is asked about does not see itself, as its own
    label would be all that training needs.

    Attributes:
        encoder: maps features [N, F] to [N, D]; the same for both kinds of rows.
        hopfield: a `Hopfield` with static_projection=True, norm_projection="off" and
            out_projection=False, so that its values are the labels.

    Args (call):
        features: rows asked about.
        stored, targets: the stored rows and their classes, one-hot.
        own: the number of a row among the stored ones; negative: it is none of them.

    Returns (call): `logits` [B, C], ln p (mean over heads; p is at least 1e-6), float32.

    Raises:
        ValueError: the outputs of `hopfield` are no mean of targets.

    Source: Ramsauer et al. 2021, sec. 4 and app. A.5 (drug design: the training set is stored, its labels
    are the projection). Their UCI networks learn the stored patterns instead. With a single head and
    an encoder it is neighbourhood components analysis (Goldberger et al. 2004) with products in the place
    of distances.
    """

    encoder: nn.Module
    hopfield: nn.Module

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B F"],
        stored: Float[Array, "K F"],
        targets: Float[Array, "K C"],
        own: Int[Array, " B"],
        *,
        train: bool = False,
    ) -> dict[str, Array]:
        B, K = features.shape[0], stored.shape[0]
        encoded = self.encoder(jnp.concatenate([features, stored]))
        others = own[:, None] != jnp.arange(K)[None]
        # One sample whose states are the rows, so that the stored rows are not repeated.
        found = self.hopfield(
            encoded[None, B:],
            encoded[None, :B],
            targets[None],
            association_mask=others[None, None],
            train=train,
        )
        heads, rest = divmod(found.shape[-1], targets.shape[-1])
        if rest or found.shape[-1] == 0:
            raise ValueError(
                f"hopfield has outputs of {found.shape[-1]} numbers for {targets.shape[-1]} "
                "classes; set static_projection=True and out_projection=False."
            )
        chances = found[0].astype(jnp.float32).reshape(B, heads, -1)
        return {"logits": jnp.log(jnp.maximum(chances.mean(axis=1), SMALLEST))}
