"""`prepare-text`: the same shards from any number of machines and processes."""

import json
import pathlib
import random
import sys
import types

import pytest
from invented import V, documents, write

from attn_jax.commands import prepare_text
from attn_jax.data import prepare, shards, units
from attn_jax.data.text import SPLITS


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 1500)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "input"
    folder.mkdir()
    whole = documents()
    write(folder / "a.txt", whole[:25])
    lines = [json.dumps({"text": "\n".join(document)}) for document in whole[25:]]
    (folder / "b.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "notes.md").write_text("left out")
    return folder


def run(capsys, corpus, out, *flags):
    prepare_text.main(
        [
            f"--input={corpus}",
            f"--out={out}",
            *(flags if any("voc" in f for f in flags) else [f"--vocab_size={V}"]),
            "--one_sentence_per_line",
            *(flag for flag in flags if "voc" not in flag),
        ]
    )
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def prepared(corpus, tmp_path, capsys):
    result = run(capsys, corpus, tmp_path / "whole")
    return tmp_path / "whole", result


def test_every_document_is_in_one_split_of_one_shard(prepared):
    folder, result = prepared
    assert result["shards"] == result["of_shards"] > 3
    assert sum(result["documents"].values()) == len(documents())
    assert sum(result["sentences"].values()) == sum(map(len, documents()))
    assert min(result["documents"].values()) > 0
    assert len(result["left_out"]) == 1 and "notes.md" in result["left_out"][0]
    assert len(list(folder.glob("*.npy"))) == 8 * result["shards"]
    assert shards.open_corpus(folder).left_out


@pytest.mark.parametrize("parts", [2, 3])
def test_machines_together_make_the_same_files_as_one(
    prepared, corpus, tmp_path, capsys, parts
):
    folder, whole = prepared
    out = tmp_path / "parts"
    made = 0
    for part in random.Random(parts).sample(range(parts), parts):
        made += run(capsys, corpus, out, f"--shard={part}/{parts}")["shards"]
    assert made == whole["shards"]
    assert content(out) == content(folder)


def test_processes_make_the_same_files_as_one_with_the_input_elsewhere(
    prepared, corpus, tmp_path, monkeypatch
):
    # Workers of a pool would not see the small units: the job holds them.
    folder, _ = prepared
    moved = corpus.rename(tmp_path / "elsewhere")
    pieces = prepare.parse_vocabulary((folder / "vocab.txt").read_text())
    settings = units.Settings(one_sentence_per_line=True)
    job = prepare.open_job([str(moved)], tmp_path / "two", settings, pieces)
    made = list(prepare_text.make_shards(job, range(len(job.units)), 2))
    assert len(made) == len(job.units)
    ours, theirs = content(tmp_path / "two"), content(folder)
    for settings in (
        ours,
        theirs,
    ):  # names what was left out by the path that was given
        settings["corpus.json"] = json.loads(settings["corpus.json"])
        settings["corpus.json"].pop("left_out")
    assert ours == theirs


def test_a_command_that_was_killed_goes_on_with_unfinished_shards(
    prepared, corpus, tmp_path, capsys, monkeypatch
):
    folder, _ = prepared
    out = tmp_path / "killed"
    write_whole, calls = shards.write_whole, []

    def die_at_the_third(path, text):
        if path.name[0].isdigit():
            calls.append(path)
            if len(calls) == 3:
                raise KeyboardInterrupt
        write_whole(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_whole", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(capsys, corpus, out)
    (out / f".{calls[-1].stem}-train-token_ids.npy").write_bytes(b"half")
    with pytest.raises(ValueError, match="lacks .* Run prepare-text again"):
        shards.open_corpus(out)
    finished = [path.stat().st_mtime_ns for path in sorted(out.glob("0*.json"))]
    assert len(finished) == 2
    run(capsys, corpus, out)
    kept = [path.stat().st_mtime_ns for path in sorted(out.glob("0*.json"))][:2]
    assert kept == finished
    assert content(out) == content(folder)


def test_the_validation_split_is_chosen_by_the_text_alone(
    prepared, corpus, tmp_path, capsys
):
    folder, result = prepared
    lines = (corpus / "b.jsonl").read_text().splitlines()
    (corpus / "b.jsonl").unlink()
    # The same documents in other files, in another order.
    (corpus / "0.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    (corpus / "a.txt").rename(corpus / "z.txt")
    flags = f"--vocabulary={folder / 'vocab.txt'}"
    again = run(capsys, corpus, tmp_path / "again", flags)
    for key in ("documents", "sentences", "tokens"):
        assert again[key] == result[key]


@pytest.mark.parametrize(
    "change, message",
    [
        ("--held_out=0.3", "prepared with held_out=0.1, not 0.3"),
        ("--json_key=body", "prepared with json_key='text', not 'body'"),
        ("--cased", "prepared with lower_case=True, not False"),
        ("file", "prepared with other files, or files of other sizes"),
    ],
)
def test_other_settings_into_the_same_folder_are_refused(
    prepared, corpus, capsys, change, message
):
    folder, _ = prepared
    before = content(folder)
    if change == "file":
        (corpus / "c.txt").write_text("one more.\n")
        change = "--held_out=0.1"
    with pytest.raises(ValueError, match=message):
        run(capsys, corpus, folder, change)
    assert content(folder) == before


def test_another_vocabulary_into_the_same_folder_is_refused(
    prepared, corpus, tmp_path, capsys
):
    folder, _ = prepared
    pieces = (folder / "vocab.txt").read_text().splitlines()
    pieces[9], pieces[10] = pieces[10], pieces[9]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    with pytest.raises(ValueError, match="another vocabulary .*token 9 is"):
        run(capsys, corpus, folder, f"--vocabulary={tmp_path / 'vocab.txt'}")
    with pytest.raises(ValueError, match=f"has {V} word pieces, not 90"):
        run(capsys, corpus, folder, "--vocab_size=90")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--shard=4/4"], "--shard=4/4 must be i/n"),
        (["--shard=half"], "--shard=half must be i/n"),
        (["--processes=0"], "--processes=0 must be 1 or more"),
        (["--held_out=1"], "held_out=1.0 is a share"),
        (["--vocabulary=nowhere"], "no vocab.txt at --vocabulary=nowhere"),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_is_written(
    corpus, tmp_path, capsys, flags, message
):
    with pytest.raises(ValueError, match=message):
        run(capsys, corpus, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_written_to(corpus, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.npy").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds other files"):
        run(capsys, corpus, tmp_path / "out")
    assert content(tmp_path / "out") == {"weights.npy": b"mine"}


def test_text_in_another_script_than_the_vocabulary_is_refused(
    prepared, tmp_path, capsys
):
    folder, _ = prepared
    greek = tmp_path / "greek.txt"
    greek.write_text("αβγ δεζ ηθι.\n\nκλμ νξο πρς.\n")
    vocabulary = f"--vocabulary={folder / 'vocab.txt'}"
    with pytest.raises(ValueError, match="does not know .*greek.txt.*\\[UNK\\]"):
        run(capsys, greek, tmp_path / "out", vocabulary)


def test_shards_are_small_where_the_vocabulary_is(prepared):
    folder, _ = prepared
    text = shards.open_corpus(folder).splits[SPLITS[0]].read_text(0)
    assert str(text.token_ids.dtype) == "uint16"
    assert isinstance(folder, pathlib.Path)


class Pipeline:
    """What a runner does with our pipeline, without Apache Beam."""

    def __init__(self, options):
        self.items = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __or__(self, transform):
        self.items = transform(self.items)
        return self


def test_a_pipeline_makes_the_same_shards(
    prepared, corpus, tmp_path, capsys, monkeypatch
):
    flags = []
    beam = types.ModuleType("apache_beam")
    beam.Pipeline = Pipeline
    beam.Create = lambda items: lambda _: items
    beam.Reshuffle = lambda: lambda items: items[::-1]
    beam.Map = lambda function: lambda items: list(map(function, items))
    options = types.ModuleType("apache_beam.options.pipeline_options")
    options.PipelineOptions = flags.extend
    monkeypatch.setitem(sys.modules, "apache_beam", beam)
    monkeypatch.setitem(sys.modules, "apache_beam.options", types.ModuleType("options"))
    monkeypatch.setitem(sys.modules, options.__name__, options)
    folder, whole = prepared
    beam_flags = ("--beam", "--runner=DirectRunner")
    result = run(capsys, corpus, tmp_path / "beam", *beam_flags)
    assert content(tmp_path / "beam") == content(folder)
    assert flags == ["--runner=DirectRunner"]
    assert result["tokens"] == whole["tokens"]


def test_a_direct_runner_makes_the_same_shards(prepared, corpus, tmp_path, capsys):
    pytest.importorskip("apache_beam", reason="pip install 'attn_jax[beam]'")
    folder, _ = prepared
    run(capsys, corpus, tmp_path / "beam", "--beam", "--runner=DirectRunner")
    assert content(tmp_path / "beam") == content(folder)


def test_without_apache_beam_the_extra_is_named(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install 'attn_jax\[beam\]'"):
        run(capsys, corpus, tmp_path / "out", "--beam")
