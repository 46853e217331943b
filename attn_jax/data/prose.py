"""Splits prose into sentences."""

import re
import unicodedata
from collections.abc import Iterator

PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
BULLET = re.compile(r"\s*(?:[-*+•o]|\d+[.)])\s+(?=\S)")
# A full stop, closing quotes and brackets, white space, and a capital in what follows.
ENGLISH_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))(?<!e\.g\.)(?<!i\.e\.)\s+(?=[\"'(\[`*]*[A-Z])"
)
# The same with the quotes of other languages; whether a letter that may begin a sentence
# follows is asked of the letter.
PAUSE = re.compile(
    r"(?:(?<=[.!?…])|(?<=[.!?…][\"')\]»”’]))(?<!e\.g\.)(?<!i\.e\.)\s+"
    r"(?=[\"'(\[`*«“‘„¿¡]*(\w))"
)
# Marks that end a sentence of a script without capitals, whatever follows: Chinese and
# Japanese, Arabic and Urdu, Devanagari, Armenian, Ethiopic, Khmer, Burmese, Tibetan.
MARK = re.compile(r"(?<=[。！？｡؟۔।॥։።፧។။།])[\"')\]»”’」』）】》]*+\s*+(?=\S)")
WORD = re.compile(r"[^\W\d_]{2,}")
LEAST_LETTERS = 4  # in place of three words, in scripts that do not separate them


def split_sentences(text: str, version: int = 3) -> Iterator[str]:
    """Yields the sentences of prose with some markup, with single spaces.

    A sentence ends at a blank line or a bullet, within a paragraph at ".", "!", "?" or "…"
    before a letter that is no lower-case one, and at the marks that end sentences in scripts
    without capitals. Left out are the rest of a paragraph from ">>>" on, grammar rules ("::="),
    underlines, and sentences that are no prose: of fewer than three words, or with over a fifth of
    the characters neither letter nor space; in scripts without capitals, of fewer than four
    letters, or fewer letters than other characters.

    Args:
        version: 1 and 2 end English sentences only, before A to Z.
    """
    split, is_prose = (
        (ENGLISH_END.split, is_english_prose)
        if version < 3
        else (split_line, is_prose_of_any_script)
    )
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
            for sentence in split(" ".join(" ".join(part).split())):
                if is_prose(sentence):
                    yield sentence


def split_line(line: str) -> list[str]:
    """The sentences of a line of any script."""
    ends = [
        (found.start(), found.end())
        for found in PAUSE.finditer(line)
        if not found[1].islower() and found[1].isalpha()
    ]
    if not line.isascii():
        ends += [(end, end) for end in (found.end() for found in MARK.finditer(line))]
        ends.sort()
    starts = [0, *(end for _, end in ends)]
    stops = [*(start for start, _ in ends), len(line)]
    parts = (line[a:b].strip() for a, b in zip(starts, stops, strict=True))
    return [part for part in parts if part]


def is_english_prose(sentence: str) -> bool:
    letters = sum(map(str.isalpha, sentence)) + sentence.count(" ")
    return letters >= 0.8 * len(sentence) and len(WORD.findall(sentence)) >= 3


def is_prose_of_any_script(sentence: str) -> bool:
    if sentence.isascii():
        return is_english_prose(sentence)
    # Vowel signs of Devanagari, Thai and others are marks, and no letters to Python.
    letters = sum(c.isalpha() or unicodedata.category(c)[0] == "M" for c in sentence)
    without_case = sum(c.isalpha() and c.lower() == c.upper() for c in sentence)
    if 2 * without_case > letters:
        # Where words have one or two letters, a quarter of the text may be punctuation.
        return without_case >= LEAST_LETTERS and 2 * letters >= len(sentence)
    letters += sentence.count(" ")
    return letters >= 0.8 * len(sentence) and len(WORD.findall(sentence)) >= 3
