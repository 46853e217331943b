"""Slots over the features of a frozen ViT: targets, decoders, masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slot_models import KEY, KEYS

from attn_jax.models.slot_attention import (
    FeatureMLPDecoder,
    FeatureTransformerDecoder,
    SlotAttention,
    SlotAttentionAutoEncoder,
    SlotAttentionFeatureAutoEncoder,
)
from attn_jax.models.slot_attention.features import enlarge
from attn_jax.models.vit import ViT
from attn_jax.tasks.reconstruct import Reconstruct

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = jax.random.uniform(KEY, (2, 8, 12, 3), minval=-1)  # 2 x 3 patches
DECODERS = {
    "mlp": FeatureMLPDecoder((7,)),
    "transformer": FeatureTransformerDecoder(depth=2, num_heads=2, mlp_width=6),
}


def make(decoder):
    vit = ViT(0, patch_size=4, width=8, depth=1, mlp_width=8, num_heads=2, registers=2)
    slots = SlotAttention(3, iterations=2, width=6, mlp_width=5)
    return SlotAttentionFeatureAutoEncoder(vit, slots, DECODERS[decoder])


def test_slots_reconstruct_the_patches_of_the_backbone_which_gets_no_gradient():
    module = make("mlp")

    @jax.jit
    def compute():
        found, variables = module.init_with_output(KEY, IMAGES, sample_keys=KEYS[:2])
        backbone = {"params": variables["params"]["backbone"]}
        tokens = module.backbone.apply(backbone, IMAGES, train=False)["tokens"]

        def total(variables):
            outputs = module.apply(variables, IMAGES, sample_keys=KEYS[:2])
            return outputs["features"].sum()

        return found, tokens, jax.grad(total)(variables)

    found, tokens, gradient = compute()
    np.testing.assert_allclose(found["features"], tokens[:, 3:], atol=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert found["feature_reconstruction"].shape == (2, 6, 8)
    assert found["slots"].shape == (2, 3, 6)
    assert found["masks"].shape == (2, 3, 8, 12)
    np.testing.assert_allclose(found["masks"].sum(axis=1), 1, atol=1e-6)  # of softmaxes


@pytest.mark.parametrize("name", DECODERS)
def test_permuting_the_slots_permutes_the_masks_and_leaves_the_features(name):
    decoder = DECODERS[name]
    slots = jax.random.normal(KEY, (2, 3, 6))
    features = jax.random.normal(KEYS[1], (2, 6, 8))
    order = np.array([1, 2, 0])
    both = jnp.concatenate([slots, slots[:, order]])
    twice = jnp.concatenate([features, features])
    (made, masks), _ = jax.jit(decoder.init_with_output)(KEY, both, twice)
    # Sums over three slots in another order.
    np.testing.assert_allclose(made[2:], made[:2], atol=1e-5)
    np.testing.assert_allclose(masks[2:], masks[:2, order], atol=1e-5)
    assert np.abs(masks[:, 0] - masks[:, 1]).max() > 1e-3


def test_the_transformer_sees_no_patch_that_it_predicts_nor_a_later_one():
    decoder, slots = DECODERS["transformer"], jax.random.normal(KEY, (2, 3, 6))
    features = jax.random.normal(KEYS[1], (1, 6, 8))
    both = jnp.concatenate([features, features.at[:, 3].set(9.0)])
    slots = slots[:1].repeat(2, axis=0)
    (made, _), _ = jax.jit(decoder.init_with_output)(KEY, slots, both)
    np.testing.assert_allclose(made[0, :4], made[1, :4], atol=1e-5)
    assert np.abs(made[0, 4] - made[1, 4]).max() > 1e-3


def test_pixels_are_reconstructed_from_the_patches_of_a_backbone():
    module = SlotAttentionAutoEncoder(
        3,
        backbone=make("mlp").backbone,
        decoder_initial_size=(4, 6),
        decoder_channels=(4,),
        decoder_kernels=(3, 3),
        decoder_strides=(2, 1),
    )

    def shapes(module):
        return jax.eval_shape(
            lambda: module.init_with_output(KEY, IMAGES, sample_keys=KEYS[:2])
        )

    found, variables = shapes(module)
    assert found["reconstruction"].shape == IMAGES.shape
    assert found["attention"].shape == (2, 3, 6)
    assert set(variables["params"]["encoder"]) == {"norm", "mlp_1", "mlp_2"}
    assert "block_0" in variables["params"]["backbone"]
    with pytest.raises(
        ValueError, match="encoder_strides=.* no effect on config.model.ba"
    ):
        shapes(module.clone(encoder_strides=(2,)))


def test_the_task_compares_features_with_features():
    task = Reconstruct("clevr_lite", image_size=4, num_objects=1, target="features")
    batch = {"images": jnp.zeros((2, 4, 4, 3)), "valid": jnp.array([True, False])}
    batch["object_ids"] = jnp.ones((2, 4, 4), jnp.uint8)
    outputs = {
        "features": jnp.full((2, 6, 8), 3.0),
        "feature_reconstruction": jnp.full((2, 6, 8), 1.0),
        "masks": jnp.full((2, 3, 4, 4), 1 / 3),
    }
    total, count = task.loss(outputs, batch)["squared_error"]
    assert (float(total), float(count)) == (4.0, 1.0)
    pixels = dataclasses.replace(task, target="pixels")
    with pytest.raises(
        ValueError, match="target='pixels', but the model outputs no rec"
    ):
        pixels.loss(outputs, batch)
    with pytest.raises(ValueError, match="every_iteration=True needs target='pixels'"):
        dataclasses.replace(task, every_iteration=True)


def test_masks_keep_the_order_of_rows_and_columns():
    masks = jnp.zeros((1, 2, 6)).at[0, 0, 4].set(1.0)  # second row, second column
    large = np.asarray(enlarge(masks, (8, 12)))
    assert np.unravel_index(large[0, 0].argmax(), (8, 12))[0] >= 5
    assert 4 <= np.unravel_index(large[0, 0].argmax(), (8, 12))[1] < 8
    with pytest.raises(ValueError, match="6 features form no grid of the shape of 8x8"):
        enlarge(masks, (8, 8))
