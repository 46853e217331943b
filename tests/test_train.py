"""A run from its start to its end, and what it leaves behind."""

import hashlib
import json
import os
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from runs import (
    FROZEN,
    ROOT,
    TINY,
    check_equal,
    contents,
    differ,
    records,
    tiny,
    toy,
    write_images,
)

import attn_jax
import train
from attn_jax import config as config_lib
from attn_jax.checkpoint import Checkpoints
from attn_jax.data import pipeline
from attn_jax.paths import named_leaves

pytestmark = pytest.mark.usefixtures("quick_compilation")


# --- what a run leaves behind -----------------------------------------------------------


def test_the_saved_config_holds_every_default(finished):
    saved = json.loads((finished[1] / "config.json").read_text())
    assert saved == config_lib.to_plain(config_lib.resolve(tiny()))
    assert saved["model"]["remat"] is False  # named by no recipe


def test_metrics_are_lines_of_named_numbers(finished):
    lines = records(finished[1])
    training = [line for line in lines if "train/loss" in line]
    validation = [line for line in lines if "validation/accuracy" in line]
    assert [line["step"] for line in training] == list(range(1, 9))
    assert [line["step"] for line in validation] == [4, 8]
    assert len(lines) == len(training) + len(validation)  # `test` has no cadence
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    # The first step is mostly compilation and has no speed.
    assert all(line["examples_per_second"] > 0 for line in training[1:])
    assert (finished[1] / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished[1] / "tensorboard").iterdir())


def test_assets_are_digested_and_a_changed_one_is_refused(copied):
    asset = copied / "assets/images.json"
    digests = json.loads((copied / "assets/digests.json").read_text())
    assert digests == {"images.json": hashlib.sha256(asset.read_bytes()).hexdigest()}
    assert json.loads(asset.read_text())["labels"] == list("0123456789")
    asset.write_text(asset.read_text().replace("9", "ninth"))
    with pytest.raises(ValueError, match=r"images\.json is missing or has changed"):
        attn_jax.evaluate(copied)


@pytest.mark.parametrize("prefix", ["~", "file://{home}"])
def test_every_path_may_begin_with_a_home_or_be_a_file_url(
    prefix, finished, tmp_path, monkeypatch
):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(finished[1], home / "first")
    shutil.copy(ROOT / "configs/vit/digits.py", home / "recipe.py")
    write_images(tmp_path / "data")
    shutil.make_archive(str(home / "data"), "zip", tmp_path / "data")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    prefix = prefix.format(home=home)
    changes = TINY | FROZEN | {"batch_size": 8, "task.holdout": 0}
    changes["schedule"] = {"name": "constant"}
    changes["task.data"] = f"{prefix}/data.zip"
    changes["task.class_names"] = list("abcdefghij")  # of which the data has two
    changes["init_from"] = [[f"{prefix}/first", "", "head/.*"]]
    config = config_lib.load(
        "~/recipe.py:debug",
        [f"{key}={json.dumps(value)}" for key, value in changes.items()],
    )
    train.train(config, f"{prefix}/run")
    assert {"config.json", "metrics.jsonl", "curves.png", "tensorboard"} <= {
        path.name for path in (home / "run").iterdir()
    }
    overrides = {"evals": {"train": {"split": "train"}}}
    results = attn_jax.evaluate(f"{prefix}/run", overrides=overrides)
    assert results["step"] == 1
    assert not list(elsewhere.iterdir())


# --- a run read back --------------------------------------------------------------------


def test_a_copied_folder_evaluates_to_what_the_run_wrote(finished, copied):
    before = contents(copied)
    results = attn_jax.evaluate(copied)
    written = [line for line in records(finished[1]) if "validation/loss" in line][-1]
    assert results["step"] == written["step"] == 8
    for metric in ("accuracy", "cross_entropy", "loss"):
        name = f"validation/{metric}"
        assert results[name] == written[name]
    assert 0 <= results["test/accuracy"] <= 1
    assert contents(copied) == before  # looking changes nothing


def test_averaged_parameters_are_restored_unless_raw_ones_are_asked_for(
    finished, copied
):
    state, _ = finished
    module, variables, task = attn_jax.restore(copied)
    assert module == config_lib.build(tiny().model)
    names = tuple("0123456789")  # those of the training data
    assert task == config_lib.build({**tiny().task, "class_names": names})
    assert named_leaves(variables["params"]).keys() == state.average.keys()
    check_equal(dict(named_leaves(variables["params"])), state.average)
    check_equal(attn_jax.restore(copied, params="ema")[1], variables)
    raw = attn_jax.restore(copied, params="raw")[1]
    check_equal(raw["params"], state.params)
    assert differ(raw, variables)
    with pytest.raises(ValueError, match="params='mean' must be 'ema' or 'raw'"):
        attn_jax.restore(copied, params="mean")


