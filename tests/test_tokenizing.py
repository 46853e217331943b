"""Tokens of text, against those of the original code."""

import gzip
import json
import pathlib

import pytest

from attn_jax.data.tokenizing import Tokenizer
from attn_jax.data.vocabulary import parse_vocabulary

GOLDEN = pathlib.Path(__file__).parent / "golden" / "bert" / "tokenization"


@pytest.fixture(scope="module")
def pieces():
    return parse_vocabulary((GOLDEN / "vocab.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("lower_case", [True, False])
def test_rare_characters_are_tokenized_as_the_original_does(pieces, lower_case):
    tokenizer = Tokenizer(pieces, lower_case=lower_case)
    cases = json.loads((GOLDEN / "edge_cases.json").read_text())["cases"]
    key = "wordpieces" if lower_case else "cased_wordpieces"
    assert len(cases) == 75
    for case in cases:
        assert tokenizer.split(case["text"]) == case[key], case["text"]


def test_questions_are_tokenized_as_the_original_does(pieces, shared):
    tokenizer = Tokenizer(pieces, lower_case=True)
    file = shared / "golden" / "bert" / "tokenization" / "questions.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 1000
    for text, _, tokens, ids in rows:
        assert tokenizer.split(text) == tokens
        assert tokenizer.encode(text) == ids
