"""A run restored and evaluated from its folder: an old one, a changed one, a live one.

The folder was written by an earlier release (golden/workdirs/README.md), so it also shows
that this one reads it. That a run evaluates to what it wrote: test_train.py.
"""

import json
import logging
import pathlib
import shutil
import socket
import zipfile

import jax
import numpy as np
import processes
import pytest
from jax.sharding import PartitionSpec

import attn_jax
from attn_jax import config as config_lib
from attn_jax import sharding
from attn_jax.checkpoint_reader import CheckpointReader
from attn_jax.damage import Damaged, Removed
from attn_jax.paths import named_leaves
from attn_jax.restore import choose_shardings, make_saved_mesh
from attn_jax.tasks.classify import Classify

GOLDEN = pathlib.Path(__file__).parent / "golden/workdirs/digits_first.zip"
RESULTS = {  # evaluated by the release that wrote it, on one device
    "step": 8,
    "test/loss": 2.302768283420139,
    "validation/loss": 2.3026546902126737,
    "validation/accuracy": 0.1,
}
# Sums of 180 to 360 float32 losses, whose order depends on the devices; another
# checkpoint or a wrong average moves the fourth digit.
ROUNDING = 1e-6

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def workdir(tmp_path):
    with zipfile.ZipFile(GOLDEN) as archive:
        archive.extractall(tmp_path / "run")
    return tmp_path / "run"


def check_results(results):
    for name, value in RESULTS.items():
        np.testing.assert_allclose(results[name], value, rtol=ROUNDING, err_msg=name)


def change_config(workdir, **changes):
    """Sets `a.b` (given as a__b) in config.json."""
    settings = json.loads((workdir / "config.json").read_text())
    for key, value in changes.items():
        section, (*parents, last) = settings, key.split("__")
        for parent in parents:
            section = section[parent]
        assert last in section
        section[last] = value
    (workdir / "config.json").write_text(json.dumps(settings))


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files}


# --- a run of an earlier release --------------------------------------------------------


def test_a_run_of_an_earlier_release_evaluates_as_it_did(workdir):
    before = contents(workdir)
    check_results(attn_jax.evaluate(workdir))
    assert contents(workdir) == before  # looking changes nothing


def test_a_run_of_an_earlier_release_is_restored(workdir):
    module, variables, task = attn_jax.restore(workdir)
    record = CheckpointReader(workdir).record(8)
    assert "format" not in record
    names = {n.removeprefix("params/") for n in record["leaves"] if "params/" in n[:7]}
    assert named_leaves(variables["params"]).keys() == names
    assert (module.depth, type(task)) == (1, Classify)


# --- config.json ------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, '{"task": '])
def test_a_lost_config_is_taken_from_the_newest_checkpoint(text, workdir, caplog):
    (workdir / "config.json").unlink()
    if text:
        (workdir / "config.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        check_results(attn_jax.evaluate(workdir))
    assert "the config of the checkpoint of step 8 is used" in caplog.text


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model__num_heads": 1}, "model.num_heads: 2 -> 1"),
        ({"model__pool": "map"}, "model.pool: gap -> map"),
        ({"task__image_size": 17}, "task.image_size: 16 -> 17"),
        ({"task__holdout": 188}, "task.holdout: 180 -> 188"),
        ({"seed": 2}, "seed: 0 -> 2"),
        ({"ema_decay": 0.5}, "ema_decay: 0.995 -> 0.5"),
    ],
)
def test_a_config_that_is_not_the_checkpoints_is_refused_by_key(change, line, workdir):
    change_config(workdir, **change)
    for read in (attn_jax.evaluate, attn_jax.restore):
        with pytest.raises(ValueError, match="is not the config of the .* step 8") as e:
            read(workdir)
        assert line in str(e.value) and "remove the file" in str(e.value)


def test_no_flipped_bit_of_the_config_changes_a_result_in_silence(workdir, caplog):
    """Read only: what would be evaluated is compared, not evaluated."""
    file = workdir / "config.json"
    data = file.read_bytes()
    saved = json.loads(data)
    rng = np.random.default_rng(0)
    silent = []
    for at in rng.integers(len(data) * 8, size=30):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << (at % 8)
        file.write_bytes(flipped)
        caplog.clear()
        try:
            attn_jax.restore(workdir)
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        if not caplog.text:
            kept = json.loads(flipped)
            silent += [key for key in saved if kept.get(key) != saved[key]]
    # What neither the model nor an evaluation depends on.
    assert set(silent) <= set(config_lib.MAY_CHANGE) - {"evals", "keep_best"}


def test_what_may_change_on_resume_may_differ_and_is_said_where_it_matters(
    workdir, caplog
):
    change_config(workdir, evals__test__split="validation", log_every="9 steps")
    with caplog.at_level(logging.WARNING):
        results = attn_jax.evaluate(workdir)
    assert results["test/accuracy"] == results["validation/accuracy"]
    assert "evals.test.split: test -> validation" in caplog.text
    assert "log_every" not in caplog.text


def test_an_override_is_no_difference(workdir):
    module, _, _ = attn_jax.restore(workdir, overrides={"model.dtype": "bfloat16"})
    assert module.dtype == "bfloat16"


# --- a run in progress ------------------------------------------------------------------


@pytest.fixture
def removed_while_read(monkeypatch):
    """A run that saves step 9 and removes 8 once somebody reads 8's arrays."""
    restore = CheckpointReader.restore

    def race(self, step, like):
        if step == 8:
            folder = pathlib.Path(self.directory)
            (folder / "8").rename(folder / "9")
        return restore(self, step, like)

    monkeypatch.setattr(CheckpointReader, "restore", race)
    monkeypatch.setattr("attn_jax.restore.REMOVAL_SECONDS", 0.0, raising=False)


