"""Splits English prose into sentences."""

import re
from collections.abc import Iterator

PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
BULLET = re.compile(r"\s*(?:[-*+•o]|\d+[.)])\s+(?=\S)")
# A full stop, closing quotes and brackets, white space, and a capital in what follows.
SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))(?<!e\.g\.)(?<!i\.e\.)\s+(?=[\"'(\[`*]*[A-Z])"
)
WORD = re.compile(r"[^\W\d_]{2,}")


def split_sentences(text: str) -> Iterator[str]:
    """Yields the sentences of English prose with some markup, with single spaces.

    A sentence ends at a blank line or a bullet, and within a paragraph at ".", "!" or "?"
    before a capital letter. Left out are the rest of a paragraph from ">>>" on, grammar
    rules ("::="), underlines, and sentences that are no prose: of fewer than three words,
    or with over a fifth of the characters neither letter nor space.
    """
    for paragraph in PARAGRAPH.split(text):
        parts: list[list[str]] = [[]]
        for line in paragraph.splitlines():
            if line.lstrip().startswith(">>>"):
                break
            if "::=" in line or not any(map(str.isalpha, line)):
                continue
            if bullet := BULLET.match(line):
                line = line[bullet.end() :]
                parts.append([])
            parts[-1].append(line)
        for part in parts:
            for sentence in SENTENCE_END.split(" ".join(" ".join(part).split())):
                if _is_prose(sentence):
                    yield sentence


def _is_prose(sentence: str) -> bool:
    letters = sum(map(str.isalpha, sentence)) + sentence.count(" ")
    return letters >= 0.8 * len(sentence) and len(WORD.findall(sentence)) >= 3
