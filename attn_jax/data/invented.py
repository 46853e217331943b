"""Invented texts for tasks whose real data must be fetched: they show that a recipe runs.

Each function draws from a generator that is seeded by the split, so that runs agree.
"""

import random

import numpy as np

from attn_jax.data import squad

PEOPLE = (
    "Anna Boris Clara David Elena Felix Greta Henry Irene Jonas Karin Louis".split()
)
PLACES = (
    "Athens Berlin Cairo Delhi Essen Fargo Genoa Haifa Izmir Jena Kyoto Lima".split()
)
THINGS = "apples books chairs dishes engines flowers guitars hats".split()
SIZES = {"train": 400, "validation": 80}


def draw(split: str) -> random.Random:
    """A generator for a split.

    Raises:
        ValueError: the split is not one of `SIZES`.
    """
    if split not in SIZES:
        raise ValueError(f"{split=} must be one of {', '.join(map(repr, SIZES))}.")
    return random.Random(split)


def make_questions(split: str) -> list[squad.Question]:
    """Who lives where, and sells what: questions about passages of four sentences."""
    rng = draw(split)
    questions = []
    for number in range(SIZES[split]):
        facts = [
            (person, rng.choice(PLACES), rng.choice(THINGS))
            for person in rng.sample(PEOPLE, 4)
        ]
        sentences = [f"{a} lives in {b} and sells {c}." for a, b, c in facts]
        person, place, thing = rng.choice(facts)
        start = " ".join(sentences).index(f"{person} lives")
        answer, question = rng.choice(
            [
                (place, f"Where does {person} live?"),
                (thing, f"What does {person} sell?"),
            ]
        )
        context = " ".join(sentences)
        found = (answer, context.index(answer, start))
        questions.append(
            squad.make_question(context, question, [found], id=f"{split}-{number}")
        )
    return questions


def make_tagged(split: str) -> list[tuple[list[str], list[str]]]:
    """(words, tags) of sentences with persons and places, as in CoNLL-2003."""
    rng = draw(split)
    sentences = []
    for _ in range(SIZES[split]):
        first, last, place = rng.choice(PEOPLE), rng.choice(PLACES), rng.choice(PLACES)
        sentences.append(
            rng.choice(
                [
                    (
                        [first, last, "sells", rng.choice(THINGS), "in", place, "."],
                        ["B-PER", "I-PER", "O", "O", "O", "B-LOC", "O"],
                    ),
                    (
                        ["In", place, first, "sells", rng.choice(THINGS), "."],
                        ["O", "B-LOC", "B-PER", "O", "O", "O"],
                    ),
                ]
            )
        )
    return sentences


def make_choices(split: str) -> list[tuple[str, list[str], int]]:
    """(context, four endings, number of the one that goes on about the same thing)."""
    rng = draw(split)
    rows = []
    for _ in range(SIZES[split]):
        person, thing = rng.choice(PEOPLE), rng.choice(THINGS)
        others = rng.sample([other for other in THINGS if other != thing], 3)
        right = rng.randrange(4)
        things = others[:right] + [thing] + others[right:]
        endings = [f"{person} sells the {other}." for other in things]
        rows.append((f"{person} has many {thing}.", endings, right))
    return rows


def make_bags(bags: int = 200) -> list[tuple[str, np.ndarray, str]]:
    """(name, instances [K, 8], label): every second bag holds a witness, a shifted vector."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(bags):
        x = rng.normal(size=(rng.integers(3, 9), 8))
        if number % 2:
            x[0] += 2.0
        label = "present" if number % 2 else "absent"
        found.append((str(number), rng.permutation(x).astype(np.float32), label))
    return found
