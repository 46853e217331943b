"""The converter of Slot Attention: what it refuses, and which tree it makes.

That converted models give the numbers of the original is tested in test_slot_attention.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slot_models import GOLDEN, KEY, KEYS, load, weights_of

from attn_jax.convert import slot_attention
from attn_jax.convert.slot_attention import from_keras


@pytest.fixture(scope="module")
def keras():
    """kind -> (config, weights) that convert."""
    golden = load(GOLDEN / "object_discovery_small.npz")
    weights = weights_of(golden)
    slots = {"num_slots": 4}
    strides = golden["decoder_strides"].tolist()
    prefix = "slot_attention/"
    module = {
        k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)
    }
    classifier = {k: v for k, v in weights.items() if not k.startswith("decoder")}
    classifier["mlp_classifier/0/kernel"] = np.zeros((32, 24), np.float32)
    classifier["mlp_classifier/0/bias"] = np.zeros(24, np.float32)
    classifier["mlp_classifier/1/kernel"] = np.zeros((24, 5), np.float32)
    classifier["mlp_classifier/1/bias"] = np.zeros(5, np.float32)
    return {
        "SlotAttention": (slots, module),
        "SlotAttentionAutoEncoder": (slots | {"decoder_strides": strides}, weights),
        "SlotAttentionClassifier": (slots | {"resolution": [32, 24]}, classifier),
    }


def test_the_converted_tree_is_the_module_s_own(keras):
    inputs = {"SlotAttention": (2, 9, 16), "SlotAttentionAutoEncoder": (2, 32, 32, 3)}
    for kind, (config, weights) in keras.items():
        module, variables = from_keras(kind, config, weights)
        x = jnp.zeros(inputs.get(kind, (2, 32, 24, 3)))
        expected = jax.eval_shape(
            lambda m=module, x=x: m.init(KEY, x, sample_keys=KEYS[:2])
        )
        found = jax.tree.map(lambda leaf: leaf.shape, variables)
        assert found == jax.tree.map(lambda leaf: leaf.shape, expected)


def trace_each_module_once(monkeypatch):
    """Tracing is most of the time of a conversion, and most weights leave the module as it is."""
    shapes, original = {}, slot_attention.parameter_shapes

    def look_up(module, inputs, **options):
        key = module, inputs
        if key not in shapes:
            shapes[key] = original(module, inputs, **options)
        return shapes[key]

    monkeypatch.setattr(slot_attention, "parameter_shapes", look_up)


@pytest.mark.parametrize(
    "kind", ["SlotAttention", "SlotAttentionAutoEncoder", "SlotAttentionClassifier"]
)
def test_missing_unused_and_misshapen_weights_are_named(keras, kind, monkeypatch):
    config, weights = keras[kind]
    trace_each_module_once(monkeypatch)
    for name in weights:
        fewer = {k: v for k, v in weights.items() if k != name}
        with pytest.raises(ValueError):
            from_keras(kind, config, fewer)
        with pytest.raises(ValueError):
            from_keras(kind, config, weights | {name: weights[name][..., None]})
        larger = np.concatenate([weights[name], weights[name]], axis=-1)
        if not name.startswith("mlp_classifier/1"):
            with pytest.raises(ValueError):
                from_keras(kind, config, weights | {name: larger})
    with pytest.raises(ValueError, match=r"spare +\[3\] +no such parameter"):
        from_keras(kind, config, weights | {"spare": np.zeros(3)})


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("Slots", {}, "kind='Slots' cannot be converted; the kinds are SlotAttention,"),
        ("SlotAttention", {"slots": 3}, "'slots' is no setting of SlotAttention"),
        ("SlotAttention", {"num_slots": None}, "needs num_slots"),
        (
            "SlotAttentionAutoEncoder",
            {"decoder_strides": [2, 2, 1]},
            r"decoder_strides=\(2, 2, 1\), but the weights have 4 layers",
        ),
        (
            "SlotAttentionAutoEncoder",
            {"resolution": [64, 64]},
            r"resolution=\(64, 64\).*\(32, 32\); set decoder_initial_size",
        ),
        (
            "SlotAttentionClassifier",
            {"encoder_strides": [1, 2]},
            "encoder_strides=.*4 layers in the encoder",
        ),
    ],
)
def test_a_conversion_that_cannot_be_says_why(keras, kind, changes, words):
    config, weights = keras.get(kind, keras["SlotAttention"])
    config = {k: v for k, v in {**config, **changes}.items() if v is not None}
    with pytest.raises(ValueError, match=words):
        from_keras(kind, config, weights)