def test_a_checkpoint_that_is_removed_while_it_is_read_gives_way_to_the_newest(
    workdir, removed_while_read
):
    check_results(attn_jax.evaluate(workdir))
    assert CheckpointReader(workdir).steps() == [9, 4]
    assert not (workdir / "damaged").exists()


def test_a_removed_checkpoint_that_was_asked_for_by_number_is_said(
    workdir, removed_while_read
):
    with pytest.raises(Removed, match="step 8 was removed while it was read"):
        attn_jax.restore(workdir, step=8)


def test_a_damaged_checkpoint_is_named_by_a_reader_and_not_moved(workdir):
    file = workdir / "checkpoints/8/record/metadata"
    file.write_text(file.read_text().replace("validation", "valuation"))
    before = contents(workdir)
    with pytest.raises(Damaged, match="step 8 is damaged: its record has changed"):
        attn_jax.restore(workdir)
    assert contents(workdir) == before
    attn_jax.restore(workdir, step=4)


# --- what the run learned from its data ---------------------------------------------------


def test_a_task_is_bound_to_the_assets_of_the_run(workdir, monkeypatch):
    seen = []

    def bind(self, assets):
        seen.append(dict(assets))
        return self

    monkeypatch.setattr(Classify, "bind", bind, raising=False)
    _, _, task = attn_jax.restore(workdir)
    assert [*seen[0]] == ["images.json"] and isinstance(task, Classify)
    assert json.loads(seen[0]["images.json"])["labels"] == list("0123456789")
    seen.clear()
    attn_jax.evaluate(workdir)
    assert len(seen) == 3  # the training task's and two evaluations'


def test_a_run_without_assets_binds_nothing(workdir, monkeypatch):
    shutil.rmtree(workdir / "assets")
    monkeypatch.setattr(Classify, "bind", None, raising=False)
    attn_jax.restore(workdir)


# --- devices and processes ----------------------------------------------------------------


def test_a_mesh_that_does_not_fit_becomes_fsdp_over_all():
    assert dict(make_saved_mesh({"data": 2, "fsdp": -1}).shape) == {
        **{"data": 2, "fsdp": 4, "tensor": 1}
    }
    assert dict(make_saved_mesh({"data": 16}).shape) == {
        **{"data": 1, "fsdp": 8, "tensor": 1}
    }


def test_parameters_are_split_by_the_runs_rules_or_without_where_they_cannot_be():
    params = {"kernel": jax.ShapeDtypeStruct((16, 24), "float32")}
    settings = config_lib.load(
        "configs/vit/digits.py:debug",
        ['sharding_rules=[["kernel", [null, "tensor"]]]', "fsdp_min_elements=1"],
    )
    two = sharding.make_mesh({"tensor": 2, "fsdp": 4})
    assert choose_shardings(params, settings, two)["kernel"].spec == PartitionSpec(
        None, "tensor"
    )
    five = sharding.make_mesh({"tensor": 5}, jax.devices()[:5])  # 24 / 5
    assert choose_shardings(params, settings, five)["kernel"].is_fully_replicated
    everything = sharding.make_mesh({"fsdp": 8})
    settings = config_lib.override(settings, ["sharding_rules=[]"])
    assert choose_shardings(params, settings, everything)[
        "kernel"
    ].spec == PartitionSpec(None, "fsdp")


def test_restored_parameters_are_split_over_a_given_mesh(workdir):
    change_config(workdir, fsdp_min_elements=1)
    mesh = sharding.make_mesh({"fsdp": 8})
    _, split, _ = attn_jax.restore(workdir, mesh=mesh)
    _, whole, _ = attn_jax.restore(workdir)
    kernel = split["params"]["block_0"]["mlp"]["dense_1"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    for ours, theirs in zip(*map(jax.tree.leaves, (split, whole)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


PROBE = {
    "split": "test",
    "every": None,
    "batch_size": 100,
    "task": {
        "cls": "attn_jax.tasks.probe:Probe",
        "data": "digits",
        "image_size": 16,
        "channels": 1,
        "shots": [5],
    },
}
EVALUATE = """
import json, sys, jax
jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
import attn_jax
results = attn_jax.evaluate(sys.argv[4], overrides=json.loads(sys.argv[5]))
attn_jax.restore(sys.argv[4])
print(json.dumps(results))
"""


def evaluate_by(number, devices, workdir):
    """What each of so many processes prints as results."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    overrides = json.dumps({"evals.probe": PROBE})
    group = [
        processes.start(
            *("-c", EVALUATE, address, number, i, workdir, overrides),
            devices=devices,
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        )
        for i in range(number)
    ]
    try:
        ends = [processes.finish(process, timeout=150) for process in group]
    finally:
        for process in group:
            process.kill()
    for code, _, err in ends:
        assert code == 0, err
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ends]


@pytest.mark.parametrize("mesh", [{}, {"data": 1, "tensor": 2}], ids=["data", "tensor"])
def test_two_processes_evaluate_to_the_numbers_of_one(mesh, workdir):
    """Predictions are gathered, too; along the tensor axis both hold all rows."""
    change_config(workdir, fsdp_min_elements=1)
    change_config(workdir, **{f"mesh__{axis}": size for axis, size in mesh.items()})
    ours, theirs = evaluate_by(2, 1, workdir)
    assert ours == theirs
    alone = attn_jax.evaluate(workdir, overrides={"evals.probe": PROBE})
    assert ours == pytest.approx(alone, rel=ROUNDING)
    assert "probe/accuracy_5_shot" in ours
    check_results(ours)
