"""Checkpoints: bit-equal on any mesh, kept as promised, written when they can be."""

import resource
import shutil
import types

import jax
import jax.numpy as jnp
import pytest
import states
from states import BEST, RECORD, accuracy, bits, blank, start

from attn_jax import checkpoint, sharding

# Fixtures are found by their name in the module.
original, workdir, opened = states.original, states.workdir, states.opened


# --- there and back -------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit_with_its_record(workdir, opened):
    state, record = opened(workdir).restore_latest(blank(start(3)))
    assert bits(state) == bits(start(3))
    assert jax.tree.structure(state) == jax.tree.structure(start(3))
    assert state.key.dtype == start(3).key.dtype  # a typed key, not its numbers
    expected = {**RECORD, "format": 1, "step": 3, "results": accuracy(0.25)}
    assert {name: record[name] for name in expected} == expected
    assert record["leaves"]["params/dense/bias"]["shape"] == [3]
    assert record["leaves"]["params/dense/bias"]["dtype"] == "bfloat16"


def test_a_relative_workdir_is_saved_to(tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    opened("runs/digits").finish(start(1), RECORD, {})
    assert opened(tmp_path / "runs/digits").steps() == [1]


def test_an_older_step_can_be_asked_for(workdir, opened):
    checkpoints = opened(workdir)
    assert checkpoints.steps() == [3, 2, 1]
    assert bits(checkpoints.restore(1, blank(start(1)))) == bits(start(1))


def test_a_new_workdir_has_nothing_to_restore(tmp_path, opened):
    checkpoints = opened(tmp_path, keep_best=BEST)
    assert checkpoints.restore_latest(blank(start(1))) is None
    assert (checkpoints.steps(), checkpoints.best_step()) == ([], None)


def test_parameters_come_back_without_the_rest(workdir, opened):
    like = {"params": blank(start(3)).params}
    restored = opened(workdir).restore(3, like)
    assert bits(restored) == bits({"params": start(3).params})


def layout_on(sizes, count, state):
    mesh = sharding.make_mesh(sizes, jax.devices()[:count])
    rules = [["dense/kernel", ["tensor", "fsdp"]]]
    layout = sharding.param_shardings(mesh, state.params, rules, fsdp_min_elements=1)
    return sharding.state_shardings(mesh, state, state.params, layout)


MESHES = {
    "eight": ({"fsdp": 8}, 8),
    "cube": ({"data": 2, "fsdp": 2, "tensor": 2}, 8),
    "single": ({}, 1),
}


@pytest.mark.parametrize(
    "before, after", [("eight", "cube"), ("cube", "single"), ("single", "eight")]
)
def test_a_state_comes_back_bit_for_bit_on_another_mesh(
    before, after, tmp_path, opened
):
    state = start(1)
    checkpoints = opened(tmp_path)
    split = jax.device_put(state, layout_on(*MESHES[before], state))
    checkpoints.finish(split, RECORD, {})
    layout = layout_on(*MESHES[after], state)
    restored, _ = checkpoints.restore_latest(sharding.add_shardings(state, layout))
    assert bits(restored) == bits(state)
    for leaf, where in zip(
        jax.tree.leaves(restored), jax.tree.leaves(layout), strict=True
    ):
        assert leaf.sharding == where
    assert not split.params["dense"]["kernel"].is_fully_replicated or before == "single"


# --- what stays -----------------------------------------------------------------------


def values_of(mode):
    return [0.1, 0.9, 0.3, 0.9, 0.2, 0.4] if mode == "max" else [9, 1, 7, 1, 8, 6]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("reopened", [False, True])
def test_the_latest_and_the_best_stay(mode, reopened, tmp_path, opened):
    """Also where the run is stopped and resumed between any two saves."""
    options = dict(keep_latest=2, keep_best=f"{mode}:validation/accuracy")
    checkpoints = opened(tmp_path, **options)
    stay = []
    for at, value in enumerate(values_of(mode), start=1):
        if reopened:
            checkpoints = opened(tmp_path, **options)
        state = start(1, large=(2, 2)).replace(step=jnp.asarray(at, jnp.int32))
        checkpoints.finish(state, RECORD, accuracy(float(value)))
        stay.append((checkpoints.steps(), checkpoints.best_step()))
    assert stay == [
        ([1], 1),
        ([2, 1], 2),
        ([3, 2], 2),
        ([4, 3], 4),  # of equals the newest: 2 may go
        ([5, 4], 4),
        ([6, 5, 4], 4),
    ]
    on_disk = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert on_disk == {6, 5, 4}
    assert opened(tmp_path, **options).best_step() == 4


def test_without_keep_best_only_the_latest_stay(tmp_path, opened):
    checkpoints = opened(tmp_path, keep_latest=1)
    for at in (1, 2):
        state = start(1, large=(2, 2)).replace(step=jnp.asarray(at, jnp.int32))
        checkpoints.finish(state, RECORD, accuracy(1.0 / at))
    assert (checkpoints.steps(), checkpoints.best_step()) == ([2], None)


def test_a_result_that_is_absent_or_not_finite_is_never_the_best(tmp_path, opened):
    checkpoints = opened(tmp_path, keep_latest=9, keep_best="min:validation/loss")
    for at, results in enumerate(
        [{}, {"validation/loss": float("nan")}, {"validation/loss": float("-inf")}], 1
    ):
        state = start(1, large=(2, 2)).replace(step=jnp.asarray(at, jnp.int32))
        checkpoints.finish(state, RECORD, results)
        assert checkpoints.best_step() is None
    state = state.replace(step=jnp.asarray(4, jnp.int32))
    checkpoints.finish(state, RECORD, {"validation/loss": 3.0})
    assert checkpoints.best_step() == 4


def test_a_step_that_is_saved_is_not_saved_again(workdir, opened):
    checkpoints = opened(workdir, keep_latest=3)
    before = checkpoints.record(3)
    assert checkpoints.save(start(3), {"data": "another"}, {})
    assert checkpoints.record(3) == before


def test_ranks_is_whether_the_metric_is_there(tmp_path, opened):
    checkpoints = opened(tmp_path, keep_best=BEST)
    assert checkpoints.ranks(accuracy(0.5))
    assert not checkpoints.ranks({"test/loss": 1.0})
    assert not opened(tmp_path).ranks(accuracy(0.5))
    with pytest.raises(
        ValueError,
        match="'validation/accuracy' is not a metric .* validation/loss, .*/f1",
    ):
        checkpoints.ranks({"validation/loss": 1.0, "validation/f1": 1.0})


def test_keep_best_of_no_evaluation_is_refused(tmp_path, opened):
    checkpoints = opened(tmp_path, keep_best=BEST)
    checkpoints.check_ranked_by({"validation": None, "test": None})
    opened(tmp_path).check_ranked_by({})
    with pytest.raises(
        ValueError, match=r"evaluation 'validation', .* are \['test'\]; .* set `every`"
    ):
        checkpoints.check_ranked_by({"test": None})


# --- disks that cannot be written -----------------------------------------------------


def a_full_disk(path):
    return types.SimpleNamespace(free=10)


def test_a_full_disk_is_said_and_the_next_save_works(tmp_path, opened, monkeypatch):
    checkpoints = opened(tmp_path, keep_best=BEST)
    checkpoints.finish(start(1), RECORD, accuracy(0.5))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", a_full_disk)
        assert not checkpoints.save(start(2), RECORD, accuracy(0.6))
    needed = sum(map(len, bits(start(2)).values())) - 8  # the key is not counted
    [said] = checkpoints.said
    assert said.startswith(f"step 2 was NOT saved in {tmp_path / 'checkpoints'}: ")
    assert f"only 10 bytes are free. {needed:,} bytes are needed. Training" in said
    assert checkpoints.best_step() == 1
    assert bits(checkpoints.restore(1, blank(start(1)))) == bits(start(1))

    checkpoints.finish(start(2), RECORD, accuracy(0.6))
    assert (checkpoints.steps(), checkpoints.best_step()) == ([2, 1], 2)
    assert len(checkpoints.said) == 1


def test_the_last_save_gives_up_when_patience_ends(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", a_full_disk)
    ticks = []
    with pytest.raises(
        OSError, match="step 1 could not be saved in .* within 0 s: .* bytes are needed"
    ):
        opened(tmp_path).finish(start(1), RECORD, {}, lambda: ticks.append(1))
    assert ticks == [1]


def test_the_last_save_tries_again_while_patience_lasts(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", 0.01)
    usage, ticks = shutil.disk_usage, []
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda path: a_full_disk(path) if len(ticks) < 3 else usage(path),
    )
    checkpoints = opened(tmp_path, patience_seconds=60.0)
    checkpoints.finish(start(1), RECORD, {}, lambda: ticks.append(1))
    assert len(ticks) == 3 and checkpoints.steps() == [1]
    assert sum("trying again every" in line for line in checkpoints.said) == 2


def test_a_folder_that_cannot_be_written_is_said_and_works_when_mended(
    tmp_path, opened
):
    checkpoints = opened(tmp_path)
    checkpoints.finish(start(1), RECORD, {})
    folder, away = tmp_path / "checkpoints", tmp_path / "away"
    folder.rename(away)
    folder.write_text("no folder")
    for at in (2, 3):
        saved = checkpoints.save(start(at), RECORD, {})
        assert not saved or not checkpoints._wait(start(at))
        assert any(f"step {at} was NOT saved" in line for line in checkpoints.said)
    folder.unlink()
    away.rename(folder)
    checkpoints.finish(start(4), RECORD, {})
    assert checkpoints.steps() == [4, 1]
    assert bits(checkpoints.restore(4, blank(start(4)))) == bits(start(4))


# Orbax's own thread dies of it, and orbax hands the error on at our next call.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_write_that_fails_in_the_background_is_said_at_the_next_save(
    tmp_path, opened
):
    """No file may grow past 4 KiB, while the array has 16."""
    checkpoints = opened(tmp_path)
    checkpoints.finish(start(1), RECORD, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        checkpoints.save(start(2), RECORD, {})
        checkpoints.save(start(3), RECORD, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert any("was NOT saved" in line for line in checkpoints.said)
    checkpoints.finish(start(4), RECORD, {})
    assert checkpoints.steps() == [4, 1]
    assert bits(checkpoints.restore(4, blank(start(4)))) == bits(start(4))
