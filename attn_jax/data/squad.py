"""SQuAD's files, and the windows in which a passage is read.

Source: google-research/bert run_squad.py, `read_squad_examples` and
`convert_examples_to_features`.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from attn_jax.data import bounded
from attn_jax.data.tokenizing import Tokenizer
from attn_jax.folder import expand_local

MAX_BYTES = 2**30  # of a file; SQuAD 2.0's has 42 MB
NARROW_SPACE = "\u202f"  # counts as white space here


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a passage.

    Attributes:
        id, title: of the question, and of its article.
        words: of the passage, split at white space; word i is
            context[starts[i] : starts[i] + len(words[i])].
        answers: texts of all true answers; empty if it cannot be answered.
        first, last: words of the first answer, for training; None if there is none, or its
            text is not where the file says.
    """

    id: str
    title: str
    question: str
    context: str
    words: tuple[str, ...]
    starts: tuple[int, ...]
    answers: tuple[str, ...]
    first: int | None = None
    last: int | None = None

    @property
    def is_lost(self) -> bool:
        """Whether there is an answer, but not where the file says."""
        return bool(self.answers) and self.first is None


class Window(NamedTuple):
    """A part of a passage with its question: [CLS] question [SEP] part [SEP].

    Attributes:
        question: number of the question.
        query, part: word pieces of the question and of the part.
        offset: position of the part's first piece in the row.
        words: for each piece of the part, the number of its word in the passage.
        is_best: for each piece, whether no other window gives it more context.
        start, end: positions of the answer in the row, 0 if it is not in this part.
    """

    question: int
    query: tuple[str, ...]
    part: tuple[str, ...]
    offset: int
    words: tuple[int, ...]
    is_best: tuple[bool, ...]
    start: int
    end: int

    @property
    def pieces(self) -> list[str]:
        return ["[CLS]", *self.query, "[SEP]", *self.part, "[SEP]"]


def read_split(data: str, split: str, version: str, holdout: int) -> list[Question]:
    """Reads the questions of a split.

    Args:
        data: SQuAD's folder (train-v1.1.json, dev-v1.1.json), or one file of its form.
        holdout: number of articles of a single file that are the validation split; chosen by
            the digests of their titles.

    Raises:
        ValueError: the data is missing or damaged, or has no such split.
    """
    path = expand_local(data)
    if path.is_dir():
        name = {"train": "train", "validation": "dev"}.get(split)
        if name is None:
            raise ValueError(
                f"SQuAD has the splits 'train' and 'validation', not {split!r}."
            )
        return read_questions(path / f"{name}-v{version}.json")
    questions = read_questions(path)
    if split not in ("train", "validation") or (split == "validation" and not holdout):
        raise ValueError(
            f"{data!r} is one file, so it has no split {split!r}; set "
            "config.task.holdout to a number of articles, or "
            "config.evals.NAME.task.data to another file and its split to 'train'."
        )
    titles = sorted(
        {question.title for question in questions},
        key=lambda title: hashlib.sha256(title.encode()).digest(),
    )
    if holdout >= len(titles):
        raise ValueError(
            f"config.task.holdout={holdout} leaves no article to train on; {data!r} has "
            f"{len(titles)}."
        )
    held = set(titles[:holdout])
    return [q for q in questions if (q.title in held) == (split == "validation")]


def read_questions(path: pathlib.Path) -> list[Question]:
    """Reads the questions of a file of SQuAD 1.1 or 2.0.

    Raises:
        ValueError: the file is missing, too large, or has another structure.
    """
    shown = bounded.printable(path)
    if not path.exists():
        raise ValueError(
            f"{shown} does not exist. Set config.task.data to SQuAD's JSON."
        )
    if bounded.check_regular(path) > MAX_BYTES:
        raise ValueError(f"{shown} has more than {MAX_BYTES:,} bytes.")
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        return [
            make_question(
                paragraph["context"],
                entry["question"],
                [(a["text"], a["answer_start"]) for a in entry.get("answers", [])]
                if not entry.get("is_impossible", False)
                else [],
                id=entry["id"],
                title=article.get("title", ""),
            )
            for article in articles
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{shown} is no file of SQuAD (data / paragraphs / qas): {error!r:.80}."
        ) from error


