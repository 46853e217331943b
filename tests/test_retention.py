"""Which checkpoints stay: how `keep_best` is read. That they stay: test_checkpoint.py."""

import pytest

from attn_jax.retention import Ranking, parse_best


@pytest.mark.parametrize(
    "text", ["validation/accuracy", "best:a/b", "max:accuracy", ""]
)
def test_keep_best_must_name_a_direction_and_a_metric(text):
    with pytest.raises(ValueError, match=f"keep_best='{text}' must read 'max:name/met"):
        parse_best(text)
    assert parse_best("min:a/b/c") == ("min", "a/b/c")


def test_a_metric_that_its_evaluation_lacks_is_refused_before_it_is_run():
    ranking = Ranking("max:validation/accuracy")
    ranking.check({"validation": {"validation/accuracy", "validation/loss"}})
    ranking.check({"validation": None})  # a score whose names nobody knows yet
    with pytest.raises(
        ValueError, match="/accuracy' is not a metric .*; it has .*/loss"
    ):
        ranking.check({"validation": {"validation/loss"}})
    with pytest.raises(ValueError, match="evaluation 'validation', .* set `every`"):
        ranking.check({"test": {"test/accuracy"}})
    Ranking(None).check({})
