"""A run and what it leaves behind; what it refuses, and in which words.

A tiny ViT where the run is read back, else a toy that compiles in no time.
"""

import hashlib
import json
import pathlib
import re
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from PIL import Image

import attn_jax
import train
from attn_jax import config as config_lib
from attn_jax import workdir
from attn_jax.checkpoint import Checkpoints
from attn_jax.convert import load_pretrained
from attn_jax.convert.resize import resize_patch_kernel
from attn_jax.data import pipeline
from attn_jax.paths import named_leaves

ROOT = pathlib.Path(__file__).parent.parent
TINY = {
    "model.depth": 1,
    "model.width": 8,
    "model.mlp_width": 8,
    "model.dropout": 0.0,
    "model.stochastic_depth": 0.0,
}

pytestmark = pytest.mark.usefixtures("quick_compilation")


def tiny(changes=()):
    """The digits recipe at "debug" with a ViT of one narrow block, and changes."""
    settings = {**TINY, **dict(changes)}
    return config_lib.load(
        f"{ROOT}/configs/vit/digits.py:debug",
        [f"{key}={json.dumps(value)}" for key, value in settings.items()],
    )


class Toy(nn.Module):
    num_classes: int = 10
    batch_norm: bool = False

    @nn.compact
    def __call__(self, images, *, train=False):
        x = images.reshape(len(images), -1)
        x = nn.relu(nn.Dense(4, name="hidden")(x))
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train)(x)
        return {"logits": nn.Dense(self.num_classes, name="head")(x)}


class Wrapped(nn.Module):
    inner: nn.Module

    def __call__(self, images, *, train=False):
        return self.inner(images, train=train)


def toy(changes=()):
    """The digits recipe at "debug" with the toy model and no evaluations, and changes."""
    config = config_lib.load(f"{ROOT}/configs/vit/digits.py:debug").unlock()
    config.model = {"cls": f"{__name__}:Toy"}
    config.sharding_rules = []
    config.evals, config.keep_best = {}, None
    settings = [f"{key}={json.dumps(value)}" for key, value in dict(changes).items()]
    return config_lib.override(config, settings)


def records(folder):
    """The lines of metrics.jsonl."""
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def contents(folder):
    """{file: its bytes} below a folder."""
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_equal(ours, theirs):
    ours, theirs = named_leaves(ours), named_leaves(theirs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def differ(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(final state, workdir) of a run of 8 steps; do not write there."""
    folder = tmp_path_factory.mktemp("run")
    return train.train(tiny(), str(folder)), folder


@pytest.fixture
def copied(finished, tmp_path):
    """The run's folder at another place, with nothing beside it."""
    return pathlib.Path(shutil.copytree(finished[1], tmp_path / "copy"))


# --- what a run leaves behind -----------------------------------------------------------


def test_the_saved_config_holds_every_default(finished):
    saved = json.loads((finished[1] / "config.json").read_text())
    assert saved == config_lib.plain(config_lib.resolve(tiny()))
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
    assert task == config_lib.build(tiny().task)
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
        with pytest.raises(ValueError, match=rf"step {unknown} is none of .*\[8, 4\]"):
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
        ({"optimizer.b1": 0.8}, r"optimizer.b1 cannot be set .* only model\.\*, task"),
    ],
)
def test_an_override_may_not_change_the_parameters(finished, overrides, message):
    with pytest.raises(ValueError, match=message) as refused:
        attn_jax.restore(finished[1], overrides=overrides)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["model", "task"])
def test_a_saved_config_runs_no_foreign_code(copied, key):
    config = json.loads((copied / "config.json").read_text())
    config[key]["cls"] = f"{__name__}:Toy"
    (copied / "config.json").write_text(json.dumps(config))
    for read in (attn_jax.restore, attn_jax.evaluate):
        with pytest.raises(ValueError, match=f"only name classes .*--trust={__name__}"):
            read(copied)


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no config\.json"):
        attn_jax.evaluate(tmp_path)


# --- resuming ---------------------------------------------------------------------------


