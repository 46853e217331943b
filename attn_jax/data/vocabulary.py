"""WordPiece vocabularies: training one, and tokenizing with it."""

import collections
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIALS))
LEAST_COUNT = 2  # of a character or a merged piece in the training text


def train_vocabulary(
    sentences: Iterable[str], size: int, *, lower_case: bool = True
) -> tuple[str, ...]:
    """Trains `size` word pieces: the special tokens, the characters, then merges.

    The trainer repeatedly merges the most frequent pair of pieces (byte-pair encoding
    with "##"), as every WordPiece trainer of `tokenizers` does. It numbers characters in
    the order of a randomly seeded hash map and breaks ties by number, so two runs
    differ. Passing all characters in sorted order as special tokens makes the result
    deterministic.

    Raises:
        ValueError: `size` is smaller than the alphabet, or larger than what the text
            yields.

    Source: google-research/bert released no trainer; Hugging Face's
    train_bert_wordpiece.py takes the same steps and the same minimum count.
    """
    tokenizer = make_tokenizer(None, lower_case=lower_case)
    starts: collections.Counter[str] = collections.Counter()
    rests: collections.Counter[str] = collections.Counter()
    words: collections.Counter[str] = collections.Counter()
    for sentence in sentences:
        sentence = tokenizer.normalizer.normalize_str(sentence)
        parts = tokenizer.pre_tokenizer.pre_tokenize_str(sentence)
        words.update(word for word, _ in parts)
    for word, count in words.items():
        starts[word[0]] += count
        for character in word[1:]:
            rests[character] += count
    both = starts + rests
    alphabet = sorted(c for c, count in both.items() if count >= LEAST_COUNT)
    known = [*SPECIALS, *alphabet, *(f"##{c}" for c in alphabet if c in rests)]
    if len(known) >= size:
        raise ValueError(
            f"vocab_size={size} leaves no room beside {len(known)} special tokens and "
            "characters of the text; raise config.task.vocab_size and "
            "config.model.vocab_size."
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=LEAST_COUNT,
        limit_alphabet=len(alphabet),
        special_tokens=known,
        show_progress=False,
    )
    # The trainer reads word counts only, so each word stands once per occurrence.
    lines = (f"{word} " * count for word, count in words.items())
    tokenizer.train_from_iterator(lines, trainer)
    numbers = tokenizer.get_vocab()
    if len(numbers) != size:
        raise ValueError(
            f"the text yields {len(numbers)} word pieces that occur {LEAST_COUNT} "
            f"times, but vocab_size={size}; set config.task.vocab_size and "
            f"config.model.vocab_size to {len(numbers)} or less, or give more text."
        )
    return tuple(sorted(numbers, key=lambda piece: numbers[piece]))


def make_tokenizer(
    vocabulary: Sequence[str] | None, *, lower_case: bool = True
) -> tokenizers.Tokenizer:
    """BERT's tokenizer: clean, split off punctuation, longest piece first.

    A literal "[MASK]" in a text becomes three ordinary pieces, as in
    google-research/bert: no text turns into a special token.
    """
    known = {piece: number for number, piece in enumerate(vocabulary or SPECIALS)}
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(known, unk_token="[UNK]", max_input_chars_per_word=200)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
