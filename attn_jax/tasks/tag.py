"""A tag for each word, such as named entities."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax import scores
from attn_jax.bounds import NonNegativeInt, Path
from attn_jax.data import conll, invented
from attn_jax.data.conll import Tagged
from attn_jax.data.tokenizing import Tokenizer, Tokenizing, refuse_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tag(Tokenizing):
    """Tags of words; a word's tag is read at its first piece.

    `attn_jax.data.tokenizing.Tokenizing` describes the fields of the vocabulary. Sentences longer
    than a row are cut into several.

    Attributes:
        data: a folder with CoNLL's files (train.txt, valid.txt, test.txt, or eng.train, ...):
            on each line a word, other columns, and its tag, separated by white space; an empty
            line between sentences. "generated": invented sentences, which need no file.
        tags: all tags, in the order of the head. None: those of the train split, sorted; `bind`
            sets it.
        num_tags: number of tags; must match the model's head.

    Source: Devlin et al. 2019, sec. 5.3.
    """

    data: Path
    num_tags: NonNegativeInt = 0
    tags: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.tags is not None and len(set(self.tags)) != len(self.tags):
            raise ValueError(f"config.task.tags={list(self.tags)} repeats a tag.")

    @property
    def coefficients(self) -> dict[str, float]:
        return {"cross_entropy": 1.0}

    def bind(self, assets: Mapping[str, str]) -> Any:
        """This task with vocabulary and tags of a run, see `Tokenizing.bind`."""
        bound = super().bind(assets)
        names = json.loads(assets.get("text.json", "{}")).get("labels")
        if names and bound.tags is None:
            pieces = bound._pieces
            bound = dataclasses.replace(bound, tags=tuple(names))
            object.__setattr__(bound, "_pieces", pieces)
        return bound

    def source(self, split: str) -> "Sentences":
        """The sentences of a split.

        Raises:
            ValueError: the data is missing or damaged, or has no such split; a tag is
                unknown; `num_tags` is another number.
        """
        sentences = self.read_sentences(split)
        train = self.tags is None or self._pieces is None
        known = self.read_sentences("train") if train else []
        tags = self.tags or tuple(sorted({tag for s in known for tag in s.tags}))
        if self.num_tags and len(tags) != self.num_tags:
            raise ValueError(
                f"{self.data!r} has {len(tags)} tags ({', '.join(tags[:12])}), but "
                f"config.task.num_tags={self.num_tags}; set it and "
                f"config.model.head.num_tags to {len(tags)}."
            )
        for number, sentence in enumerate(sentences):
            if strange := sorted(set(sentence.tags) - set(tags)):
                raise ValueError(
                    f"{self.data!r}, split {split!r}: sentence {number + 1} has the tag "
                    f"{strange[0]!r}, which is none of {', '.join(tags)}."
                )
        tokenizer = self.open_tokenizer(lambda: (" ".join(s.words) for s in known))
        parts = [
            part for sentence in sentences for part in self.cut(sentence, tokenizer)
        ]
        return Sentences(parts, tags, tokenizer)

    def read_sentences(self, split: str) -> list[Tagged]:
        if self.data == "generated":
            made = invented.make_tagged(split)
            return [Tagged(tuple(words), tuple(tags)) for words, tags in made]
        return conll.read_split(self.data, split)

    def cut(self, sentence: Tagged, tokenizer: Tokenizer) -> list[Tagged]:
        """The sentence in parts whose pieces fit a row; a longer word is a part and is cut."""
        parts: list[list[int]] = [[]]
        size = 0
        for number, word in enumerate(sentence.words):
            pieces = max(len(tokenizer.encode(word)), 1)
            if parts[-1] and size + pieces > self.sequence_length - 2:
                parts.append([])
                size = 0
            parts[-1].append(number)
            size += pieces
        return [
            Tagged(
                tuple(sentence.words[i] for i in part),
                tuple(sentence.tags[i] for i in part) if sentence.tags else (),
            )
            for part in parts
            if part
        ]

    def assets(self, source: "Sentences") -> dict[str, str]:
        """The vocabulary and the tags."""
        return self.describe_text(source.tokenizer, labels=list(source.tags))

    def example(
        self, record: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """`token_ids`, `segment_ids`, `mask` [S]; `labels` [S], -1 but at first pieces."""
        del rng
        row, places = self.place_words(record["words"], record["tokenizer"])
        labels = np.full(self.sequence_length, -1, np.int32)
        labels[places] = record["labels"][: len(places)]
        return {**row, "labels": labels}

    def place_words(
        self, words: Sequence[str], tokenizer: Tokenizer
    ) -> tuple[dict[str, np.ndarray], list[int]]:
        """(row, position of the first piece of each word)."""
        ids: list[int] = []
        places: list[int] = []
        for word in words:
            places.append(1 + len(ids))
            # A word of control characters alone has no pieces.
            ids += tokenizer.encode(word) or [tokenizer.special.unk]
        return self.make_row(tokenizer, ids), places

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Cross-entropy in nats and accuracy, over all words.

        Raises:
            ValueError: the model lacks the head.
        """
        logits, labels = read_logits(outputs), batch["labels"]
        counted = (labels >= 0) & batch["valid"][:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.maximum(labels, 0)
        )
        correct = (logits.argmax(-1) == labels) & counted
        count = counted.astype(jnp.float32).sum()
        return {
            "cross_entropy": ((losses * counted).sum(), count),
            "accuracy": (correct.astype(jnp.float32).sum(), count),
        }

    def predictions(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        return {
            "predicted": read_logits(outputs).argmax(-1),
            "labels": batch["labels"],
        }

    def score(
        self, predictions: Mapping[str, np.ndarray], records: "Sentences"
    ) -> dict[str, float]:
        """`precision`, `recall` and `f1` of whole entities, as conlleval computes them."""
        pairs = []
        for true, guess in zip(
            predictions["labels"], predictions["predicted"], strict=True
        ):
            at = true >= 0
            pairs.append(
                (
                    [records.tags[i] for i in true[at]],
                    [records.tags[i] for i in guess[at]],
                )
            )
        found = scores.score_entities(pairs)
        return {name: found[name] for name in ("precision", "recall", "f1")}

    def read_input(self, given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Tokenizes a text, split at white space, or a list of words.

        Raises:
            ValueError: it is neither, empty, or the name of a file.
        """
        refuse_file(given)
        words = given.split() if isinstance(given, str) else given
        if (
            not isinstance(words, list)
            or not words
            or not all(isinstance(word, str) for word in words)
        ):
            raise ValueError(
                f"{given!r:.80} is no text; give a string or a list of words."
            )
        parts = self.cut(Tagged(tuple(words), ()), self.tokenizer)
        rows = [self.place_words(part.words, self.tokenizer)[0] for part in parts]
        return {"text": " ".join(words), "words": list(words)}, rows

    def describe_outputs(
        self,
        named: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, np.ndarray]],
        top: int,
    ) -> dict[str, Any]:
        """`tags`, one per word, and `entities` as {"text", "type", "first", "last"} (words)."""
        del rows, top
        names = self.tags or ()
        words, tags = named["words"], []
        parts = self.cut(Tagged(tuple(words), ()), self.tokenizer)
        for part, output in zip(parts, outputs, strict=True):
            _, places = self.place_words(part.words, self.tokenizer)
            last = self.sequence_length - 1
            best = output["tag_logits"].argmax(-1)
            tags += [names[int(best[min(place, last)])] for place in places]
        entities = [
            {
                "text": " ".join(words[first:after]),
                "type": kind,
                "first": first,
                "last": after - 1,
            }
            for kind, first, after in scores.find_entities(tags)
        ]
        return {"tags": tags, "entities": entities}


class Sentences:
    """Records {"words", "labels", "tokenizer"}."""

    labels = None

    def __init__(
        self, parts: Sequence[Tagged], tags: tuple[str, ...], tokenizer: Tokenizer
    ):
        self.parts, self.tags, self.tokenizer = parts, tags, tokenizer
        self.numbers = {tag: number for number, tag in enumerate(tags)}

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = self.parts[index]
        return {
            "words": part.words,
            "labels": [self.numbers[tag] for tag in part.tags],
            "tokenizer": self.tokenizer,
        }

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.tokenizer.pieces, self.tags)).encode())
        for part in self.parts:
            digest.update(repr(part).encode())
        return digest.hexdigest()[:16]


def read_logits(outputs: Mapping[str, jax.Array]) -> jax.Array:
    if "tag_logits" not in outputs:
        raise ValueError(
            "the model has no tag_logits; set config.model.head to "
            "{'cls': 'attn_jax.models.bert:TagHead', 'num_tags': ...}."
        )
    return outputs["tag_logits"].astype(jnp.float32)