def test_a_key_that_may_not_change_is_listed_and_nothing_is_touched(copied):
    before = contents(copied)
    changed = {"seed": 1, "optimizer.learning_rate": 0.5, "mesh.data": 8}
    with pytest.raises(ValueError) as refused:
        train.train(tiny(changed), str(copied))
    message = str(refused.value)
    assert "\n" not in message
    assert "optimizer.learning_rate: 0.002 -> 0.5" in message
    assert "seed: 0 -> 1" in message
    assert "mesh" not in message
    assert contents(copied) == before


def test_what_may_change_is_printed_and_the_run_goes_on(copied, capsys):
    changed = {
        "duration": "9 steps",
        "mesh.data": 2,
        "mesh.fsdp": 4,
        "checkpoint_every": "2 steps",
    }
    state = train.train(tiny(changed), str(copied))
    assert int(state.step) == 9
    printed = capsys.readouterr().out
    assert "resumed from step 8" in printed
    assert "changed duration: 8 steps -> 9 steps" in printed
    assert "changed mesh.fsdp: 1 -> 4" in printed
    assert "WARNING: the new duration moves the schedule" in printed
    assert workdir.load_config(copied)["duration"] == "9 steps"
    assert [line["step"] for line in records(copied) if "train/loss" in line] == list(
        range(1, 10)
    )


def test_the_same_command_after_the_end_changes_no_parameter(finished, copied):
    state = train.train(tiny(), str(copied))
    check_equal(state.params, finished[0].params)


def write_npz(path, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (32, 8, 8), np.uint8)
    np.savez(path, x_train=images, y_train=np.arange(32) % 10)


def test_other_data_than_the_run_began_with_is_refused(tmp_path):
    data = tmp_path / "data.npz"
    config = toy({"task.data": str(data), "task.holdout": 0, "duration": "3 steps"})
    write_npz(data, seed=0)
    train.train(config, str(tmp_path / "run"))
    write_npz(data, seed=1)
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="data is not what the run in .* began with"):
        train.train(config, str(tmp_path / "run"))
    assert contents(tmp_path / "run") == before


# --- bad input --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 12},
            r"batch_size=12 must be divisible by .* = 8 x 1 x 1 = 8; use 8 or 16",
        ),
        (
            {"micro_batches": 3},
            r"batch_size=16 must be divisible by .* = 8 x 1 x 3 = 24; use 24",
        ),
        ({"batch_size": -16}, "batch_size=-16 must be at least 1"),
        ({"micro_batches": 0}, "micro_batches=0 must be at least 1"),
        ({"log_every": "0 steps"}, "log_every='0 steps' must be more than zero"),
        (
            {"evals.validation.every": "0 epochs"},
            "evals.validation.every='0 epochs' must be more than zero",
        ),
        (
            {"task.image_size": 9},
            "image is 9x9; patch_size=4 must divide both sides. Change config.task",
        ),
        (
            {"mesh.data": 16},
            "data=16, fsdp=1, tensor=1.* asks for 16 devices, but 8 are here",
        ),
        ({"mesh.data": 4}, "asks for 4 devices, but 8 are here"),
        ({"task.data": "nowhere.npz"}, "'nowhere.npz' does not exist. Set config.task"),
        ({"model.num_classes": 5}, "the model has 5 classes and the task 10"),
        (
            {"task.num_classes": 5},
            "digits has labels from 0 to 9, but config.task.num_classes",
        ),
        ({"schedule.warmup": "9 steps"}, "last 9 steps, but the run has 8; shorten"),
        (
            {"freeze": ["nothing"]},
            "config.freeze: the regex 'nothing' matches no param",
        ),
        (
            {"sharding_rules": [["nothing", []]]},
            "config.sharding_rules: the regex 'nothing' matches no parameter",
        ),
        (
            {"keep_best": "max:test/accuracy"},
            "names the evaluation 'test', but those with a cadence are",
        ),
        ({"keep_best": "validation/loss"}, "must read 'max:name/metric'"),
        ({"duration": "8 stops"}, "'8 stops' must be a number and a unit"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused_in_one_line(
    tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message) as refused:
        train.train(tiny(changes), str(tmp_path))  # some are refused by tiny() already
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_an_empty_data_folder_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="data holds nothing; expected SPLIT/CLASS"):
        train.train(toy({"task.data": str(tmp_path / "data")}), str(tmp_path / "run"))


