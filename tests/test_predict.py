"""Predictions for new inputs: those of the evaluation, and what cannot be read is named."""

import io
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import save_untrained, toy, write_npz

import attn_jax
from attn_jax import features
from attn_jax.commands import export
from attn_jax.commands import predict as command
from attn_jax.convert import load_pretrained
from attn_jax.models.bert import Bert, ChoiceHead, ClassHead
from attn_jax.models.vit import ViT
from attn_jax.predict import Predictor
from attn_jax.sharding import make_mesh
from attn_jax.tasks.choice import Choice
from attn_jax.tasks.masked_lm import MaskedLM
from attn_jax.tasks.text_classify import TextClassify

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def trained_run(finished):
    return finished[1]


@pytest.fixture(scope="module")
def pictures(trained_run, tmp_path_factory):
    """A folder with three test digits as files, and the probabilities of an evaluation."""
    module, variables, task = attn_jax.restore(trained_run)
    source = task.source("test")
    folder = tmp_path_factory.mktemp("pictures")
    rows = [task.example(source[i], None) for i in range(3)]
    for i, row in enumerate(rows):
        Image.fromarray(row["images"][..., 0]).save(folder / f"{i}.png")
    batch = {"images": jnp.stack([row["images"] for row in rows])}
    batch |= {"labels": jnp.stack([row["labels"] for row in rows])}
    batch = task.prepare(batch, jax.random.key(0), train=False)
    outputs = module.apply(variables, **task.inputs(batch))
    return folder, np.asarray(jax.nn.softmax(outputs["logits"])), outputs


def test_probabilities_are_those_of_an_evaluation_for_any_batch_size(
    trained_run, pictures
):
    folder, expected, _ = pictures
    for batch_size in (2, 32):
        results = attn_jax.predict(trained_run, [folder], top=10, batch_size=batch_size)
        assert [result["file"] for result in results] == [
            str(folder / f"{i}.png") for i in range(3)
        ]
        for result, p in zip(results, expected, strict=True):
            found = {int(e["label"]): e["probability"] for e in result["predictions"]}
            np.testing.assert_allclose([found[i] for i in range(10)], p, atol=1e-6)
            chances = [e["probability"] for e in result["predictions"]]
            assert chances == sorted(chances, reverse=True)


def test_an_array_is_an_image_too(trained_run, pictures):
    folder, expected, _ = pictures
    pixels = np.asarray(Image.open(folder / "1.png"))
    (result,) = attn_jax.predict(trained_run, [pixels], top=1)
    assert result["predictions"][0]["label"] == str(expected[1].argmax())


def test_what_cannot_be_read_is_named_and_the_rest_predicted(
    trained_run, pictures, tmp_path
):
    (tmp_path / "bad.png").write_text("no image")
    good = pictures[0] / "0.png"
    given = [good, tmp_path / "bad.png", tmp_path / "absent.png", good, 7]
    results = attn_jax.predict(trained_run, given, batch_size=1)
    assert ["error" in result for result in results] == [False, True, True, False, True]
    assert "cannot be decoded" in results[1]["error"]
    assert "does not exist" in results[2]["error"]
    assert "is no image" in results[4]["error"]


def test_embeddings_are_pooled_tokens_of_the_layer_asked_for(trained_run, pictures):
    folder, _, outputs = pictures
    module, _, _ = attn_jax.restore(trained_run)

    def embed(kind):
        results = attn_jax.predict(trained_run, [folder], embed=kind)
        return np.stack([result["embedding"] for result in results])

    np.testing.assert_allclose(embed("pooled"), outputs["pooled"], atol=1e-5)
    np.testing.assert_allclose(embed("cls"), outputs["tokens"][:, 0], atol=1e-5)
    mean = np.asarray(outputs["tokens"]).mean(axis=1)
    np.testing.assert_allclose(embed("mean"), mean, atol=1e-5)
    last = embed("mean:-1")
    np.testing.assert_array_equal(last, embed(f"mean:{module.depth}"))
    assert not np.allclose(last, mean)  # before the final norm
    for kind, message in [
        ("max", "must be 'mean'"),
        (f"mean:{module.depth + 1}", f"the layers 0 to {module.depth}"),
        ("mean:0", "does not return its embeddings"),
    ]:
        with pytest.raises(ValueError, match=message):
            embed(kind)


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "sat", "."]


