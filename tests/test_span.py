"""SQuAD: windows, decoding and scores of the original code, exactly."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import config as config_lib
from attn_jax.commands.predict import format_result
from attn_jax.data import invented, span_decoding, squad, squad_scores
from attn_jax.data.tokenizing import Tokenizer
from attn_jax.data.vocabulary import SPECIALS
from attn_jax.models.bert import Bert, SpanHead
from attn_jax.predict import Predictor
from attn_jax.sharding import make_mesh
from attn_jax.tasks.span import Span, Windows

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "bert" / "squad"


@pytest.fixture(scope="module")
def uncased(golden):
    path = golden.parent / "tokenization" / "vocab.txt"
    pieces = path.read_text(encoding="utf-8").split("\n")[:-1]
    return Tokenizer(pieces, lower_case=True)


@pytest.fixture(scope="module")
def windows_of(golden, uncased):
    """{number of the set: (questions, windows)}"""
    found = {}
    meta = json.loads((golden / "features_meta.json").read_text())
    for number, options in enumerate(meta["sets"]):
        questions = squad.read_questions(golden / options["data"])
        kept = [question for question in questions if not question.is_lost]
        windows = [
            window
            for i, question in enumerate(kept)
            for window in squad.cut_windows(
                question,
                i,
                uncased,
                length=options["max_seq_length"],
                stride=options["doc_stride"],
                max_query=options["max_query_length"],
            )
        ]
        found[number] = kept, windows, options["max_seq_length"]
    return found


def test_windows_are_those_of_the_original(golden, windows_of):
    with gzip.open(golden / "features.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    for number, (questions, windows, _) in windows_of.items():
        wanted = [row for row in rows if row["set"] == number]
        assert len(windows) == len(wanted) > 10
        for window, row in zip(windows, wanted, strict=True):
            assert questions[window.question].id == row["qas_id"]
            assert window.pieces == row["tokens"].split(" ")
            assert window.offset == row["doc_offset"]
            assert list(window.words) == row["token_to_orig"]
            best = "".join(str(int(flag)) for flag in window.is_best)
            assert best == row["is_max_context"]
            places = (window.start, window.end)
            assert places == (row["start_position"], row["end_position"])


def test_answers_are_those_of_the_original(golden, windows_of):
    stored = np.load(golden / "decode_logits.npz")
    for name, run in json.loads((golden / "decode.json").read_text()).items():
        questions, windows, length = windows_of[run["set"]]
        if f"{name}_start" in stored:
            starts, ends = stored[f"{name}_start"], stored[f"{name}_end"]
        else:  # the oracle's logits
            starts = np.full((len(windows), length), -10.0, np.float32)
            ends = starts.copy()
            for i, window in enumerate(windows):
                starts[i, window.start] = ends[i, window.end] = 10
        answers = {}
        for i, question in enumerate(questions):
            rows = [j for j, window in enumerate(windows) if window.question == i]
            decoded = span_decoding.decode_answer(
                question,
                [windows[j] for j in rows],
                list(starts[rows]),
                list(ends[rows]),
                n_best=run["n_best_size"],
                max_length=run["max_answer_length"],
                may_be_null=run["version_2_with_negative"],
                null_threshold=run["null_score_diff_threshold"],
                lower_case=run["do_lower_case"],
            )
            answers[question.id] = decoded.text
            if run.get("nbest"):
                for ours, theirs in zip(
                    decoded.candidates, run["nbest"][question.id], strict=True
                ):
                    assert ours.text == theirs[0]
                    np.testing.assert_allclose(ours[1:4], theirs[1:], rtol=0, atol=1e-6)
            if run.get("null_odds"):
                wanted = run["null_odds"][question.id]
                assert decoded.null_odds == pytest.approx(wanted, abs=1e-6)
        assert answers == run["predictions"]
        version = "2.0" if run["version_2_with_negative"] else "1.1"
        found = squad_scores.score_questions(questions, answers, version=version)
        scores = squad_scores.average_scores(found)
        assert scores["f1"] == pytest.approx(run["scores"]["f1"], abs=1e-9)


def test_text_is_restored_as_in_the_original(golden):
    cases = json.loads((golden / "features_meta.json").read_text())["get_final_text"]
    for pieces, original, lower_case, wanted in cases:
        assert span_decoding.restore_text(pieces, original, lower_case) == wanted


def test_answers_that_are_not_where_the_file_says_are_lost(golden):
    cases = json.loads((golden / "span_cases.json").read_text())
    questions = squad.read_questions(golden / "span_cases.data.json")
    kept = [question for question in questions if not question.is_lost]
    assert [question.id for question in kept] == cases["kept"]
    for question in kept:
        wanted = cases["examples"][question.id]
        assert list(question.words) == wanted["doc_tokens"]
        assert (question.first, question.last) == (wanted["start"], wanted["end"])
        for word, start in zip(question.words, question.starts, strict=True):
            assert question.context[start : start + len(word)] == word


def test_scores_are_those_of_the_official_scripts(golden):
    wanted = json.loads((golden / "scores.json").read_text())
    for text, normal in wanted["normalize"]:
        assert squad_scores.normalize(text) == normal

    def read(name):
        return json.loads((golden / name).read_text())

    given = read("xquad_en_v1.pred.json")
    first = squad_scores.score_questions(
        squad.read_questions(golden / "xquad_en_v1.json"), given, version="1.1"
    )
    # The script's table leaves out questions without a prediction, its averages do not.
    answered = {id: list(both) for id, both in first.items() if id in given}
    assert answered == wanted["per_question_v11_xquad"]
    averages = squad_scores.average_scores(first)
    assert averages == pytest.approx(wanted["v11_xquad"], abs=1e-9)
    questions = squad.read_questions(golden / "dev_v2_part.json")
    given, odds = read("dev_v2_part.pred.json"), read("dev_v2_part.na_prob.json")
    second = squad_scores.score_questions(questions, given, version="2.0")
    assert {k: list(v) for k, v in second.items()} == wanted["per_question_v20"]
    known = {question.id: bool(question.answers) for question in questions}
    half = squad_scores.apply_threshold(second, odds, known, 0.5)
    theirs = wanted["v20_with_na_prob_thresh_0_5"]
    assert squad_scores.average_scores(half) == {
        "exact_match": pytest.approx(theirs["exact"], abs=1e-9),
        "f1": pytest.approx(theirs["f1"], abs=1e-9),
    }
    best = squad_scores.find_best_threshold(
        {id: f1 for id, (_, f1) in second.items()}, given, odds, known
    )
    assert best == pytest.approx((theirs["best_f1"], theirs["best_f1_thresh"]))


@pytest.mark.parametrize(
    ("data", "predictions", "version", "scores"),
    [
        ("dev-v1.1.rebuilt", "v1.1_bert_ensemble", "1.1", (86.206, 92.196)),
        ("dev-v2.0.rebuilt", "v2.0_bert_single", "2.0", (78.742, 81.775)),
    ],
)
def test_published_predictions_have_their_published_scores(
    data, predictions, version, scores, shared
):
    folder = shared / "data" / "squad"
    found = squad_scores.score_questions(
        squad.read_questions(folder / f"{data}.json"),
        json.loads((folder / f"predictions_{predictions}.json").read_text()),
        version=version,
    )
    averages = tuple(squad_scores.average_scores(found).values())
    assert averages == pytest.approx(scores, abs=6e-4)


def oracle(source, length):
    """Logits that point at the true answers."""
    logits = {}
    for name in ("start", "end"):
        logits[f"{name}_logits"] = np.full((len(source), length), -10.0, np.float32)
        for i, window in enumerate(source.windows):
            logits[f"{name}_logits"][i, getattr(window, name)] = 10
    return logits


def test_true_places_give_nearly_every_answer_of_xquad(shared, uncased):
    task = Span(
        data=str(shared / "data" / "xquad" / "xquad.en.json"),
        vocab_size=len(uncased.pieces),
        sequence_length=384,
    )
    vocabulary = "".join(f"{piece}\n" for piece in uncased.pieces)
    source = task.bind({"vocab.txt": vocabulary}).source("train")
    assert len(source.questions) == 1_190
    scores = task.score(oracle(source, 384), source)
    assert scores["exact_match"] > 99
    assert scores["f1"] > 99


# --- the task ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    return Span(data="generated", vocab_size=120, sequence_length=40, stride=8)


@pytest.fixture(scope="module")
def source(task):
    return task.source("validation")


def test_true_places_give_every_generated_answer(task, source):
    assert len(source.windows) > len(source.questions)  # some passages are cut
    scores = task.score(oracle(source, 40), source)
    assert scores == {"exact_match": 100.0, "f1": 100.0}


def test_a_row_holds_the_question_and_a_part_of_the_passage(task, source):
    window = source.windows[0]
    row = task.example(source[0], None)
    ids = row["token_ids"][row["mask"]]
    assert [source.tokenizer.pieces[i] for i in ids] == window.pieces
    assert row["segment_ids"].sum() == len(window.part) + 1
    if window.start:
        answer = window.pieces[window.start : window.end + 1]
        text = span_decoding.join_pieces(answer)
        assert text == source.questions[0].answers[0].lower()


def test_the_loss_is_the_mean_of_start_and_end(task):
    batch = {
        "starts": jnp.array([1, 0]),
        "ends": jnp.array([2, 0]),
        "valid": jnp.array([True, False]),
    }
    logits = {name: jnp.zeros((2, 4)) for name in ("start_logits", "end_logits")}
    total, count = task.loss(logits, batch)["span_loss"]
    assert (float(total), float(count)) == (pytest.approx(np.log(4)), 1)
    with pytest.raises(ValueError, match="the model has no start_logits"):
        task.loss({}, batch)


def test_a_question_without_an_answer_points_at_cls():
    question = squad.make_question("a b", "c", [])
    tokenizer = Tokenizer([*SPECIALS, "a", "b", "c"], lower_case=True)
    (window,) = squad.cut_windows(
        question, 0, tokenizer, length=9, stride=4, max_query=4
    )
    assert (window.start, window.end) == (0, 0)
    task = Span(data="generated", vocab_size=8, sequence_length=9, version="2.0")
    source = Windows([question], [window], tokenizer, ())
    scores = task.score(oracle(source, 9), source)
    assert (scores["exact_match"], scores["best_f1"]) == (100, 100)


def test_an_answer_says_where_it_is(task):
    tokenizer = task.open_tokenizer(lambda: iterate(invented.make_questions("train")))
    bound = task.bind(task.describe_text(tokenizer))
    context = "Anna lives in Cairo  and sells\nbooks."
    named, rows = bound.read_input({"question": "What ?", "context": context})
    ids = rows[0]["token_ids"].tolist()
    place = ids.index(tokenizer.number(tokenizer.split("books"))[0])
    length = len(tokenizer.split("books"))
    logits = {name: np.zeros(40, np.float32) for name in ("start_logits", "end_logits")}
    logits["start_logits"][place] = logits["end_logits"][place + length - 1] = 9
    found = bound.describe_outputs(named, rows, [logits], top=2)
    assert found["answer"] == "books"
    best = found["candidates"][0]
    assert context[best["start"] : best["end"]] == "books"


def iterate(questions):
    return (text for q in questions for text in (q.context, q.question))


def test_a_long_passage_is_read_in_several_rows(task):
    tokenizer = task.open_tokenizer(lambda: iterate(invented.make_questions("train")))
    bound = task.bind(task.describe_text(tokenizer))
    module = Bert(
        120, width=8, depth=1, mlp_width=8, num_heads=1, heads=(), head=SpanHead()
    )
    variables = module.init(jax.random.key(0), jnp.zeros((1, 40), jnp.int32))
    mesh = make_mesh({"data": -1}, jax.local_devices())
    predictor = Predictor(module, variables, bound, mesh, None)
    context = " ".join(f"Anna lives in Cairo and sells hats {i} ." for i in range(12))
    given = {"question": "Where ?", "context": context}
    (result,) = predictor.run([given], batch_size=8)
    assert result["answer"] in context
    bad = [{"question": "x"}, "text", {"question": "x", "context": " "}]
    errors = [r["error"] for r in predictor.run(bad, batch_size=8)]
    assert ["is no question" in e for e in errors] == [True, True, False]
    assert "the passage has no words" in errors[2]


def test_a_question_without_a_span_that_fits_has_no_answer_and_says_so():
    """SQuAD 1.1 has no "no answer"; the original writes "empty", which a passage may hold."""
    pieces = [*SPECIALS, "a", "b", "c", "who", "?"]
    task = Span(data="none", vocab_size=10, sequence_length=16, n_best=1).bind(
        {"vocab.txt": "".join(f"{piece}\n" for piece in pieces)}
    )
    named, rows = task.read_input({"question": "who ?", "context": "a b c"})
    logits = np.eye(16)
    outputs = [{"start_logits": logits[6], "end_logits": logits[4]}]  # it ends before
    found = task.describe_outputs(named, rows, outputs, top=3)
    assert (found["answer"], found["candidates"]) == ("", [])
    assert "config.task.n_best=1" in found["note"]
    first, second = format_result(named | found)
    assert first == "(no answer)"
    assert second.strip() == found["note"]
    outputs = [{"start_logits": logits[4], "end_logits": logits[6]}]
    found = task.describe_outputs(named, rows, outputs, top=3)
    assert "note" not in found
    assert format_result(named | found)[0] == "a b c"


def write(path, **changes):
    entry = {
        "id": "1",
        "question": "who ?",
        "answers": [{"text": "b", "answer_start": 2}],
    }
    article = {
        "title": "t",
        "paragraphs": [{"context": "a b c", "qas": [entry | changes]}],
    }
    path.write_text(json.dumps({"version": "1.1", "data": [article]}))
    return str(path)


def test_lost_answers_are_left_out_of_training_and_counted(tmp_path, caplog):
    path = write(tmp_path / "d.json", answers=[{"text": "x", "answer_start": 2}])
    pieces = [*SPECIALS, "a", "b", "c", "who", "?"]
    bound = Span(data=path, vocab_size=10, sequence_length=16).bind(
        {"vocab.txt": "".join(f"{piece}\n" for piece in pieces)}
    )
    source = bound.source("train")
    assert len(source) == 0
    assert source.left_out == (("1", "answers not in their passage"),)
    assert "1 answers are not in their passage" in caplog.text


@pytest.mark.parametrize(
    ("fields", "split", "message"),
    [
        ({"data": "absent.json"}, "train", "does not exist"),
        (
            {"max_query_length": 20, "sequence_length": 5},
            "train",
            "leaves no room for the",
        ),
        ({}, "validation", "is one file, so it has no split 'validation'"),
        ({"holdout": 1}, "train", "holdout=1 leaves no article to train on"),
    ],
)
def test_data_that_cannot_be_used_says_why(fields, split, message, tmp_path):
    path = write(tmp_path / "d.json")
    pieces = "".join(f"{piece}\n" for piece in [*SPECIALS, "a", "b", "c", "who", "?"])
    fields = {"data": path, "vocab_size": 10, "sequence_length": 16, **fields}
    with pytest.raises(ValueError, match=message):
        Span(**fields).bind({"vocab.txt": pieces}).source(split)


def test_a_file_of_another_structure_is_refused(tmp_path):
    (tmp_path / "d.json").write_text('{"data": [{"paragraphs": 3}]}')
    with pytest.raises(ValueError, match="d.json is no file of SQuAD"):
        squad.read_questions(tmp_path / "d.json")


def test_recipes_take_their_version():
    recipe = f"{__file__.rpartition('/')[0]}/../configs/bert/squad.py"
    for variant, version in (("v1", "1.1"), ("v2,tiny", "2.0")):
        loaded = config_lib.load(f"{recipe}:{variant}")
        assert loaded.task.version == version
    assert loaded.model.width == 128
    with pytest.raises(ValueError, match="'huge' is no size"):
        config_lib.load(f"{recipe}:v1,huge")