def test_an_unknown_optimizer_names_the_known_ones(tmp_path):
    config = tiny().copy_and_resolve_references().unlock()
    config.optimizer = {"name": "adam"}
    with pytest.raises(ValueError, match="name='adam'.*did you mean 'adamw'.*'sgd'"):
        train.train(config, str(tmp_path))


def test_batch_norm_is_refused_with_an_alternative(tmp_path):
    with pytest.raises(ValueError, match="Toy creates .*'batch_stats'.*GroupNorm"):
        train.train(toy({"model.batch_norm": True}), str(tmp_path))


def write_images(folder, damaged):
    """Two classes of eight images; one file is cut in half."""
    rng = np.random.default_rng(0)
    for label in "ab":
        (folder / "train" / label).mkdir(parents=True)
        for number in range(8):
            image = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
            image.save(folder / "train" / label / f"{number}.png")
    path = folder / "train" / damaged
    path.write_bytes(path.read_bytes()[:60])


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
    assert "data: 15 records (1 corrupt ones left out)" in capsys.readouterr().out


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
    named = f"3 times in a row, last at step 4, examples {examples}, ..."
    assert named in str(stopped.value)

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


FROZEN = {"freeze": [".*"], "ema_decay": None, "duration": "1 steps"} | {
    "schedule": {"name": "constant"},
    "evals": {},
    "keep_best": None,
}


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
    inner = config_lib.plain(config.model)
    config.model = {"cls": f"{__name__}:Wrapped", "inner": inner}
    state = train.train(config, str(tmp_path))
    check_equal(state.params, {"inner": theirs})


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
        (["nowhere", "", ""], {}, "nowhere does not exist; name a run's --workdir"),
        (["{run}", "", "nothing"], {}, "config.init_from: the regex 'nothing' matches"),
        (["{run}", "inner", ""], {}, "the model has no part 'inner'; .*Known: "),
        (["{run}", "", "head/("], {}, r"'head/\(' is no regular expression"),
        (
            ["{run}", "", ""],
            {"model.qkv_bias": False, "sharding_rules": []},
            r"skip regex to leave them out:\n  block_0/attention/key/bias .*, here absent",
        ),
        (
            ["{run}", "", ""],
            {"model.width": 16},
            r"skip regex to leave them out:\n  block_0/attention/key/bias \(.*\), here \(",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    finished, tmp_path, source, changes, message
):
    source = [part.format(run=finished[1]) for part in source]
    config = tiny({**FROZEN, "init_from": [source], **changes})
    with pytest.raises(ValueError, match=message):
        train.train(config, str(tmp_path))


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
    with pytest.raises(ValueError, match=r"cls .*, here absent\n  pos_embedding"):
        train.train(config, str(tmp_path / "refused"))
    source = [[str(path), "", "head/.*|cls|pos_embedding"]]
    config = tiny({**FROZEN, "init_from": source, **changes})
    train.train(config, str(tmp_path / "run"))


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
    commands = [
        processes.train(run),
        ["-m", "attn_jax", "evaluate", f"--workdir={run}", "--step=best"],
    ]
    for command in commands:
        process = processes.start(*command, PYTHONPATH=str(tmp_path))
        status, out, err = processes.finish(process)
        assert status == 0, err
    results = json.loads(out.splitlines()[-1])
    assert results["step"] in (4, 8)
    assert 0 <= results["test/accuracy"] <= 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--config.batch_size=0", "error: config.batch_size=0 must be"),
        ("--config.task.data=nowhere", "error: 'nowhere' does not exist."),
    ],
)
def test_the_command_says_one_line_and_fails_on_bad_input(tmp_path, setting, message):
    command = processes.train(tmp_path, setting)
    status, _, err = processes.finish(processes.start(*command))
    assert status == 1
    [line] = err.splitlines()
    assert re.match(re.escape(message), line), line