@pytest.fixture(scope="module")
def filler():
    """A tiny BERT with the pieces above, and its task with two predictions per row."""
    module = Bert(
        len(PIECES), width=8, depth=1, mlp_width=8, num_heads=1, heads=("mlm",)
    )
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    task = MaskedLM(
        data="none",
        vocab_size=len(PIECES),
        sequence_length=12,
        max_predictions=2,
        next_sentence=False,
    ).bind({"vocab.txt": "".join(f"{piece}\n" for piece in PIECES)})
    return module, variables, task


def test_every_mask_gets_its_words_even_if_they_are_more_than_a_row_predicts(filler):
    module, variables, task = filler
    mesh = make_mesh({"data": -1}, jax.local_devices())
    predictor = Predictor(module, variables, task, mesh, None)
    text = "a [MASK] sat [MASK] [MASK]"
    (result,) = predictor.run([text], top=2)
    ids = jnp.array([[2, 5, 4, 8, 4, 4, 3]])
    p = jax.nn.softmax(module.apply(variables, ids)["mlm_logits"][0])
    for place, ranked in zip((2, 4, 5), result["masks"], strict=True):
        best = np.argsort(-p[place])[:2]
        assert [entry["label"] for entry in ranked] == [PIECES[i] for i in best]
        chances = [entry["probability"] for entry in ranked]
        np.testing.assert_allclose(chances, p[place][best], atol=1e-6)
    assert "[MASK]" not in result["filled"]
    assert result["filled"].startswith("a ")


def test_a_piece_that_continues_a_word_is_joined_to_it(filler):
    *_, task = filler
    named, rows = task.read_input("a cat [MASK] .")
    logits = np.zeros((2, len(PIECES)))
    logits[0, PIECES.index("##s")] = 9.0
    found = task.describe_outputs(named, rows, [{"mlm_logits": logits}], top=1)
    assert found["filled"] == "a cats ."
    assert len(found["masks"]) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a cat .", "no \\[MASK\\]"),
        (
            "a " * 20 + "[MASK]",
            "has 23 tokens with .CLS. and .SEP., but the model takes",
        ),
        (3, "is no text"),
    ],
)
def test_a_text_that_cannot_be_filled_says_why(filler, given, message):
    module, variables, task = filler
    mesh = make_mesh({"data": -1}, jax.local_devices())
    (result,) = Predictor(module, variables, task, mesh, None).run([given])
    with pytest.raises(ValueError, match=message):
        raise ValueError(result["error"])


def test_a_foreign_bert_fills_masks_with_the_vocabulary_beside_it(shared, tmp_path):
    trained = shared / "golden" / "bert" / "trained_tiny"
    shutil.copytree(trained / "pretraining", tmp_path / "model")
    with pytest.raises(ValueError, match="has no vocab.txt"):
        attn_jax.predict(tmp_path / "model", ["he was [MASK] ."])
    shutil.copy(trained / "vocab.txt", tmp_path / "model")
    (result,) = attn_jax.predict(tmp_path / "model", ["he was [MASK] ."], top=3)
    module, variables = load_pretrained(tmp_path / "model")
    pieces = (trained / "vocab.txt").read_text().split("\n")
    ids = [pieces.index(p) for p in "[CLS] he was [MASK] . [SEP]".split()]
    logits = jax.jit(module.apply)(variables, jnp.array([ids]))["mlm_logits"][0, 3]
    best = [pieces[i] for i in np.argsort(-logits)[:3]]
    assert [entry["label"] for entry in result["masks"][0]] == best


