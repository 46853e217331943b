"""Parameters from other checkpoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import (
    COLOURS,
    FROZEN,
    ROOT,
    check_equal,
    differ,
    records,
    tell_colours,
    tiny,
    write_classes,
)

import attn_jax
import train
from attn_jax import config as config_lib
from attn_jax.convert import export, load_pretrained
from attn_jax.convert.vit.resize import resize_patch_kernel
from attn_jax.data.vocabulary import SPECIALS
from attn_jax.models.bert import Bert, ClassHead, SpanHead, TagHead
from attn_jax.run import bind_task
from attn_jax.tasks.text_classify import TextClassify

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_parameters_come_from_another_run_except_those_that_are_skipped(
    finished, tmp_path
):
    theirs = attn_jax.restore(finished[1])[1]["params"]
    source = [[str(finished[1]), "", "head/.*"]]
    state = train.train(tiny({**FROZEN, "init_from": source}), str(tmp_path))
    ours = jax.device_get(state.params)
    assert differ(ours.pop("head"), theirs.pop("head"))
    check_equal(ours, theirs)


def test_parameters_come_from_another_run_into_a_part_of_the_model(finished, tmp_path):
    theirs = attn_jax.restore(finished[1])[1]["params"]
    source = [[str(finished[1]), "inner", ""]]
    config = tiny({**FROZEN, "init_from": source, "sharding_rules": []})
    config = config.copy_and_resolve_references().unlock()
    inner = config_lib.to_plain(config.model)
    config.model = {"cls": "runs:Wrapped", "inner": inner}
    state = train.train(config, str(tmp_path / "same"))
    check_equal(state.params, {"inner": theirs})
    config.model.inner.width = 16
    with pytest.raises(ValueError, match="set --config.model.inner.width=8, or leave"):
        train.train(config, str(tmp_path / "wider"))


def test_positions_and_filters_of_another_resolution_are_resized(tmp_path, capsys):
    path = ROOT / "tests" / "golden" / "vit" / "google" / "token_ckpt.npz"
    module, variables = load_pretrained(path, patch_size=2, image_size=16)
    fields = ("width", "depth", "mlp_width", "num_heads", "pool", "position")
    changes = {f"model.{name}": getattr(module, name) for name in fields}
    changes |= {"model.patch_size": 2, "task.image_size": 16, "task.channels": 3}
    changes |= {"model.gelu": "erf", "sharding_rules": []}
    source = [[str(path), "", "head/.*"]]
    state = train.train(tiny({**FROZEN, "init_from": source, **changes}), str(tmp_path))
    ours = jax.device_get(state.params)
    del ours["head"], variables["params"]["head"]
    check_equal(ours, variables["params"])
    assert "gelu was None" in capsys.readouterr().out  # tanh, now erf


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (
            ["nowhere", "", ""],
            {},
            "config.init_from: .*nowhere does not exist; name a run's --workdir",
        ),
        (["gs://bucket/x", "", ""], {}, "gs://bucket/x needs a package: .*gcsfs"),
        (["", "", ""], {}, "must be a path or name such as .*, not empty"),
        (["{run}", "", "nothing"], {}, "config.init_from: the regex 'nothing' matches"),
        (["{run}", "inner", ""], {}, "the model has no part 'inner'; .*Known: "),
        (["{run}", "", "head/("], {}, r"'head/\('.* must be a regular expression"),
        (
            ["{run}", "", ""],
            {"model.qkv_bias": False, "sharding_rules": []},
            "to take its parameters, set --config.model.qkv_bias=true, or leave out",
        ),
        (
            ["{run}", "", ""],
            {"model.width": 16},
            "to take its parameters, set --config.model.width=8, or leave out what",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    finished, tmp_path, source, changes, message
):
    source = [part.format(run=finished[1]) for part in source]
    with pytest.raises(ValueError, match=message) as refused:
        config = tiny({**FROZEN, "init_from": [source], **changes})
        train.train(config, str(tmp_path / "new"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_a_run_is_loaded_with_fields_changed_as_a_file_is(finished):
    module, variables = load_pretrained(finished[1])
    size = 2 * module.patch_size
    changed, resized = load_pretrained(
        finished[1], num_classes=0, patch_size=size, dtype="bfloat16"
    )
    assert (changed.patch_size, changed.dtype) == (size, "bfloat16")
    expected = resize_patch_kernel(
        np.asarray(variables["params"]["embedding"]["kernel"]), (size, size)
    )
    params = resized["params"]
    np.testing.assert_array_equal(params.pop("embedding")["kernel"], expected)
    del variables["params"]["head"], variables["params"]["embedding"]
    check_equal(params, variables["params"])
    with pytest.raises(ValueError, match="has a head of 10 classes, but num_classes=3"):
        load_pretrained(finished[1], num_classes=3)


def test_a_class_token_that_the_model_lacks_can_be_left_out(tmp_path):
    """Its position is a row of the table, which then belongs to another kind of model."""
    path = ROOT / "tests" / "golden" / "vit" / "google" / "token_ckpt.npz"
    module, _ = load_pretrained(path)
    fields = ("width", "depth", "mlp_width", "num_heads", "patch_size")
    changes = {f"model.{name}": getattr(module, name) for name in fields}
    changes |= {"model.pool": "gap", "model.position": "learned"}
    changes |= {"task.image_size": 16, "task.channels": 3, "sharding_rules": []}
    source = [[str(path), "", "head/.*"]]
    config = tiny({**FROZEN, "init_from": source, **changes})
    with pytest.raises(
        ValueError, match=r"pool=cls, or leave out .* cls .*, here absent; pos_emb"
    ):
        train.train(config, str(tmp_path / "refused"))
    source = [[str(path), "", "head/.*|cls|pos_embedding"]]
    config = tiny({**FROZEN, "init_from": source, **changes})
    train.train(config, str(tmp_path / "run"))


# --- classes ----------------------------------------------------------------------------


def test_a_head_is_taken_over_by_the_names_of_its_classes(tmp_path):
    splits = {"train": 16, "test": 6}
    data = write_classes(tmp_path / "data.zip", COLOURS, splits)
    train.train(tell_colours(data, ["ant", "bee", "cat"]), str(tmp_path / "first"))
    changes = FROZEN | {"init_from": [[str(tmp_path / "first"), "", ""]]}
    changes["evals"] = {"test": {"split": "test", "batch_size": 8, "every": "1 steps"}}
    # Trained, the head tells all classes apart; in another order it must as well.
    train.train(
        tell_colours(data, ["cat", "ant", "bee"], changes), str(tmp_path / "second")
    )
    first, second = (
        attn_jax.restore(tmp_path / name, trust=["runs"])[1]["params"]
        for name in ("first", "second")
    )
    np.testing.assert_array_equal(
        second["head"]["kernel"], first["head"]["kernel"][:, [2, 0, 1]]
    )
    check_equal(second["hidden"], first["hidden"])
    [line] = [r for r in records(tmp_path / "second") if "test/accuracy" in r]
    assert line["test/accuracy"] == 1

    other = write_classes(tmp_path / "other.zip", ["ant", "bee", "wasp"], splits)
    with pytest.raises(ValueError, match="the data lacks 'cat'.* head lacks 'wasp'"):
        train.train(tell_colours(other, None, changes), str(tmp_path / "third"))


# --- heads of BERT ----------------------------------------------------------------------

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
PIECES = [*SPECIALS, ".", *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def write_bert(folder, head, heads=(), labels=None):
    """A folder of transformers with a tiny BERT and its vocabulary; returns its parameters."""
    module = Bert(
        len(PIECES), width=16, depth=2, mlp_width=32, num_heads=2, max_positions=64,
        heads=heads, head=head, dialect="hf",
    )  # fmt: skip
    variables = module.init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
    vocabulary = {"vocab.txt": "".join(f"{piece}\n" for piece in PIECES)}
    export(module, variables, folder, "hf", labels=labels, vocabulary=vocabulary)
    return variables["params"]


def begin(recipe, source, folder, **changes):
    """(parameters at step 0, log lines) of a debug recipe of BERT that starts from a folder."""
    changes = {
        "init_from": [[str(source), "", ""]],
        "model.vocab_size": len(PIECES),
        "task.vocab_size": len(PIECES),
        "evals": {},
        "keep_best": None,
        **changes,
    }
    config = config_lib.load(
        f"{ROOT}/configs/bert/{recipe}.py:debug",
        [f"{key}={json.dumps(value)}" for key, value in changes.items()],
    )
    _, checkpoints, state, notes = train.begin(config, str(folder))
    checkpoints.close()
    return jax.device_get(state.params), notes


@pytest.fixture
def insects(tmp_path):
    rows = [f"{name},{name}" for name in ("ant", "bee", "cat") for _ in range(8)]
    file = tmp_path / "insects.csv"
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    return {"task.data": str(file)} | {
        key: 3 for key in ("task.num_classes", "model.head.num_classes")
    }


def test_parts_that_start_anew_are_named(tmp_path, insects, caplog):
    write_bert(tmp_path / "pretrained", None, ("mlm", "nsp"))
    _, notes = begin("classify", tmp_path / "pretrained", tmp_path / "run", **insects)
    assert "parameters, without head; " in notes[1]
    assert "mlm_bias, mlm_dense, mlm_norm, nsp are left out" in caplog.text
    write_bert(tmp_path / "tuned", ClassHead(3), labels=["ant", "bee", "cat"])
    _, notes = begin("classify", tmp_path / "tuned", tmp_path / "again", **insects)
    assert "without" not in notes[1]


def test_a_fine_tuned_head_is_kept_by_the_names_of_its_classes(tmp_path, insects):
    theirs = write_bert(tmp_path / "tuned", ClassHead(3), labels=["cat", "ant", "bee"])
    ours, _ = begin("classify", tmp_path / "tuned", tmp_path / "run", **insects)
    kernel = theirs["head"]["logits"]["kernel"]
    np.testing.assert_array_equal(
        ours["head"]["logits"]["kernel"], kernel[:, [1, 2, 0]]
    )


def test_tags_are_kept_by_their_names(tmp_path):
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    theirs = write_bert(tmp_path / "tuned", TagHead(4), labels=names)
    ours, _ = begin("ner", tmp_path / "tuned", tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "assets" / "text.json").read_text())
    order = [names.index(tag) for tag in saved["labels"]]
    assert order != [0, 1, 2, 3]
    kernel = theirs["head"]["logits"]["kernel"]
    np.testing.assert_array_equal(ours["head"]["logits"]["kernel"], kernel[:, order])


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        (ClassHead(2), ["ant", "bee"], "the checkpoint's head lacks 'cat'"),
        (
            ClassHead(2),
            None,
            r"its head has 2 outputs, the model's 3; to train a new head, ",
        ),
        (
            TagHead(3),
            None,
            r"its head is a TagHead, the model's a ClassHead; to train a new ",
        ),
        (
            SpanHead(),
            None,
            r"its head is a SpanHead, the model's a ClassHead; to train a new ",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_refused(tmp_path, insects, head, labels, message):
    write_bert(tmp_path / "tuned", head, labels=labels)
    with pytest.raises(ValueError, match=message) as refused:
        begin("classify", tmp_path / "tuned", tmp_path / "run", **insects)
    assert "head/.*" in str(refused.value)
    assert "config.model.head" not in str(refused.value)
    source = [[str(tmp_path / "tuned"), "", "head/.*"]]
    changes = insects | {"init_from": source}
    _, notes = begin("classify", tmp_path / "tuned", tmp_path / "run", **changes)
    assert "without head; " in notes[1]


def test_a_checkpoint_trained_with_another_gelu_is_named(tmp_path, insects, caplog):
    write_bert(tmp_path / "tuned", ClassHead(3), labels=["ant", "bee", "cat"])
    begin("classify", tmp_path / "tuned", tmp_path / "run", **insects)
    advice = (
        "GELU 'erf', the model's is 'tanh'; to use its, set --config.model.gelu=erf"
    )
    assert advice in caplog.text
    caplog.clear()
    changes = insects | {"model.gelu": "erf"}
    begin("classify", tmp_path / "tuned", tmp_path / "again", **changes)
    assert "GELU" not in caplog.text


def test_classes_are_those_of_the_data_and_the_vocabulary_of_the_run_before(tmp_path):
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    settings = {"lower_case": False, "labels": ["ant", "bee"]}
    (tmp_path / "text.json").write_text(json.dumps(settings))
    task = TextClassify(
        data="none", num_classes=2, vocab_size=len(PIECES), sequence_length=8
    )
    bound = bind_task(task, [[str(tmp_path), "", "head/.*"]], None)
    assert bound.class_names is None
    assert not bound.lower_case
    assert bound.tokenizer.pieces == tuple(PIECES)
    resumed = {
        name: (tmp_path / name).read_text() for name in ("vocab.txt", "text.json")
    }
    assert bind_task(task, [], resumed).class_names == ("ant", "bee")
