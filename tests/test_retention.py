"""Which checkpoints stay: how `keep_best` is read. That they stay: test_checkpoint.py."""

import pytest

from attn_jax.retention import parse_best


@pytest.mark.parametrize(
    "text", ["validation/accuracy", "best:a/b", "max:accuracy", ""]
)
def test_keep_best_must_name_a_direction_and_a_metric(text):
    with pytest.raises(ValueError, match=f"keep_best='{text}' must read 'max:name/met"):
        parse_best(text)
    assert parse_best("min:a/b/c") == ("min", "a/b/c")
