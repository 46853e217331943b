"""Whether a folder's run may go on, and what is said of changes."""

import pathlib
import shutil
import zipfile

import pytest
from runs import (
    ROOT,
    check_equal,
    contents,
    differ,
    records,
    save_untrained,
    tiny,
    tiny_bert,
    toy,
    write_images,
    write_npz,
    write_text,
)

import attn_jax
import train
from attn_jax import config as config_lib
from attn_jax import workdir

pytestmark = pytest.mark.usefixtures("quick_compilation")


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


# --- data that was moved ----------------------------------------------------------------


def write_data(path, kind, seed):
    """A data set of one of the kinds, at `path` with the suffix it needs."""
    if kind == "text":
        return write_text(
            path.with_suffix(".txt"), swap={"watched": "saw"} if seed else {}
        )
    if kind == "npz":
        write_npz(path.with_suffix(".npz"), seed)
        return str(path.with_suffix(".npz"))
    write_images(path, seed=seed)
    return str(path) if kind == "folder" else shutil.make_archive(path, "zip", path)


def short_run(data, kind, duration):
    if kind == "text":
        return tiny_bert(data, {"duration": duration, "batch_size": 8})
    images = {"task.holdout": 0, "duration": duration, "batch_size": 8}
    images["task.class_names"] = [*"abcdefghij"]  # of which the folder has two
    return toy({"task.data": data, **images})


@pytest.mark.parametrize("kind", ["npz", "folder", "zip", "text"])
def test_a_run_goes_on_with_data_that_was_moved_and_says_so(kind, tmp_path, capsys):
    data = write_data(tmp_path / "data", kind, seed=0)
    save_untrained(short_run(data, kind, "2 steps"), tmp_path / "run")
    moved = shutil.move(data, tmp_path / f"moved{pathlib.Path(data).suffix}")
    capsys.readouterr()
    state = train.train(short_run(str(moved), kind, "2 steps"), str(tmp_path / "run"))
    assert int(state.step) == 2
    assert f"changed task.data: {data} -> {moved}" in capsys.readouterr().out
    # From now on it is read from there.
    assert workdir.load_config(tmp_path / "run")["task"]["data"] == str(moved)

    other = write_data(tmp_path / "other", kind, seed=1)
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="data is not what the run in .* began with"):
        train.train(short_run(other, kind, "3 steps"), str(tmp_path / "run"))
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("kind", ["npz", "text"])
def test_a_relative_path_read_from_elsewhere_says_where_it_was_looked_for(
    kind, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    data = write_data(tmp_path / "data", kind, seed=0)
    monkeypatch.chdir(tmp_path)
    name = pathlib.Path(data).name
    save_untrained(short_run(name, kind, "2 steps"), "run")
    overrides = {"evals": {"train": {"split": "train"}}}
    attn_jax.evaluate("run", overrides=overrides, trust=["runs"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{tmp_path}/elsewhere") as refused:
        attn_jax.evaluate(tmp_path / "run", overrides=overrides, trust=["runs"])
    assert f"{name!r} does not exist (relative to" in str(refused.value)


# --- a run of an earlier release --------------------------------------------------------


def test_a_run_of_an_earlier_release_goes_on_with_the_same_command(tmp_path, capsys):
    folder = tmp_path / "run"
    with zipfile.ZipFile(ROOT / "tests/golden/workdirs/digits_first.zip") as archive:
        archive.extractall(folder)
    recipe = (
        f"{ROOT}/configs/vit/digits.py:debug"  # the command in the README beside it
    )
    sizes = ["model.depth=1", "model.width=8", "model.mlp_width=8"]
    before = attn_jax.restore(folder, params="raw")[1]["params"]
    state = train.train(config_lib.load(recipe, sizes), str(folder))
    assert int(state.step) == 8
    check_equal(state.params, before)
    longer = config_lib.load(recipe, [*sizes, "duration=12 steps"])
    state = train.train(longer, str(folder))
    assert int(state.step) == 12
    assert differ(state.params, before)
    printed = capsys.readouterr().out
    assert printed.count("task.exif_rotation=False, as when the run began") == 2
    assert "changed duration: 8 steps -> 12 steps" in printed
    lines = [line["step"] for line in records(folder) if "train/loss" in line]
    assert lines == list(range(1, 13))
    assert attn_jax.evaluate(folder)["step"] == 12
