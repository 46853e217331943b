"""timm's configuration on the Hub, and what its arguments hide."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_vit_convert import (
    GOLDEN,
)

from attn_jax.convert import export, load_pretrained
from attn_jax.models.vit import ViT

pytestmark = pytest.mark.usefixtures("quick_compilation")


def on_the_hub(folder, architecture, width=192, depth=1, **changes):
    """Writes a folder as timm puts it on the Hub."""
    model = ViT(
        num_classes=3,
        patch_size=8,
        width=width,
        depth=depth,
        mlp_width=24,
        num_heads=3 if width == 192 else 1,
        dialect="timm",
        **changes,
    )
    images = jnp.zeros((1, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    export(model, variables, folder / "model.safetensors", "timm")
    (folder / "model.json").unlink()
    config = {
        "architecture": architecture,
        "num_classes": 3,
        "global_pool": "token",
        "pretrained_cfg": {"input_size": [3, 16, 16]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return variables


def test_the_hubs_config_of_timm_is_read(tmp_path):
    """Heads follow from the name and the width there."""
    variables = on_the_hub(tmp_path, "vit_tiny_patch8_16.augreg_in1k")
    module, loaded = load_pretrained(tmp_path)
    assert module.num_heads == 3
    assert module.rules[:2] == ("erf", 1e-6)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])


@pytest.mark.parametrize(
    ("architecture", "width", "heads", "gelu", "epsilon"),
    [
        ("vit_base_patch16_clip_224.openai_ft_in1k", 768, 12, "erf", 1e-5),
        ("vit_huge_patch14_clip_quickgelu_378", 1280, 16, "quick", 1e-5),
        ("vit_so400m_patch14_siglip_384", 1152, 16, "erf", 1e-6),
        ("vit_so400m_patch16_siglip_gap_256", 1152, 16, "tanh", 1e-6),
        ("vit_large_patch16_siglip_384", 1024, 16, "erf", 1e-6),
        ("vit_large_patch16_siglip_512", 1024, 16, "tanh", 1e-6),
        ("vit_base_patch16_gap_224", 768, 16, "erf", 1e-6),
        ("deit3_base_patch16_224", 768, 12, "erf", 1e-6),
    ],
)
def test_what_an_architecture_of_timm_hides(
    architecture, width, heads, gelu, epsilon, tmp_path
):
    """As timm's constructors have it; none of this shows in the arrays."""
    on_the_hub(tmp_path, architecture, width=width)
    module, _ = load_pretrained(tmp_path)
    assert (module.num_heads, *module.rules[:2]) == (heads, gelu, epsilon)


def test_an_architecture_that_only_timm_knows_is_asked_for(tmp_path):
    on_the_hub(tmp_path, "vit_base_patch16_rpn_224")
    with pytest.raises(ValueError, match="pass num_heads, gelu, norm_epsilon"):
        load_pretrained(tmp_path)
    module, _ = load_pretrained(tmp_path, num_heads=6, gelu="quick", norm_epsilon=1e-3)
    assert (module.num_heads, *module.rules[:2]) == (6, "quick", 1e-3)


@pytest.mark.parametrize(
    "argument", [{"pool_include_prefix": True}, {"norm_layer": "rmsnorm"}]
)
def test_arguments_of_timm_that_leave_no_trace_are_refused(argument, tmp_path):
    stored = json.loads((GOLDEN / "timm" / "avg_fc_norm.json").read_text())
    shutil.copy(GOLDEN / "timm" / "avg_fc_norm.safetensors", tmp_path)
    (tmp_path / "avg_fc_norm.json").write_text(json.dumps(stored | argument))
    with pytest.raises(ValueError, match=next(iter(argument))):
        load_pretrained(tmp_path / "avg_fc_norm.safetensors")


def test_an_epsilon_that_timm_cannot_be_told_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="norm_epsilon=1e-05 is not timm's"):
        on_the_hub(tmp_path, "vit_tiny_patch8_16", norm_epsilon=1e-5)
