"""A prepared corpus: the rows of its shards, and shards that are not as they should be."""

import json
import pickle
import re

import numpy as np
import pytest
from invented import S, V, check_equal, documents, write

from attn_jax.data import pairs, prepare, shards, text, units
from attn_jax.tasks.masked_lm import MaskedLM


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A prepared corpus of several shards."""
    monkeypatch.setattr(units, "UNIT_BYTES", 1500)
    data = write(tmp_path / "text.txt", documents())
    settings = units.Settings(one_sentence_per_line=True)
    job = prepare.open_job([data], tmp_path / "prepared", settings, V)
    for number in range(len(job.units)):
        prepare.prepare_unit(job, number)
    assert len(job.units) > 3
    return job.folder


@pytest.fixture
def task(folder):
    return MaskedLM(data=str(folder), vocab_size=V, sequence_length=S)


def join(parts):
    """One text in memory with the documents of several."""
    builder = text.Builder()
    for part in parts:
        for document in range(part.num_documents):
            first, last = part.bounds(document)
            builder.add([part.tokens(s, s + 1).tolist() for s in range(first, last)])
    return builder.build()


@pytest.mark.parametrize("split", text.SPLITS)
def test_shards_answer_as_one_text_does(folder, split):
    many = shards.open_corpus(folder).splits[split]
    assert len(many.parts) > 1
    one = join(many.read_text(part) for part in range(len(many.parts)))
    assert (many.num_documents, many.num_tokens) == (one.num_documents, one.num_tokens)
    runs = one.find_runs(S - 3)
    np.testing.assert_array_equal(many.find_runs(S - 3), runs)
    np.testing.assert_array_equal(
        many.find_documents(runs[:-1]), one.find_documents(runs[:-1])
    )
    np.testing.assert_array_equal(many.count_tokens(V), one.count_tokens(V))
    for document in range(one.num_documents):
        first, last = one.bounds(document)
        assert many.bounds(document) == (first, last)
        np.testing.assert_array_equal(many.tokens(first, last), one.tokens(first, last))
        for target in (1, 9, 10**6):
            assert many.find_end(first, last, target) == one.find_end(
                first, last, target
            )


def test_rows_of_shards_are_those_of_the_same_text_in_memory(task):
    source = task.source("train")
    many = source.corpus
    splits = {
        name: join(part.read_text(i) for i in range(len(part.parts)))
        for name, part in many.splits.items()
    }
    memory = text.Corpus(splits, many.vocabulary, many.lower_case)
    other = pairs.PairSource(memory, "train", target=task.text_length)
    assert len(source) == len(other) > 20
    for i in range(len(source)):
        rngs = np.random.default_rng(i), np.random.default_rng(i)
        ours = task.example(source[i], rngs[0])
        check_equal(ours, task.example(other[i], rngs[1]))
    ours, theirs = (json.loads(task.assets(s)["text.json"]) for s in (source, other))
    assert ours == theirs


def test_a_source_of_shards_travels_as_a_path_and_reads_the_same(task):
    source = task.source("train")
    sent = pickle.dumps(source)
    assert len(sent) < 500  # bytes
    again = pickle.loads(sent)
    assert again.fingerprint() == source.fingerprint()
    check_equal(task.example(source[3], None), task.example(again[3], None))


def test_a_fingerprint_differs_for_other_text_and_not_for_another_place(task, folder):
    before = task.source("train").fingerprint()
    moved = folder.rename(folder.with_name("moved"))
    other = MaskedLM(data=str(moved), vocab_size=V, sequence_length=S)
    assert other.source("train").fingerprint() == before
    index = moved / "000001.json"
    changed = re.sub('"sha256": "....', '"sha256": "beef', index.read_text(), count=1)
    index.write_text(changed)
    assert other.source("train").fingerprint() != before


def test_opening_reads_no_tokens(folder, monkeypatch):
    load = np.load

    def refuse(path, *arguments, **options):
        assert options.get("mmap_mode") == "r", path
        return load(path, *arguments, **options)

    monkeypatch.setattr(np, "load", refuse)
    source = MaskedLM(data=str(folder), vocab_size=V, sequence_length=S).source("train")
    tokens = source.text.read_text(0).token_ids
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16


@pytest.mark.parametrize(
    "damage, message",
    [
        ("remove an index", "lacks 1 of .* 000001.json"),
        ("remove an array", "000001-train-token_ids.npy is missing"),
        ("cut an array", "000001-train-token_ids.npy has 40 bytes, not"),
        ("break an index", "000001.json"),
        (
            "change the vocabulary",
            "is not the vocabulary that the shards were made with",
        ),
        ("break the settings", "corpus.json is damaged"),
        ("write a later format", "has the format 99, but this release reads 1"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(task, folder, damage, message):
    array = folder / "000001-train-token_ids.npy"
    settings = folder / "corpus.json"
    if damage == "remove an index":
        (folder / "000001.json").unlink()
    elif damage == "remove an array":
        array.unlink()
    elif damage == "cut an array":
        array.write_bytes(array.read_bytes()[:40])
    elif damage == "break an index":
        (folder / "000001.json").write_text('{"number": 1, "left_out": []}')
    elif damage == "change the vocabulary":
        file = folder / "vocab.txt"
        file.write_text(file.read_text().replace("[UNK]", "[OTHER]"))
    elif damage == "break the settings":
        settings.write_text(settings.read_text()[:50])
    else:
        settings.write_text(
            json.dumps({**json.loads(settings.read_text()), "format": 99})
        )
    with pytest.raises(ValueError, match=message):
        task.source("train")


def test_another_vocabulary_than_that_of_the_run_is_refused(task, folder):
    assets = shards.read_assets(folder)
    pieces = assets["vocab.txt"].splitlines()
    assert task.bind(assets).source("train")
    pieces[7], pieces[8] = pieces[8], pieces[7]
    bound = task.bind({"vocab.txt": "\n".join(pieces), "text.json": "{}"})
    with pytest.raises(ValueError, match="prepared.*two different.*token 7 is"):
        bound.source("train")
    cased = task.bind({**assets, "text.json": '{"lower_case": false}'})
    with pytest.raises(ValueError, match="prepared with lower_case=True"):
        cased.source("train")


def test_a_model_of_another_size_than_the_vocabulary_is_refused(folder):
    other = MaskedLM(data=str(folder), vocab_size=V + 1, sequence_length=S)
    with pytest.raises(ValueError, match=f"has {V} word pieces.*vocab_size={V + 1}"):
        other.source("train")
