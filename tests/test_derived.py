"""Fields that a config leaves to its data or to the checkpoint it starts from."""

import json

import jax
import numpy as np
import pytest
from runs import COLOURS, FROZEN, tiny, write_classes

import attn_jax
import train
from attn_jax import config as config_lib
from attn_jax import paths
from attn_jax.initialize import initialize_from
from attn_jax.run import prepare

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPEN = {f"model.{field}": "auto" for field in ("depth", "width", "layer_scale", "pool")}
OPEN |= {
    "model.num_classes": "auto",
    "task.num_classes": "auto",
    "task.holdout": "auto",
}


def test_the_data_and_the_checkpoint_fill_in_what_is_open(finished):
    _, source = finished
    settings = OPEN | {"task.mean": "auto", "init_from": str(source)}
    run = prepare(tiny(settings))
    module, _, _ = attn_jax.restore(source)
    for field in ("depth", "width", "layer_scale", "pool"):
        assert getattr(run.model, field) == getattr(module, field)
    assert run.config.task.num_classes == run.config.model.num_classes == 10
    assert run.config.task.holdout == 144  # a tenth of 1,437
    assert run.config.task.mean == 0.5
    assert config_lib.to_plain(run.config.evals.validation.task) == {}
    assert run.derived[0] == (
        "from the data digits: task.num_classes=10, task.holdout=144"
    )
    assert f"from {source}: model.depth=1, model.pool='gap'" in run.derived[2]


def test_a_split_of_the_data_is_its_validation(tmp_path):
    data = write_classes(tmp_path / "c.zip", COLOURS, {"train": 4, "validation": 2})
    settings = {"task.data": data, "task.channels": 3, "evals.test": {"split": "train"}}
    config = tiny(settings | {key: v for key, v in OPEN.items() if "classes" in key})
    run = prepare(config_lib.override(config, ["task.holdout=auto"]))
    assert run.config.task.num_classes == len(COLOURS)
    assert run.config.task.holdout == 0


def test_a_run_resumes_without_the_checkpoint_that_it_began_with(finished, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(finished[1])
    settings = FROZEN | OPEN | {"init_from": str(moved)}
    train.train(tiny(settings), str(tmp_path / "run"))
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert "auto" not in (*saved["model"].values(), *saved["task"].values())
    moved.unlink()
    state = train.train(tiny(settings | {"duration": "2 steps"}), str(tmp_path / "run"))
    assert int(state.step) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "config.model.depth, .*'auto': .* Set --config.init_from=CHECKPOINT"),
        (
            {"init_from": "{run}", "optimizer.learning_rate": "auto"},
            "optimizer.learning_rate='auto' must be of type float",
        ),
        (
            {"init_from": "{run}", "evals.validation.task.mean": "auto"},
            "task.mean='auto' must be of type float",
        ),
        (
            {"init_from": "{run}", "model.widht": "auto"},
            "widht: nothing reads this key",
        ),
    ],
)
def test_what_cannot_be_derived_is_refused(finished, changes, message):
    changes = {
        key: value.format(run=finished[1]) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        prepare(tiny(OPEN | changes))


def test_a_checkpoint_of_another_model_is_refused(finished):
    config = config_lib.load("bert/pretrain_stdlib:debug", ["model.width=auto"])
    config = config_lib.override(config, [f"init_from={finished[1]}"])
    with pytest.raises(
        ValueError, match="'auto': .* is a ViT; set the fields, or name"
    ):
        prepare(config)


def test_a_saved_config_has_no_open_fields(finished):
    with pytest.raises(ValueError, match="model.depth='auto' must be of type int"):
        attn_jax.evaluate(finished[1], overrides={"model.depth": "auto"})


@pytest.mark.parametrize("same", [True, False])
def test_a_head_is_taken_over_only_if_it_names_the_classes(tmp_path, same):
    names = list(COLOURS)
    splits = {"train": 4, "validation": 2, "test": 2}
    first = write_classes(tmp_path / "a.zip", names, splits)
    others = names if same else [*names[1:], "zebra"]
    second = write_classes(tmp_path / "b.zip", others, splits)
    settings = FROZEN | {
        "task.channels": 3,
        "task.holdout": 0,
        "task.num_classes": len(names),
        "model.num_classes": len(names),
    }
    # The head of the first run has its classes in another order.
    changes = {"task.data": first, "task.class_names": names[::-1]}
    train.train(tiny(settings | changes), str(tmp_path / "first"))
    _, variables, _ = attn_jax.restore(tmp_path / "first")
    theirs = paths.named_leaves(variables["params"])

    start = {"task.data": second, "init_from": str(tmp_path / "first"), "seed": 1}
    run = prepare(tiny(settings | start))
    new = run.init_params()
    params, [note] = initialize_from(run, new)
    params = jax.device_get(paths.named_leaves(params))
    assert np.array_equal(params["embedding/kernel"], theirs["embedding/kernel"])
    if same:
        assert np.array_equal(params["head/kernel"], theirs["head/kernel"][:, ::-1])
        assert "without" not in note
    else:
        assert np.array_equal(params["head/kernel"], new["head"]["kernel"])
        assert note.partition(";")[0].endswith("without head")