def test_a_step_is_chosen_by_number_or_by_rank(finished, copied):
    ranked = {
        line["step"]: line["validation/accuracy"]
        for line in records(finished[1])
        if "validation/accuracy" in line
    }
    best = max(ranked, key=lambda at: (ranked[at], at))  # of equals the newest
    assert attn_jax.evaluate(copied, step="best")["step"] == best
    early, late = attn_jax.restore(copied, step=4), attn_jax.restore(copied, step="8")
    assert differ(early[1], late[1])
    for unknown in (5, "newest"):
        with pytest.raises(
            ValueError, match=rf"no checkpoint of step {unknown}; .*\[8, 4\]"
        ):
            attn_jax.restore(copied, step=unknown)


def test_an_override_may_change_what_leaves_the_parameters_alone(copied):
    module, variables, _ = attn_jax.restore(
        copied, overrides={"model.dtype": "bfloat16"}
    )
    assert module.dtype == "bfloat16"
    kernel = variables["params"]["block_0"]["mlp"]["dense_1"]["kernel"]
    assert kernel.dtype == "float32"
    images = jnp.zeros((1, 8, 8, 1))
    assert np.isfinite(module.apply(variables, images)["logits"]).all()
    small = attn_jax.evaluate(copied, overrides={"evals.test.batch_size": 8})
    assert small["test/accuracy"] == attn_jax.evaluate(copied)["test/accuracy"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.depth": 3}, "of another model: block_1/.* is not in the checkpoint"),
        ({"model.width": 16}, r"of another model: .* is \(.*\) there, \(.*\) here"),
        ({"model.num_classes": 0}, "parameters that this model lacks: head/"),
        ({"model.detph": 1}, "did you mean 'depth'"),
        (
            {"optimizer.b1": 0.8},
            r"optimizer.b1 cannot be changed .* only model\.\*, task",
        ),
    ],
)
def test_an_override_may_not_change_the_parameters(finished, overrides, message):
    with pytest.raises(ValueError, match=message) as refused:
        attn_jax.restore(finished[1], overrides=overrides)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["model", "task"])
def test_a_saved_config_runs_no_foreign_code(copied, key):
    config = json.loads((copied / "config.json").read_text())
    config[key]["cls"] = "runs:Toy"
    (copied / "config.json").write_text(json.dumps(config))
    for read in (attn_jax.restore, attn_jax.evaluate):
        with pytest.raises(ValueError, match="only name classes .*--trust=runs"):
            read(copied)


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: it has no config\.json"):
        attn_jax.evaluate(tmp_path)


def test_a_corrupt_image_stops_the_run_and_is_named(tmp_path):
    write_images(tmp_path / "data", damaged="b/5.png")
    data = {"task.data": str(tmp_path / "data"), "task.holdout": 0}
    data["task.class_names"] = list("abcdefghij")  # of which the folder has two
    config = toy({**data, "duration": "3 steps"})
    with pytest.raises(ValueError, match=r"b/5\.png .*cannot be decoded"):
        train.train(config, str(tmp_path / "run"))


def test_a_corrupt_image_is_left_out_and_counted_where_the_config_says_so(
    tmp_path, capsys
):
    write_images(tmp_path / "data", damaged="b/5.png")
    data = {"task.data": str(tmp_path / "data"), "task.holdout": 0}
    data["task.class_names"] = list("abcdefghij")  # of which the folder has two
    config = toy({**data, "task.corrupt": "skip", "duration": "3 steps"})
    state = train.train(config, str(tmp_path / "run"))
    assert int(state.step) == 3
    assert "data: 15 records (left out: 1 corrupt image)" in capsys.readouterr().out


# --- gradients that are not finite ------------------------------------------------------


def test_non_finite_gradients_are_skipped_counted_and_at_last_stop_the_run(
    tmp_path, capsys
):
    exploding = {
        "optimizer": {"name": "sgd", "learning_rate": 1e38},  # step 2 overflows
        "schedule": {"name": "constant"},
        "ema_decay": None,
    }
    config = toy({**exploding, "max_skipped": 3})
    with pytest.raises(FloatingPointError) as stopped:
        train.train(config, str(tmp_path))

    task = config_lib.build(config.task)
    rows = np.arange(config.batch_size)
    batch = next(
        pipeline.training_batches(
            task.source("train"),
            task,
            seed=0,
            batch_size=config.batch_size,
            rows=rows,
            start_step=3,  # the fourth batch
        )
    )
    examples = ", ".join(map(str, batch["index"][:8]))
    message = str(stopped.value)
    assert "3 updates in a row were skipped" in message
    assert f"at step 4, examples {examples}, ..." in message

    # The state is saved, and the count goes on from there.
    [saved] = Checkpoints(tmp_path).steps()
    assert saved >= 4
    capsys.readouterr()
    state = train.train(toy({**exploding, "max_skipped": 100}), str(tmp_path))
    assert f"resumed from step {saved}" in capsys.readouterr().out
    assert int(state.step) == 8
    assert int(state.skipped) == int(state.skipped_in_a_row) == 7
    assert records(tmp_path)[-1]["train/skipped"] == 7
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


