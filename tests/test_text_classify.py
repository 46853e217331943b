"""Classes and numbers of texts: GLUE's files, tables of the user, a golden classifier."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import attn_jax
import train
from attn_jax import config as config_lib
from attn_jax.convert import load_pretrained
from attn_jax.data import glue, tables
from attn_jax.data.tokenizing import truncate_pair
from attn_jax.data.vocabulary import SPECIALS
from attn_jax.tasks.text_classify import TextClassify

pytestmark = pytest.mark.usefixtures("quick_compilation")

PIECES = [*SPECIALS, "good", "bad", "film", ",", "a"]
ASSETS = {"vocab.txt": "".join(f"{piece}\n" for piece in PIECES)}


def make_task(data, **fields):
    fields = {
        "num_classes": 2,
        "vocab_size": len(PIECES),
        "sequence_length": 8,
        **fields,
    }
    return TextClassify(data=str(data), **fields).bind(ASSETS)


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def films(tmp_path):
    write(tmp_path / "train.tsv", "text\tlabel", 'good "film\tpos', "a bad film\tneg")
    write(tmp_path / "dev.csv", "label,text", 'pos,"good, good"')
    return tmp_path


def test_a_row_is_tokenized_between_cls_and_sep(films):
    task = make_task(films)
    source = task.source("train")
    assert source.labels == ("neg", "pos")
    row = task.example(source[1], None)
    assert row["token_ids"].tolist() == [2, 9, 6, 7, 3, 0, 0, 0]
    assert row["mask"].tolist() == [True] * 5 + [False] * 3
    assert row["labels"] == 0
    (quoted,) = task.source("validation")
    assert quoted["texts"] == ("good, good",)
    assert quoted["label"] == 1


def test_a_pair_has_two_segments_and_is_cut_from_the_longer(tmp_path):
    write(
        tmp_path / "train.jsonl",
        json.dumps({"a": "good good good good good", "b": "bad film", "y": 2.5}),
    )
    task = make_task(
        tmp_path / "train.jsonl",
        num_classes=1,
        text_column="a",
        pair_column="b",
        label_column="y",
    )
    row = task.example(task.source("train")[0], None)
    assert row["token_ids"].tolist() == [2, 5, 5, 5, 3, 6, 7, 3]
    assert row["segment_ids"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert row["labels"] == np.float32(2.5)


def test_pairs_are_cut_as_google_does(shared):
    pairs = json.loads(
        (shared / "golden" / "bert" / "tokenization" / "pairs.json").read_text()
    )
    cases = [case for case in pairs if case["b"] is not None]
    assert cases
    from attn_jax.data.tokenizing import Tokenizer

    path = shared / "golden" / "bert" / "tokenization" / "vocab.txt"
    pieces = path.read_text(encoding="utf-8").split("\n")[:-1]
    tokenizer = Tokenizer(pieces, lower_case=True)
    for case in pairs:
        task = TextClassify(
            data="none",
            num_classes=2,
            vocab_size=len(pieces),
            sequence_length=case["max_seq_length"],
        )
        texts = [case["a"]] + ([] if case["b"] is None else [case["b"]])
        row = task.make_row(tokenizer, *map(tokenizer.encode, texts))
        ids, mask = case["google"]["input_ids"], case["google"]["input_mask"]
        real = row["mask"]
        assert row["token_ids"][real].tolist() == [
            i for i, m in zip(ids, mask, strict=True) if m
        ]
        assert real.sum() == sum(mask)
        segments = case["google"]["segment_ids"][: sum(mask)]
        assert row["segment_ids"][real].tolist() == segments


def test_a_tie_is_cut_from_the_second():
    assert truncate_pair([1, 2], [3, 4], 3) == ([1, 2], [3])
    assert truncate_pair([1, 2, 3], None, 2) == ([1, 2], None)


@pytest.mark.parametrize(
    ("lines", "fields", "message"),
    [
        (["text\tlabel", "good\tpos", "bad"], {}, "1 broken row.*line 3: 1 columns instead"),
        (["text\tlabel", "good\t1", "bad\tx"], {"class_names": ("0", "1")}, "line 3: the label 'x'"),
        (["text\tlabel", "good\tpos"], {"num_classes": 1}, "the label 'pos' is no number"),
        (["text\tmark", "good\t1"], {}, "no column 'label'; its columns are: text, mark"),
        (["text\tlabel", "good\ta", "bad\tb", "a\tc"], {}, "has 3 classes .*num_classes=2"),
        (["text\tlabel"], {}, "has no rows"),
        (["text\tlabel", "good\ta", "bad\tb"], {"holdout": 2}, "leaves nothing to train on"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_names_the_line(lines, fields, message, tmp_path):
    write(tmp_path / "train.tsv", *lines)
    with pytest.raises(ValueError, match=message):
        make_task(tmp_path, **fields).source("train")


def test_broken_rows_may_be_left_out_and_are_counted(tmp_path, caplog):
    file = write(tmp_path / "t.tsv", "text\tlabel", "good\tpos", "bad", "bad\tneg", "x")
    source = make_task(file, broken_rows="skip").source("train")
    assert len(source) == 2
    assert source.left_out == (("t.tsv:3", "broken rows"), ("t.tsv:5", "broken rows"))
    assert "2 broken rows are left out, at lines 3, 5" in caplog.text


def write_parquet(path, **columns):
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_a_parquet_file_is_read_as_the_same_rows_in_a_csv(tmp_path):
    texts, labels = ["good, really", "b\nd", "\u00e4h"], [1, 0, 1]
    file = write_parquet(tmp_path / "t.parquet", text=texts, other=labels, label=labels)
    lines = [f'"{text}",x,{label}' for text, label in zip(texts, labels, strict=True)]
    table = write(tmp_path / "t.csv", "text,other,label", *lines)
    columns = ("label", "text")
    found, wanted = (tables.read_table(path, columns)[0] for path in (file, table))
    assert [row.values for row in found] == [row.values for row in wanted]
    assert [row.line for row in found] == [1, 2, 3]


def test_a_parquet_file_that_cannot_be_used_is_named(tmp_path):
    file = write_parquet(
        tmp_path / "t.parquet", text=["a", None, "c"], label=[0, 1, None]
    )
    with pytest.raises(
        ValueError, match="2 broken row.*: row 2: no 'text'; row 3: no 'l"
    ):
        tables.read_table(file, ("text", "label"))
    with pytest.raises(
        ValueError, match="no column 'mark'; its columns are: text, label"
    ):
        tables.read_table(file, ("text", "mark"))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="t.parquet cannot be read as Parquet"):
        tables.read_table(file, ("text", "label"))


def test_rows_are_held_out_by_class(tmp_path):
    rows = [f"good {i}\t{'ab'[i % 2]}" for i in range(20)]
    file = write(tmp_path / "t.tsv", "text\tlabel", *rows)
    task = make_task(file, holdout=4)
    train_split, held = task.source("train"), task.source("validation")
    assert sorted(r["label"] for r in held) == [0, 0, 1, 1]
    texts = {r["texts"] for s in (train_split, held) for r in s}
    assert len(texts) == len(train_split) + len(held) == 20
    with pytest.raises(ValueError, match="has no split 'validation'.*holdout"):
        make_task(file).source("validation")


def test_text_that_is_not_utf8_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "train.tsv").write_bytes(b"text\tlabel\n\xff\t1\n")
    with pytest.raises(ValueError, match="train.tsv is not UTF-8"):
        make_task(tmp_path).source("train")
    with pytest.raises(ValueError, match="is neither a table"):
        make_task(tmp_path / "absent").source("train")
    with pytest.raises(ValueError, match="does not exist"):
        make_task(tmp_path / "absent.csv").source("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no table for training"):
        make_task(tmp_path / "empty").source("train")


@pytest.mark.parametrize(
    ("name", "folder", "sizes"),
    [
        ("cola", "CoLA", (8_551, 1_043)),
        ("rte", "RTE", (2_490, 277)),
        ("stsb", "STS-B", (5_749, 1_500)),
        ("sst2", "SST-2", (67_349, 872)),
    ],
)
def test_official_files_of_glue_are_read_whole(name, folder, sizes, shared):
    data = shared / "data" / "glue" / folder
    classes = len(glue.TASKS[name].classes or "1")
    task = make_task(data, glue_task=name, num_classes=classes)
    found = [task.source(split) for split in ("train", "validation")]
    assert tuple(map(len, found)) == sizes
    assert all(len(r["texts"]) == len(glue.TASKS[name].texts) for r in found[1])
    if name == "cola":  # 70 % of the sentences are acceptable (Warstadt et al. 2019)
        assert np.mean([r["label"] for r in found[0]]) == pytest.approx(0.704, abs=1e-3)


def test_mnli_has_two_development_sets_in_the_official_order(tmp_path):
    columns = "sentence1\tsentence2\tgold_label"
    for stem, label in (("train", "neutral"), ("dev_matched", "contradiction"), ("dev_mismatched", "entailment")):  # fmt: skip
        write(tmp_path / f"{stem}.tsv", columns, f"good\tbad\t{label}")
    task = make_task(tmp_path, glue_task="mnli", num_classes=3)
    labels = [task.source(s)[0]["label"] for s in ("train", "validation", "validation_mismatched")]  # fmt: skip
    assert labels == [2, 0, 1]


def test_fields_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="glue_task='sst' is none of cola"):
        make_task("x", glue_task="sst")
    with pytest.raises(ValueError, match="must be 2 different names"):
        make_task("x", class_names=("a", "a"))


def test_the_loss_and_scores_leave_out_padded_rows():
    task = make_task("x")
    outputs = {"class_logits": jnp.array([[0.0, 2.0], [3.0, 0.0], [9.0, 9.0]])}
    batch = {"labels": jnp.array([1, 1, 0]), "valid": jnp.array([True, True, False])}
    terms = task.loss(outputs, batch)
    assert terms["accuracy"] == (1, 2)
    expected = np.log(1 + np.exp(-2)) + np.log(1 + np.exp(3))
    assert terms["cross_entropy"][0] == pytest.approx(expected, rel=1e-6)
    number = make_task("x", num_classes=1)
    squares = number.loss(
        {"class_logits": jnp.array([[1.0], [5.0]])},
        {"labels": jnp.array([3.0, 0.0]), "valid": jnp.array([True, False])},
    )
    assert squares["squared_error"] == (4, 1)
    with pytest.raises(ValueError, match="the model has no class_logits"):
        task.loss({}, batch)
    with pytest.raises(ValueError, match="the model has 2 classes"):
        number.loss(outputs, batch)


@pytest.fixture(scope="module")
def authors(shared, tmp_path_factory):
    """The golden classifier with its vocabulary, and its sentences as a table."""
    folder = tmp_path_factory.mktemp("authors")
    golden = shared / "golden" / "bert" / "trained_tiny"
    shutil.copytree(golden / "classifier", folder / "model")
    shutil.copy(golden / "vocab.txt", folder / "model")
    rows = json.loads((golden / "sentences.json").read_text())
    lines = [json.dumps({"text": r["sentence"], "label": r["label"]}) for r in rows]
    (folder / "data").mkdir()
    write(folder / "data" / "train.jsonl", *lines)
    write(folder / "data" / "dev.jsonl", *lines)
    return folder, np.load(golden / "classifier_io.npz")


def test_a_trained_classifier_has_its_stated_accuracy_and_goes_on_from_there(
    authors, tmp_path
):
    folder, io = authors
    module, _ = load_pretrained(folder / "model")
    recipe = f"{__file__.rpartition('/')[0]}/../configs/bert/classify.py"
    fields = ("vocab_size", "width", "depth", "mlp_width", "num_heads", "max_positions")
    settings = [f"model.{name}={getattr(module, name)}" for name in fields]
    settings += [
        "model.dialect=hf",
        f"task.vocab_size={module.vocab_size}",
        "task.sequence_length=64",
        f"task.data={folder / 'data'}",
        f"init_from=[['{folder / 'model'}', '', '']]",
        "optimizer.learning_rate=0.0",
        "duration=1 steps",
        "evals.validation.every=1 steps",
    ]
    train.train(config_lib.load(recipe, settings), str(tmp_path / "run"))
    results = attn_jax.evaluate(tmp_path / "run")
    assert results["validation/accuracy"] == pytest.approx(float(io["accuracy"]))
    assert results["validation/accuracy"] == pytest.approx(0.88)
    assert results["validation/loss"] == pytest.approx(float(io["loss"]), abs=1e-5)
    (result,) = attn_jax.predict(tmp_path / "run", ["He went to the house ."], top=2)
    assert {e["label"] for e in result["predictions"]} == {"0", "1"}


def test_a_foreign_classifier_predicts_with_its_label_names(authors, tmp_path):
    folder, io = authors
    shutil.copytree(folder / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["id2label"] = {"0": "Doyle", "1": "Burnett"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    rows = tables.read_table(folder / "data" / "dev.jsonl", ("text",))[0][:8]
    results = attn_jax.predict(tmp_path / "model", [r.values[0] for r in rows], top=1)
    chances = jax.nn.softmax(io["logits"][:8])
    for result, row in zip(results, chances, strict=True):
        best = result["predictions"][0]
        assert best["label"] == ("Doyle", "Burnett")[int(row.argmax())]
        assert best["probability"] == pytest.approx(float(row.max()), abs=1e-4)