def test_a_foreign_vit_is_read_as_its_processor_says(tmp_path):
    module = ViT(
        num_classes=3, patch_size=4, width=8, depth=1, mlp_width=8, num_heads=1,
        dialect="hf",
    )  # fmt: skip
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    labels, mean, std = ["ant", "bee", "cat"], (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    attn_jax.convert.export(
        module,
        variables,
        tmp_path,
        "hf",
        image_size=8,
        labels=labels,
        mean=mean,
        std=std,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (result,) = attn_jax.predict(tmp_path, [pixels], top=1)
    images = (pixels[None] / 255 - np.array(mean)) / np.array(std)
    logits = module.apply(variables, jnp.asarray(images, jnp.float32))["logits"][0]
    best = int(logits.argmax())
    assert result["predictions"][0]["label"] == labels[best]
    expected = float(jax.nn.softmax(logits)[best])
    assert result["predictions"][0]["probability"] == pytest.approx(expected, abs=1e-5)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="does not say how its images were normalized"):
        attn_jax.predict(tmp_path, [pixels])


@pytest.fixture
def chooser():
    """A tiny BERT for multiple choice, and its task with two endings."""
    module = Bert(
        len(PIECES),
        width=8,
        depth=2,
        mlp_width=8,
        num_heads=1,
        heads=(),
        head=ChoiceHead(),
    )
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    task = Choice(data="none", vocab_size=len(PIECES), sequence_length=9, choices=2)
    return module, variables, task.bind({"vocab.txt": "\n".join([*PIECES, ""])})


CHOICE = {"context": "a cat", "endings": ["sat .", "cats"]}


@pytest.mark.parametrize("kind", ["mean", "cls", "pooled", "mean:0", "cls:1"])
def test_every_ending_has_a_vector_of_its_own(chooser, kind):
    module, variables, task = chooser
    mesh = make_mesh({"data": -1}, jax.local_devices())
    (result,) = Predictor(module, variables, task, mesh, kind).run([CHOICE])
    ids = jnp.array([[2, 5, 6, 3, 8, 9, 3], [2, 5, 6, 3, 6, 7, 3]])
    segments = jnp.array([[0, 0, 0, 0, 1, 1, 1]] * 2)
    alone = {"token_ids": ids, "segment_ids": segments, "mask": ids >= 0}
    expected = features.embed(module, variables, alone, kind)
    np.testing.assert_allclose(result["embedding"], expected, atol=1e-5)


def test_vectors_are_saved_with_names_that_need_no_pickle(chooser, tmp_path):
    module, variables, task = chooser
    mesh = make_mesh({"data": -1}, jax.local_devices())
    (result,) = Predictor(module, variables, task, mesh, "cls").run([CHOICE])
    pair = {"text": "a", "pair": "cat", "embedding": result["embedding"][0]}
    question = {"question": "who?", "context": "a cat", "embedding": pair["embedding"]}
    text = {"text": "a cat", "embedding": pair["embedding"]}
    out = tmp_path / "vectors.npz"
    command.save_vectors([result, pair, question, text], out)
    saved = np.load(out, allow_pickle=False)
    assert saved["embedding"].shape == (5, 8)
    *objects, plain = saved["inputs"].tolist()
    assert plain == "a cat"
    assert [json.loads(name) for name in objects] == [
        {"context": "a cat", "ending": "sat ."},
        {"context": "a cat", "ending": "cats"},
        {"text": "a", "pair": "cat"},
        {"question": "who?", "context": "a cat"},
    ]


def run(*arguments):
    command.main([str(argument) for argument in arguments])


def test_the_command_prints_a_line_of_json_per_input(trained_run, pictures, capsys):
    run("--workdir", trained_run, "--json", "--top=2", pictures[0])
    lines = capsys.readouterr().out.splitlines()
    assert [len(json.loads(line)["predictions"]) for line in lines] == [2, 2, 2]


def test_the_command_ends_with_an_error_if_an_input_failed(
    trained_run, pictures, tmp_path, capsys
):
    names = f"{pictures[0] / '0.png'}\n\n{tmp_path / 'absent.png'}\n"
    (tmp_path / "list.txt").write_text(names)
    with pytest.raises(SystemExit, match="1 of 2 inputs gave no result"):
        run("--workdir", trained_run, "--file", tmp_path / "list.txt")
    printed = capsys.readouterr()
    assert printed.out.count(" %") == 5
    assert "absent.png does not exist" in printed.err
    assert printed.err.count("absent.png") == 1


def test_advice_about_the_data_of_a_run_is_left_out(trained_run, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    (result,) = attn_jax.predict(trained_run, [tmp_path / "bad.png"])
    assert result["error"].endswith("Replace or remove it.")


def test_the_command_writes_vectors_of_what_stdin_lists(
    trained_run, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{pictures[0]}\n"))
    out = tmp_path / "new" / "vectors.npz"
    run("--workdir", trained_run, "--file=-", "--embed=pooled", "--out", out)
    assert capsys.readouterr().out == f"{out}\n"
    saved = np.load(out)
    np.testing.assert_allclose(saved["embedding"], pictures[2]["pooled"], atol=1e-5)
    assert saved["inputs"].tolist() == [str(pictures[0] / f"{i}.png") for i in range(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no input"),
        (["--question=who?"], "--question and --passage belong together"),
        (["a.png", "--embed=mean"], "--embed and --out=FILE.npz belong together"),
        (["a.png", "--embed=mean", "--out=v.txt"], "must be FILE.npz"),
        (["a.png", "--top=0"], "--top=0 must be 1 or more"),
        (["--file=absent.txt"], "--file=absent.txt is no file"),
    ],
)
def test_a_wrong_option_is_refused(trained_run, arguments, message):
    with pytest.raises(ValueError, match=message):
        run("--workdir", trained_run, *arguments)


@pytest.fixture
def classifier():
    """A tiny BERT that classifies pairs of its own column names, in rows of six pieces."""
    module = Bert(
        len(PIECES),
        width=8,
        depth=1,
        mlp_width=8,
        num_heads=1,
        heads=(),
        head=ClassHead(2),
    )
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    task = TextClassify(
        data="none",
        num_classes=2,
        class_names=("no", "yes"),
        text_column="premise",
        pair_column="claim",
        vocab_size=len(PIECES),
        sequence_length=7,
    ).bind({"vocab.txt": "\n".join([*PIECES, ""])})
    return module, variables, task


def test_a_pair_may_be_named_as_the_columns_of_the_data(classifier):
    _, _, task = classifier
    named, (row,) = task.read_input({"premise": "a cat", "claim": "sat ."})
    assert named == {"premise": "a cat", "claim": "sat ."}
    assert row["token_ids"].tolist() == [2, 5, 6, 3, 8, 9, 3]
    _, (same,) = task.read_input({"text": "a cat", "pair": "sat ."})
    np.testing.assert_array_equal(same["token_ids"], row["token_ids"])
    message = "'premise' and 'claim', or 'text' and 'pair'"
    for wrong in ({"claim": "a"}, {"text": "a", "claim": "a"}, {"text": "a", "b": "a"}):
        with pytest.raises(ValueError, match=message):
            task.read_input(wrong)


def test_texts_that_are_cut_are_counted_once(classifier, tmp_path, monkeypatch, capsys):
    module, variables, task = classifier
    mesh = make_mesh({"data": -1}, jax.local_devices())
    predictor = Predictor(module, variables, task, mesh, None)
    monkeypatch.setattr(command, "is_run", lambda _: True)
    monkeypatch.setattr(command, "open_predictor", lambda *_, **__: predictor)
    (tmp_path / "t.txt").write_text("a cat\na cat sat a cat sat .\ncats a cats .\n")
    run("--workdir=x", "--json", "--file", tmp_path / "t.txt")
    printed = capsys.readouterr()
    found = [json.loads(line).get("pieces_cut") for line in printed.out.splitlines()]
    assert found == [None, 2, 1]
    assert printed.err.count("2 of 3 inputs were longer than a row") == 1


@pytest.mark.parametrize("suffix", [".csv", ".TSV", ".json"])
def test_tables_are_not_read_as_lines_of_text(trained_run, tmp_path, suffix):
    file = tmp_path / f"reviews{suffix}"
    file.write_text("text,label\na cat,pos\n")
    message = "--file reads lines of text, or a .jsonl with"
    with pytest.raises(ValueError, match=f"reviews{suffix} is no .*{message}"):
        run("--workdir", trained_run, "--file", file)


def write_foreign(folder, filler):
    """The tiny BERT as a folder of transformers."""
    module, variables, _ = filler
    vocabulary = {"vocab.txt": "".join(f"{piece}\n" for piece in PIECES)}
    attn_jax.convert.export(module, variables, folder, "hf", vocabulary=vocabulary)
    return folder


@pytest.mark.parametrize("flag", ["--step=latest", "--params=raw", "--trust=runs"])
def test_flags_of_runs_are_refused_for_other_checkpoints(filler, tmp_path, flag):
    folder = write_foreign(tmp_path / "model", filler)
    message = f"^{flag} is for a run's folder, which {folder} is not; leave it out"
    with pytest.raises(ValueError, match=message):
        run("--from", folder, flag, "a [MASK]")
    with pytest.raises(ValueError, match=message):
        export.main([f"--from={folder}", "--to=hf", f"--out={tmp_path / 'b'}", flag])


def test_arguments_of_runs_are_refused_for_other_checkpoints(filler, tmp_path):
    folder = write_foreign(tmp_path / "model", filler)
    with pytest.raises(ValueError, match="model: step=3, params='ema' are for a run's"):
        attn_jax.predict(folder, ["a [MASK]"], step=3, params="ema")


def test_a_line_that_is_no_json_is_named(trained_run, tmp_path):
    (tmp_path / "list.jsonl").write_text('"a.png"\n{"file"\n')
    with pytest.raises(ValueError, match="list.jsonl, line 2 is no JSON"):
        run("--workdir", trained_run, "--file", tmp_path / "list.jsonl")


def test_a_task_without_predictions_says_so(trained_run, pictures, monkeypatch):
    from attn_jax.tasks.classify import Classify

    monkeypatch.delattr(Classify, "describe_outputs")
    with pytest.raises(ValueError, match="the task Classify has no predictions"):
        attn_jax.predict(trained_run, [pictures[0]])
    assert attn_jax.predict(trained_run, [pictures[0]], embed="mean")


def test_classes_without_names_are_numbers_and_that_is_said(
    trained_run, pictures, tmp_path, capsys
):
    command.main([f"--workdir={trained_run}", str(pictures[0])])
    assert "name its classes" not in capsys.readouterr().err
    write_npz(tmp_path / "data.npz", seed=0)
    save_untrained(
        toy({"task.data": str(tmp_path / "data.npz"), "task.holdout": 0}),
        tmp_path / "run",
    )
    command.main(["--trust=runs", f"--workdir={tmp_path}/run", str(pictures[0])])
    out, err = capsys.readouterr()
    assert "does not name its classes; labels are their numbers" in err
    assert len(out.splitlines()) == 3


def test_a_file_is_no_text(filler, classifier, tmp_path):
    (tmp_path / "a b.png").touch()
    module, variables, task = filler
    for reads_text in (task, classifier[2]):
        with pytest.raises(ValueError, match="is a file, .*--file='.*/a b.png' reads"):
            reads_text.read_input(str(tmp_path / "a b.png"))
    assert task.read_input("a cat [MASK] .")[0]