# --- parts that do not train, and parts from elsewhere ----------------------------------


def test_frozen_parameters_do_not_move_and_have_no_slots_and_no_average(tmp_path):
    def run(duration):
        settings = {"freeze": ["hidden/.*"], "duration": duration, "ema_decay": 0.9}
        settings["schedule"] = {"name": "constant"}
        return train.train(toy(settings), str(tmp_path / duration))

    first, third = run("1 steps"), run("3 steps")
    check_equal(first.params["hidden"], third.params["hidden"])
    assert differ(first.params["head"], third.params["head"])
    assert set(third.average) == {"head/kernel", "head/bias"}
    slots = [name for name in named_leaves(third.opt_state) if "kernel" in name]
    assert slots  # Adam's two
    assert not [name for name in slots if "hidden" in name]


# --- the commands -----------------------------------------------------------------------

# Python runs it at its start.
UNFINDABLE = """
from importlib.machinery import PathFinder

def find_spec(cls, name, *rest):
    absent = name.partition(".")[0] in ("tensorflow", "torch")
    return None if absent else find(name, *rest)

find = PathFinder.find_spec
PathFinder.find_spec = classmethod(find_spec)
"""


def test_the_commands_train_and_evaluate_where_tensorflow_and_torch_cannot_be_imported(
    tmp_path,
):
    (tmp_path / "sitecustomize.py").write_text(UNFINDABLE)
    run = tmp_path / "run"
    (tmp_path / "flags").write_text("--config.seed=3\n--config.batch_size=8\n")
    commands = [
        processes.train(run, f"--flagfile={tmp_path}/flags"),
        ["-m", "attn_jax", "evaluate", f"--workdir={run}", "--step=best"],
    ]
    for command in commands:
        process = processes.start(*command, PYTHONPATH=str(tmp_path))
        status, out, err = processes.finish(process)
        assert status == 0, err
    results = json.loads(out.splitlines()[-1])
    assert results["step"] in (4, 8)
    assert 0 <= results["test/accuracy"] <= 1
    saved = json.loads((run / "config.json").read_text())
    assert (saved["seed"], saved["batch_size"]) == (3, 8)


def test_a_run_without_evaluations_promises_no_evaluation(tmp_path, capsys):
    train.train(toy({"duration": "2 steps"}), str(tmp_path))
    assert capsys.readouterr().out.splitlines()[-1] == f"finished: {tmp_path}"


def test_the_last_line_of_a_run_works_where_it_is_pasted_into_a_shell(tmp_path, capsys):
    """In a folder with spaces and quotes, with a model of another package."""
    evals = {"test": {"split": "test", "every": "2 steps"}}
    changes = {"evals": evals, "duration": "2 steps", "keep_best": "max:test/accuracy"}
    folder = tmp_path / """a "great" run's folder $HOME"""
    train.train(toy(changes), str(folder))
    line = capsys.readouterr().out.splitlines()[-1]
    shell = subprocess.run(
        ["sh", "-c", line.removeprefix("evaluate: ")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},  # where `runs` is
        timeout=200,
        check=False,
    )
    assert shell.returncode == 0, shell.stderr
    results = json.loads(shell.stdout.splitlines()[-1])
    assert results["step"] == 2
    assert results["test/accuracy"] == pytest.approx(
        records(folder)[-1]["test/accuracy"],
        abs=1 / 360,  # one image of rounding
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--config.batch_size=0", "error: config.batch_size=0 must be"),
        ("--config.task.data=nowhere", "error: 'nowhere' does not exist"),
        ("--workdir=", "error: workdir='' is empty"),
        ("--flagfile=nowhere", "error: Unable to open flagfile: "),
    ],
)
def test_the_command_says_one_line_and_fails_on_bad_input(tmp_path, setting, message):
    command = processes.train(tmp_path / "run", setting)
    status, out, err = processes.finish(processes.start(*command))
    assert status == 1
    [line] = err.splitlines()
    assert re.match(re.escape(message), line), line
    assert not out
    assert not (tmp_path / "run").exists()


def test_a_command_without_its_flags_names_them():
    status, out, err = processes.finish(processes.start("train.py"))
    assert (status, out) == (1, "")
    assert err == "error: --config and --workdir are needed; see --help.\n"
