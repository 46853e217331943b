"""A corpus in an invented language, for tests of text."""

import functools
import random

import numpy as np

from attn_jax.data import text

V, S = 120, 32  # vocabulary and sequence length of most tests
DOCUMENTS = 40
PAD, UNK, CLS, SEP, MASK = range(5)  # of a vocabulary that is trained here


@functools.cache
def documents():
    """Forty documents of 1 to 20 sentences."""
    draw = random.Random(0)
    words = [
        "".join(draw.choices("abcdefgh", k=draw.randint(1, 8))) for _ in range(200)
    ]

    def sentence():
        return " ".join(draw.choices(words, k=draw.randint(2, 9))) + "."

    return [[sentence() for _ in range(draw.randint(1, 20))] for _ in range(DOCUMENTS)]


def write(path, documents):
    """Writes Google's format: a sentence a line, a blank line between documents."""
    path.write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n")
    return str(path)


def check_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def check_same_corpus(ours, theirs):
    assert ours.vocabulary == theirs.vocabulary
    for split in text.SPLITS:
        check_equal(vars(ours.splits[split]), vars(theirs.splits[split]))
