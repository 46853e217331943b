"""Words of one's own in a trained vocabulary."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bert import run, tiny

from attn_jax.commands import extend_vocabulary as command
from attn_jax.convert import export, load_pretrained
from attn_jax.convert.bert.extend import extend_vocabulary
from attn_jax.data.tokenizing import Tokenizer
from attn_jax.data.vocabulary import SPECIALS, parse_vocabulary, read_vocabulary

pytestmark = pytest.mark.usefixtures("quick_compilation")

PIECES = [*SPECIALS, *"abcdot", *(f"##{c}" for c in "abcdot"), "cat", "##a", "dog"]
PIECES = list(dict.fromkeys(PIECES))
VOCABULARY = {
    "vocab.txt": "".join(f"{p}\n" for p in PIECES),
    "text.json": '{"lower_case": true}',
}


@pytest.fixture(scope="module")
def model():
    module = tiny(vocab_size=len(PIECES))
    ids = jnp.array([[2, 5, 6, 3]])
    variables = module.init(jax.random.key(0), ids)
    return module, jax.tree.map(np.asarray, variables)


def test_a_new_word_starts_as_the_mean_of_its_pieces(model):
    module, variables = model
    bias = np.linspace(-1, 1, len(PIECES)).astype(np.float32)
    variables = {"params": {**variables["params"], "mlm_bias": bias}}
    words = ["catdob", "dog", "bod"]
    more, extended, vocabulary, known = extend_vocabulary(
        module, variables, VOCABULARY, words
    )
    pieces = parse_vocabulary(vocabulary["vocab.txt"])
    assert pieces == (*PIECES, "catdob", "bod")
    assert known == ["dog"]
    assert more.vocab_size == len(pieces)
    old, new = (
        v["params"]["token_embedding"]["embedding"] for v in (variables, extended)
    )
    np.testing.assert_array_equal(new[: len(PIECES)], old)
    ids = [PIECES.index(p) for p in ("cat", "##d", "##o", "##b")]
    # A mean in float64, rounded once.
    np.testing.assert_allclose(new[len(PIECES)], old[ids].mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        extended["params"]["mlm_bias"][len(PIECES)], bias[ids].mean(), rtol=1e-6
    )
    tokenizer = Tokenizer(pieces, lower_case=True)
    assert tokenizer.split("catdob dog bod cat") == ["catdob", "dog", "bod", "cat"]
    # A text without the new words has the outputs of before, for the pieces of before.
    ids = {"token_ids": jnp.array([[2, *tokenizer.encode("cat a dog"), 3]])}
    ours = run(more, extended, ids)["mlm_logits"][..., : len(PIECES)]
    theirs = run(module, variables, ids)["mlm_logits"]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # a larger product


@pytest.mark.parametrize(
    "words, message",
    [
        (["bod", "bod"], "word 2, 'bod', is repeated"),
        (["bod-cat"], "word 1, 'bod-cat', has characters"),
        (["Bod"], "word 1, 'Bod', is b ##o ##d to the tokenizer"),
        (["bod cat"], "word 1, 'bod cat', is b ##o ##d cat to"),
        (["xyz"], "word 1, 'xyz', has characters that the vocabulary does not know"),
        ([" "], "word 1, ' ', is nothing to the tokenizer"),
    ],
)
def test_a_word_that_is_none_is_refused(model, words, message):
    with pytest.raises(ValueError, match=message):
        extend_vocabulary(*model, VOCABULARY, words)


def test_another_vocabulary_than_that_of_the_model_is_refused(model):
    other = {"vocab.txt": VOCABULARY["vocab.txt"] + "zzz\n"}
    with pytest.raises(ValueError, match="word pieces, but the model"):
        extend_vocabulary(*model, other, ["bod"])


def test_the_command_writes_a_folder_that_trains_on(model, tmp_path, capsys):
    module, variables = model
    export(module, variables, tmp_path / "old", "hf", vocabulary=VOCABULARY)
    (tmp_path / "words.txt").write_text("bod\ndog\n\ncot\n")
    command.main(
        [
            f"--from={tmp_path / 'old'}",
            f"--words={tmp_path / 'words.txt'}",
            f"--to={tmp_path / 'new'}",
        ]
    )
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["added"], result["known_before"]) == (2, ["dog"])
    again, params = load_pretrained(tmp_path / "new")
    assert again.vocab_size == result["vocab_size"] == len(PIECES) + 2
    assert parse_vocabulary(read_vocabulary(tmp_path / "new")["vocab.txt"])[-1] == "cot"
    old = variables["params"]["token_embedding"]["embedding"]
    new = params["params"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(new[: len(PIECES)], old)
