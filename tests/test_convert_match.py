"""Classes of a head matched by name, and what to set where two models differ."""

import numpy as np
import pytest

from attn_jax.convert import explain_mismatch, match_head
from attn_jax.models.bert import Bert, ClassHead
from attn_jax.models.resnet import ResNetStem
from attn_jax.models.vit import ViT

HEAD = {
    "head/kernel": np.arange(6.0).reshape(2, 3),
    "head/bias": np.arange(3.0),
    "block_0/mlp/dense_1/bias": np.arange(3.0),
}


def test_columns_of_the_head_follow_their_names():
    found = match_head(HEAD, ("ant", "bee", "cat"), ("cat", "ant", "bee"))
    np.testing.assert_array_equal(found["head/bias"], [2, 0, 1])
    np.testing.assert_array_equal(found["head/kernel"], [[2, 0, 1], [5, 3, 4]])
    body = "block_0/mlp/dense_1/bias"
    np.testing.assert_array_equal(found[body], HEAD[body])


def test_columns_without_a_name_stay():
    found = match_head(HEAD, ("ant", "bee"), ("bee", "ant"))
    np.testing.assert_array_equal(found["head/bias"], [1, 0, 2])


def test_a_model_without_a_head_is_left_as_it_is():
    assert match_head({}, ("ant", "bee"), ("bee", "ant")) == {}


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (
            ("ant", "bee"),
            ("ant",),
            "the data lacks 'bee'. To train a new head, add head/",
        ),
        (("ant",), ("ant", "bee"), "the checkpoint's head lacks 'bee'"),
        (("ant", "bee"), ("ant", "eel"), "data lacks 'bee'; the .* head lacks 'eel'"),
        (("ant", "ant"), ("ant",), "two classes are called 'ant'"),
        (("a", "b", "c", "d"), ("d", "c", "b", "a"), "3 columns, but there are 4"),
    ],
)
def test_classes_that_do_not_match_are_named(theirs, ours, message):
    with pytest.raises(ValueError, match=message):
        match_head(HEAD, theirs, ours)


VIT = ViT(10, patch_size=16, width=768, depth=12, mlp_width=3072, num_heads=12)


def test_other_widths_name_the_fields_to_set():
    ours = VIT.clone(width=64, mlp_width=256, num_heads=4, pool="gap", dtype="bfloat16")
    assert explain_mismatch(VIT, ours) == (
        "to take its parameters, set --config.model.width=768 "
        "--config.model.mlp_width=3072 --config.model.num_heads=12 --config.model.pool=cls"
    )


def test_another_head_patch_size_or_precision_is_no_mismatch():
    ours = VIT.clone(num_classes=3, patch_size=8, dropout=0.1, remat=True)
    assert explain_mismatch(VIT, ours) is None


def test_another_model_is_named():
    bert = Bert(30, width=768, depth=12, mlp_width=3072, num_heads=12)
    assert (
        explain_mismatch(bert, VIT)
        == "the checkpoint holds a Bert, the model is a ViT; name another checkpoint"
    )
    hybrid = VIT.clone(stem=ResNetStem())
    assert "its stem is a ResNetStem" in explain_mismatch(hybrid, VIT)
    assert "--config.model.stem=null" in explain_mismatch(VIT, hybrid)


def test_advice_names_no_head_of_bert():
    """A pre-trained run has heads of its own, which fine-tuning is to replace."""
    theirs = Bert(30, width=8, depth=1, mlp_width=8, num_heads=2, max_positions=32)
    ours = theirs.clone(heads=(), head=ClassHead(2), max_positions=64)
    assert (
        explain_mismatch(theirs, ours)
        == "to take its parameters, set --config.model.max_positions=32"
    )
    assert explain_mismatch(theirs, ours.clone(max_positions=32)) is None
