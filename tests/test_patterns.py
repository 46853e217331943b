"""Regexes of a config: real ones pass, none may take exponential time."""

import time

import pytest

from attn_jax import paths, patterns

REAL = [
    ".*/kernel",
    ".*/attention/(query|key|value)/kernel",
    "(?!head/).*",
    "block_(0|1|2)/.*/(kernel|bias)",
    r"(encoder|decoder)/(conv_\d+|norm)/.*",
    "|".join(f"block_{i}/mlp/dense_1/kernel" for i in range(70)),
]
SLOW = [
    r"(\w+/?)+!",
    "(a+)+!",
    "(a|aa)*!",
    "(.*)*!",
    "a?" * 30 + "a" * 30,
    ".*.*.*.*.*.*.*!",
    "((a{1,30}){1,30}){1,30}!",
    "(?:ab|a|b)+!",
    "(?=(a+)+!).*",
]


@pytest.mark.parametrize("pattern", REAL)
def test_a_real_pattern_is_accepted(pattern):
    assert patterns.find_fault(pattern) is None


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_of_exponential_time_is_refused_without_being_run(pattern):
    began = time.monotonic()
    with pytest.raises(ValueError, match="config.freeze: .* cannot take exponential"):
        paths.match_names([pattern], ["a" * 60], key="freeze")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 5000 + ")" * 5000])
def test_what_is_no_regex_says_why(pattern):
    with pytest.raises(
        ValueError, match="config.freeze: .* a regular expression \\(.*"
    ):
        paths.match_names([pattern], ["a"], key="freeze")