def make_question(
    context: str,
    question: str,
    answers: Sequence[tuple[str, int]] = (),
    *,
    id: str = "",
    title: str = "",
) -> Question:
    """Splits the passage into words, and finds the words of the first answer.

    Args:
        answers: (text, offset in characters) of each.
    """
    words, starts, word_of = split_words(context)
    first = last = None
    if answers:
        text, start = answers[0]
        end = start + len(text) - 1
        if 0 <= start <= end < len(word_of):
            first, last = word_of[start], word_of[end]
            found = " ".join(words[first : last + 1])
            if found.find(" ".join(text.split())) == -1:
                first = last = None
    return Question(
        id=id,
        title=title,
        question=question,
        context=context,
        words=tuple(words),
        starts=tuple(starts),
        answers=tuple(text for text, _ in answers),
        first=first,
        last=last,
    )


def split_words(context: str) -> tuple[list[str], list[int], list[int]]:
    """(words, place of each, number of the word at or before each character)."""
    words: list[str] = []
    starts: list[int] = []
    word_of: list[int] = []
    after_space = True
    for place, character in enumerate(context):
        if character in " \t\r\n" + NARROW_SPACE:
            after_space = True
        elif after_space:
            words.append(character)
            starts.append(place)
            after_space = False
        else:
            words[-1] += character
        word_of.append(len(words) - 1)
    return words, starts, word_of


def cut_windows(
    question: Question,
    number: int,
    tokenizer: Tokenizer,
    *,
    length: int,
    stride: int,
    max_query: int,
) -> Iterator[Window]:
    """Yields the windows of a question's passage.

    Args:
        length: of a row, S.
        stride: pieces from the start of a window to that of the next.
        max_query: pieces of the question that are kept.

    Raises:
        ValueError: the question leaves no room for the passage.
    """
    query = tokenizer.split(question.question)[:max_query]
    pieces: list[str] = []
    word_of: list[int] = []
    first_piece: list[int] = []
    for word_number, word in enumerate(question.words):
        first_piece.append(len(pieces))
        for piece in tokenizer.split(word):
            pieces.append(piece)
            word_of.append(word_number)
    room = length - len(query) - 3
    if room < 1:
        raise ValueError(
            f"a question of {len(query)} word pieces leaves no room for the passage in rows of "
            f"{length}; lower config.task.max_query_length or raise "
            "config.task.sequence_length."
        )
    span = find_pieces(question, pieces, first_piece, tokenizer)
    spans = list(divide(len(pieces), room, stride))
    for chosen, (start, size) in enumerate(spans):
        offset = len(query) + 2
        answer = (0, 0)
        if span is not None and start <= span[0] and span[1] < start + size:
            answer = (span[0] - start + offset, span[1] - start + offset)
        yield Window(
            number,
            tuple(query),
            tuple(pieces[start : start + size]),
            offset,
            tuple(word_of[start : start + size]),
            tuple(
                find_best_span(spans, place) == chosen
                for place in range(start, start + size)
            ),
            *answer,
        )


def divide(total: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yields (start, size) of the windows over `total` pieces."""
    start = 0
    while start < total:
        size = min(total - start, room)
        yield start, size
        if start + size == total:
            return
        start += min(size, stride)


def find_best_span(spans: Sequence[tuple[int, int]], place: int) -> int:
    """The window in which a piece has most context on its poorer side; the first on ties.

    A hundredth of the window's size is added, so that of equal ones the longer wins.
    """
    best, best_score = 0, -1.0
    for number, (start, size) in enumerate(spans):
        if start <= place < start + size:
            score = min(place - start, start + size - 1 - place) + 0.01 * size
            if score > best_score:
                best, best_score = number, score
    return best


def find_pieces(
    question: Question,
    pieces: Sequence[str],
    first_piece: Sequence[int],
    tokenizer: Tokenizer,
) -> tuple[int, int] | None:
    """(first, last) piece of the answer; None without one.

    Words may be longer than the answer: of "(1895-1943)." the answer may be "1895". The pieces
    are narrowed to those of the answer, if they are found.
    """
    if question.first is None or question.last is None:
        return None
    first = first_piece[question.first]
    last = len(pieces) - 1
    if question.last + 1 < len(question.words):
        last = first_piece[question.last + 1] - 1
    wanted = tokenizer.split(question.answers[0])
    for start in range(first, last + 1):
        for end in range(last, start - 1, -1):
            if list(pieces[start : end + 1]) == wanted:
                return start, end
    return first, last
